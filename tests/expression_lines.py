"""Lines of code as users write them, for networks drawn at random: templates, two spaces or more apart."""

from __future__ import annotations

import re


def _lines(text: str) -> tuple[str, ...]:
    return tuple(re.split(r"\s{2,}", text.strip()))


#: Of any tensor {a}, with numbers {n} on either side.
NUMBERS = _lines(
    """
    {a} * 1   1 * {a}   {a} + 0   0 + {a}   {a} / 1   {a} - 0   {a} * 1.0   {a} / 1.0   {a} + 0.0   -{a}   {a} * {n}
    {n} * {a}   {a} + {n}   {n} + {a}   {a} / {n}   {a} - {n}   {n} - {a}   0 - {a}   +{a}   1 / ({a}.abs() + 1)
    {n} / (torch.sigmoid({a}) + 0.1)   1 / (torch.sigmoid({a}) * 9.99 + 0.01)   ({a} * 255 - 127.5) / 1.0
    ({a} - 0.5) / 0.5   (({a} + 1) / 2 * 3 - 1) / 1   {a} * 2 / 2   {a} ** 2   {a}.square()   {a} ** 1   {a} ** 3
    {a}.abs() ** 0.5   ({a}.abs() + 1) ** -0.5   ({a}.abs() + 1) ** -1   torch.rsub({a}, 1)
    torch.rsub({a}, {n}, alpha=2)   torch.add({a}, {n}, alpha={n})   torch.mul({n}, {a})   torch.sub({a}, {n}, alpha=2)
    torch.div({a}, {n})   torch.true_divide({a}, {n})   torch.neg({a})   ({a}.abs() + 1).rsqrt()
    ({a}.abs() + 1).reciprocal()   ({a}.abs() + 1).log()   ({a} * 0.1).exp()   {a}.abs().sqrt()
    torch.pow({a}.abs() + 0.1, 1 / 2.2)   {a} * torch.tensor({n})   {a} + torch.tensor(0.0)   {a}.float()
    {a}.to({a}.dtype)   {a}.type_as(x)   {a}.contiguous()   {a}.clone()   {a}.detach() * 1   ({a} > 0) * {a}
    ({a} > 0).float() * {n}   ({a} >= {n}).to({a}.dtype) - {a}   {a} * True   {a} + (2 > 1)   {a}.sin() + {a}.cos()
    {a}.erf()   torch.floor({a} * 2 + 0.3)   torch.sign({a} + 0.01)   {a}.expm1()   torch.log1p({a}.abs())
    {a}.trunc()   {a}.frac() * 0   torch.ceil({a} + 0.4)   torch.exp2({a} * 0.1)   torch.where({a} > 0, {a}, {a} * {n})
    torch.where({a} > {n}, {n}, {a})   {a}.masked_fill({a} < 0, {n})   {a}.nan_to_num()   {a} % 2   {a} // 1
    torch.atan({a})   torch.remainder({a}, 3)   torch.lerp({a}, x0, 0)
    """
)

#: Activations with every argument that they have; {p} is a positive number, {d} an axis, but the batch's.
ACTIVATIONS = _lines(
    """
    F.relu({a})   torch.relu({a}) * 1.0   F.relu6({a})   F.leaky_relu({a})   F.leaky_relu({a}, 0.2) / 1.0
    F.leaky_relu({a}, {n})   F.leaky_relu({a}, negative_slope=-0.3)   F.elu({a})   F.elu({a}, {n})
    F.elu({a}, alpha=0.5)   torch.celu({a}, {p})   F.celu({a})   F.selu({a})   F.gelu({a})
    F.gelu({a}, approximate='tanh')   F.softplus({a})   F.softplus({a}, {p})   F.softplus({a}, {p}, {p})
    F.softplus({a}, threshold=0.5)   F.hardtanh({a})   F.hardtanh({a}, -{p}, {p})   F.hardtanh({a}, max_val=2)
    F.hardsigmoid({a})   F.hardswish({a})   F.silu({a})   F.mish({a})   F.logsigmoid({a})   torch.tanh({a})
    torch.sigmoid({a})   F.softsign({a})   F.tanhshrink({a})   F.hardshrink({a}, {p})   F.hardshrink({a})
    F.softshrink({a}, {p})   F.threshold({a}, {n}, {n})   F.rrelu({a}, 0.1, 0.4)   F.rrelu({a})   F.softmax({a}, {d})
    {a}.softmax({d})   F.log_softmax({a}, {d})   F.softmin({a}, {d})   F.normalize({a}, dim={d})
    F.normalize({a}, p=1, dim={d})   {a}.clamp(-{p}, {p})   {a}.clamp(min={n})   {a}.clamp(max={n})   {a}.clamp(0)
    {a}.clamp(0, {p})   torch.clip({a}, -1, 1)   {a}.clamp_min({n})   {a}.clamp_max({n})
    torch.clamp({a}, max=1, min=0)   {a} * F.relu6({a} + 3) / 6   F.relu6({a} + 3) / 6 / 1
    {a} * torch.sigmoid(1.702 * {a})   {a} * torch.tanh(F.softplus({a}))   F.relu(F.relu({a}) - 1)
    F.dropout({a}, 0.5, training=False)   F.dropout({a}, 0.5, self.training)   torch.prelu({a}, self.slope)
    F.layer_norm({a}, {a}.shape[-1:])   F.layer_norm({a}, {a}.shape[1:], eps=0.1)   torch.nn.ReLU()({a})
    F.hardtanh({a}, 0, 6)   F.hardtanh({a}, 0.0, {p})   F.selu({a}, inplace=True)   F.celu({a}, 2, True)
    """
)

#: Of two tensors {a} and {b} of one shape: sums of lists, products, choices.
TWO = _lines(
    """
    {a} + {b}   {a} - {b}   {a} * {b}   {a} / ({b}.abs() + 1)   torch.add({a}, {b}, alpha={n})
    torch.sub({a}, {b}, alpha=0.5)   torch.rsub({a}, {b}, alpha=2)   torch.maximum({a}, {b})   torch.min({a}, {b})
    sum([{a}, {b}])   sum([{a} / ({b}.abs() + 1)])   sum(F.relu(t) for t in ({a}, {b}, {a}))   {a} - {b} + 0
    sum([{a}, {b}]) / 2   sum(t * i for i, t in enumerate([{a}, {b}]))   torch.stack([{a}, {b}]).sum(0)
    torch.stack([{a}, {b}], 1).mean(1)   torch.stack([{a}, {b}], dim=-1).amax(-1)   torch.lerp({a}, {b}, 0.3)
    torch.addcmul({a}, {a}, {b}, value=0.5)   torch.addcmul({a}, {b}, {b})   torch.where({a} > {b}, {a}, {b})
    torch.cat([{a}, {b}], {d})   torch.cat(({a}, {b}, {a}), dim={d})   torch.hypot({a}, {b})   {b} - 1 * {a}
    torch.addcdiv({a}, {b}, {b}.abs() + 1, value=2)   ({a} + {b}) / 1 + {a} * 1   ({a} + 2.0) / 1.0 - {b} * 1
    {a} * {b}.mean({d}, keepdim=True)   {b}.mean({d}, True) + {a}   {a} - {b}.amax({d}, keepdim=True)
    {a} * {b}.sigmoid() + {b} * (1 - {b}.sigmoid())   torch.cat([{a}] * 2, {d})   ({a} > {b}) * 1.0
    """
)

#: In-place operators on `y`, which is {a} or made of it.
IN_PLACE = _lines(
    """
    y += 1   y *= {n}   y -= {b}   y /= 2   y.relu_()   F.relu(y, inplace=True)   F.relu_(y)   y.mul_({b})
    y.add_({b}, alpha=2)   y.sub_({n})   y.div_({n})   y.neg_()   y.sigmoid_()   y.clamp_(-1, {p})   y.abs_()
    y.clamp_(min=0)   F.leaky_relu(y, 0.3, True)   F.elu(y, 0.5, inplace=True)   y.tanh_()   y.copy_({b})   y[:, 0] = 0
    y[:, :1] *= 2   y[:, -1] += 1   y[..., :2] = {b}[..., :2]   y[:, 0].mul_(3)   y[..., -1] = {n}   y.zero_()
    y.fill_({n})   y.exp_().log_()   F.hardswish(y, inplace=True)   F.silu(y, inplace=True)
    F.hardtanh(y, -1, {p}, inplace=True)   y.masked_fill_(y < 0, {n})   y.chunk(2, 1)[0].relu_()   y.pow_(2)
    y.view(y.shape[0], -1).mul_({n})   y.transpose(1, -1).add_(1)   y.select(1, 0).neg_()   y.narrow(-1, 0, 1).fill_(1)
    z = y; z += 1; y = y + z   z = y[:, :1]; y += 1; y = y * z   y.unsqueeze(1).relu_()   y.flatten(1).sub_(1)
    """
)

#: Views, parts, reductions: negative places and axes.
MOVED = _lines(
    """
    {a}[:, :-1]   {a}[:, 1:]   {a}[:, -2:]   {a}[:, ::2]   {a}[..., ::2]   {a}[..., -3:-1]   {a}[:, [0, -1]]
    {a}[:, 0]   {a}[:, -1]   {a}[..., -1]   {a}[..., 0]   {a}[:, None].squeeze(1)   {a}[:, -1:] + {a}   {a}.flatten(1)
    {a}.flatten(-2)   {a}.flatten(start_dim=1, end_dim=2)   {a}.reshape({a}.shape[0], -1)   {a}.view({a}.size(0), -1)
    {a}.reshape(-1, *{a}.shape[1:])   {a}.transpose(1, -1)   {a}.transpose(-1, -2)   {a}.swapaxes(1, -1)
    {a}.movedim(-1, 1)   torch.moveaxis({a}, 1, -1)   {a}.unsqueeze(-1).squeeze(-1)   {a}.unsqueeze(1).squeeze(1)
    {a}.unsqueeze(-2).flatten(1)   {a}.chunk(2, {d})[0]   {a}.chunk(2, dim={d})[1]   {a}.chunk(3, {d})[-1]
    {a}.split(2, {d})[-1]   torch.split({a}, [1, {a}.shape[1] - 1], 1)[1]   {a}.unbind({d})[-1]
    torch.stack({a}.unbind({d}), {d})   {a}.narrow({d}, 0, 2)   {a}.roll(1, {d})   torch.roll({a}, -1, {d})
    {a}.flip({d})   torch.flip({a}, [{d}])   {a}.tile(2)   {a}.repeat_interleave(2, {d})   {a}.select({d}, -1)
    {a}.mean({d})   {a}.mean({d}, keepdim=True)   {a}.sum({d})   {a}.sum({d}, keepdim=True) / 3   {a}.amax({d})
    {a}.amin({d}, keepdim=True)   {a}.max({d})[0]   {a}.min({d}, keepdim=True).values   {a}.max({d}).values * 1
    {a}.var({d}, keepdim=True)   {a}.std({d})   {a}.var({d}, unbiased=False)   {a}.std({d}, correction=0)
    {a}.norm(dim={d})   {a}.norm(p=1, dim={d}, keepdim=True)   torch.linalg.vector_norm({a}, dim={d})
    {a}.expand(-1, *{a}.shape[1:])   F.glu({a}, {d})   {a}.index_select({d}, torch.tensor([1, 0]))
    {a}.mean(1, True) * {a}   {a}.sum({d}).unsqueeze({d}) - {a}   torch.logsumexp({a}, {d})   {a}.cumsum({d})
    {a}.diff(dim={d})   {a}.prod({d})   torch.gather({a}, {d}, torch.zeros_like({a}, dtype=torch.long))
    {a}.sort({d})[0]   {a}.topk(2, {d})[0]   torch.tensor_split({a}, 2, {d})[0]
    {a}.unflatten(1, (-1, 1)).flatten(1, 2)   {a}.argmax({d}).float()
    """
)

#: Of maps [B, C, H, W]: layers and what only maps have.
MAPS = _lines(
    """
    self.conv({a})   self.bn(self.conv({a}))   self.act(self.bn(self.conv({a})))   sum(m({a}) for m in self.convs)
    sum(F.relu(m({a})) for m in self.convs)   sum([m({a}) for m in self.convs]) / len(self.convs)   self.bn({a})
    F.conv2d({a}, self.conv.weight, padding=1)   F.conv2d({a}, self.conv.weight, self.conv.bias, padding='same')
    F.conv2d({a}, self.conv.weight * 2, stride=2)   F.max_pool2d({a}, 2)   F.max_pool2d({a}, 3, 2, 1)
    F.max_pool2d({a}, (2, 1), padding=(1, 0))   F.max_pool2d({a}, 2, ceil_mode=True)   F.max_pool2d({a}, 2, dilation=2)
    F.avg_pool2d({a}, 2)   F.avg_pool2d({a}, 3, 1, 1)   F.avg_pool2d({a}, 3, 1, 1, count_include_pad=False)
    F.avg_pool2d({a}, 2, divisor_override=3)   F.avg_pool2d({a}, 3, 2, ceil_mode=True)
    F.avg_pool2d({a}, {a}.shape[-2:])   F.avg_pool2d({a}, 3, 2, 1, ceil_mode=True)
    F.avg_pool2d({a}, 3, 2, 1, True, False)   F.lp_pool2d({a}.abs(), 2, 2)   F.adaptive_avg_pool2d({a}, 1)
    F.adaptive_avg_pool2d({a}, 1).flatten(1)   F.adaptive_avg_pool2d({a}, (2, None))   F.adaptive_avg_pool2d({a}, 3)
    F.adaptive_max_pool2d({a}, 2)   F.adaptive_max_pool2d({a}, 1)   {a}.mean((2, 3))   {a}.mean([-1, -2])
    {a}.mean((-2, -1), keepdim=True) * {a}   {a}.amax((2, 3))   {a}.var((2, 3), keepdim=True)
    F.interpolate({a}, scale_factor=2)   F.interpolate({a}, scale_factor=2, mode='bilinear')
    F.interpolate({a}, size=(5, 7))   F.interpolate({a}, scale_factor=1.7)
    F.interpolate({a}, scale_factor=1.7, mode='bilinear')   F.upsample({a}, scale_factor=2)
    F.interpolate({a}, size=5, mode='bilinear', align_corners=True)   F.interpolate({a}, scale_factor=0.5, mode='area')
    F.interpolate({a}, scale_factor=0.6, mode='bilinear')   F.interpolate({a}, scale_factor=1.3, mode='bicubic')
    F.interpolate({a}, scale_factor=1.7, recompute_scale_factor=True)
    F.interpolate({a}, size=9, mode='nearest-exact')
    F.interpolate({a}, scale_factor=1.5, mode='bilinear', align_corners=True)
    F.interpolate({a}, size=3, mode='bicubic')   F.interpolate({a}, scale_factor=0.5, mode='bilinear', antialias=True)
    F.interpolate({a}, scale_factor=(2, 1))   F.pad({a}, (1, 1))   F.pad({a}, (1, 0, 0, 2), value={n})
    F.pad({a}, (1, 1, 1, 1), mode='reflect')   F.pad({a}, (-1, 1))   F.pad({a}, (1, 1, 1, 1), 'replicate')
    F.pad({a}, (1, 1, 1, 1), mode='circular')   F.pad({a}, (0, 0, 0, 0, 1, 1))   F.pixel_shuffle({a}, 2)
    F.pixel_unshuffle({a}, 2)   F.channel_shuffle({a}, 2)   {a}.permute(0, 2, 3, 1)   {a}.permute(0, -2, -1, 1)
    {a}.permute(0, 2, 3, 1).permute(0, 3, 1, 2)   F.group_norm({a}, 2)   F.instance_norm({a})
    F.group_norm({a}, 1, eps=0.1)   F.local_response_norm({a}, 2)   {a}[:, :, 1:-1, ::2]   {a}[:, :, -1]
    self.act({a})   {a} * self.scale.view(1, -1, 1, 1)   {a} + self.scale[:, None, None]
    {a} * self.scale[None, :, None, None]   {a}.flatten(2).transpose(1, 2)   {a}.flatten(2).permute(0, 2, 1)
    {a} @ {a}.transpose(-1, -2)   F.unfold({a}, 2)   torch.einsum('bchw,bchw->bhw', {a}, {a})
    torch.einsum('bchw,bdhw->bcd', {a}, {a})   {a} / {a}.norm(dim=1, keepdim=True)
    {a}.view({a}.shape[0], 2, -1, *{a}.shape[2:]).transpose(1, 2).reshape({a}.shape)   {a}.repeat(1, 2, 1, 1)
    torch.cat([{a}[..., ::2, ::2], {a}[..., 1::2, 1::2]], 1)   {a}.rot90(1, (2, 3))
    F.fold(F.unfold({a}, 2), {a}.shape[-2:], 2)
    """
)

#: Of tokens [B, L, C].
TOKENS = _lines(
    """
    {a}[:, 0]   {a}.mean(1)   {a} @ {a}.transpose(1, 2)   torch.bmm({a}, {a}.mT)   {a}.transpose(1, 2)   {a}.mT
    F.scaled_dot_product_attention({a}, {a}, {a})   F.scaled_dot_product_attention({a}, {a} * 2, {a}, scale=0.3)
    torch.einsum('bij,bkj->bik', {a}, {a})   torch.matmul({a}, {a}.permute(0, 2, 1)) / 4
    ({a} @ {a}.mT).softmax(-1) @ {a}   torch.cat([{a}[:, :1], {a}], dim=1)
    torch.cat([self.token.expand({a}.shape[0], -1, {a}.shape[-1]), {a}], 1)
    F.linear({a}, self.token.new_ones(5, {a}.shape[-1]) * 0.1)
    torch.baddbmm({a} @ {a}.mT, {a}, {a}.mT, beta=0.5, alpha=2)
    F.scaled_dot_product_attention({a}, {a}, {a}, is_causal=True)   torch.tril({a} @ {a}.mT)   F.avg_pool1d({a}, 2)
    F.adaptive_avg_pool1d({a}, 1).squeeze(-1)   F.max_pool1d({a}, 2)   F.interpolate({a}, scale_factor=2)
    {a}.squeeze()
    """
)

#: Of vectors [B, C].
VECTORS = _lines(
    """
    {a}.unsqueeze(-1)   {a}[:, None] * {a}[:, :, None]   {a} @ {a}.new_ones({a}.shape[1], 3)   {a}[:, :, None, None]
    F.linear({a}, {a}.new_ones(4, {a}.shape[1]) * 0.1)   {a}.view(-1, {a}.shape[1], 1, 1)
    torch.outer({a}[0], {a}[0])[None]   torch.addmm(self.scale, {a}, {a}.new_ones({a}.shape[1], 4), alpha=0.5)
    {a}.sum(-1, keepdim=True)   {a}.squeeze(-1)
    """
)
