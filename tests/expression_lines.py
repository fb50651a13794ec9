"""Lines of code as users write them, for networks drawn at random: templates, two spaces or more apart.

`!` before one: it has no translation to ONNX, so what else its network does is held against the captured graph alone.
"""

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
    {a}.erf()   torch.floor({a} * 2 + 0.3)   torch.sign({a} + 0.01)   {a}.expm1()   torch.log1p({a}.abs())   {a}.trunc()
    {a}.frac() * 0   torch.ceil({a} + 0.4)   torch.exp2({a} * 0.1)   torch.where({a} > 0, {a}, {a} * {n})
    torch.where({a} > {n}, {n}, {a})   {a}.masked_fill({a} < 0, {n})   !{a}.nan_to_num()   !{a} % 2   !{a} // 1
    torch.atan({a})   (({a} > 0) & ({a} < {n})).float()   (({a} > 0) | ({a} < -1)) * {a}   ({a} > 0).int() * {n}
    ({a} > {n}).sum(-1, keepdim=True) * 0.1   torch.where(({a} > 0).any(-1, True), {a}, {n} * {a})
    {a}.masked_fill({a} > {n}, float('-inf')).softmax(-1) * 0 + 1   torch.logical_not({a} > 0).to({a}) + {a}
    !torch.remainder({a}, 3)   torch.lerp({a}, x0, 0)
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

#: Of any tensor {a}: constants of other types, buffers and Python's own numbers beside them, comparisons, conversions.
MIXED = _lines(
    """
    {a} * self.count   self.count * {a}   {a} + self.count   {a} / self.count   {a} - self.factor   {a} * self.factor
    {a} * self.gain   self.gain - {a}   {a} + self.gain   {a} * self.flag   {a} + self.flag   {a} * self.number
    self.number / ({a}.abs() + 1)   {a} ** self.power   {a} * torch.tensor(2)   {a} / torch.tensor(4)
    {a} + torch.tensor({n}, dtype=torch.float64)   {a} * torch.tensor([{n}])   {a} * torch.tensor([3])
    {a} + torch.arange({a}.shape[-1])   {a} * torch.linspace(0, 1, {a}.shape[-1])   {a} * torch.full((1,), {n})
    {a} + torch.zeros({a}.shape[-1])   !{a} - torch.ones_like({a})   !{a} * torch.full_like({a}, {n})
    !{a} + torch.zeros_like({a})   {a}.new_full((1,), {n}) * {a}   {a} + {a}.new_tensor([{n}])   !{a}.double().float()
    !{a}.to(torch.float64).mean({d}).float()   {a}.mean({d}, dtype=torch.float32)   !{a}.sum({d}, dtype=torch.float64)
    {a}.softmax({d}, dtype=torch.float32)   F.softmax({a}.float(), dim={d}).type_as({a})   !{a}.half().float()
    {a}.round().float()   ({a} * 4).round() / 4   torch.round({a}, decimals=1)   !{a}.int() * 0.5
    !{a}.long().float()   {a}.bool() * {a}   torch.gt({a}, {n}) * {a}   {a}.lt(0) * {n}   ({a} != 0).float()
    ~({a} > 0) * {a}   torch.where({a} > 0, 1.0, {n})   torch.where({a} > 0, {a}, torch.zeros_like({a}))
    torch.where(self.flag, {a}, 0)   torch.where(self.flag, {a}, -{a})   {a}.where({a} > {n}, torch.tensor({n}))
    torch.heaviside({a}, {a})   {a}.masked_fill(self.flag, {n})
    {a}.masked_fill(~self.flag, float('-inf')).softmax({d})   {a} * math.pi   {a} / math.sqrt({a}.shape[-1])
    {a} * {a}.shape[1]   {a}.shape[-1] - {a}   {a} * float(self.number)   {a} / self.gain.sum()   {a} * self.gain.max()
    {a} * self.gain[0]   !{a} * self.gain[-1].item()   !{a} * int(self.count)   {a} * len(self.convs)
    {a} * bool({a}.dim())   {a}.mul(2).add(1).sub_(1)   {a}.add(1, alpha=2)   torch.add({n}, {a})   torch.sub({n}, {a})
    {n} + {a} * self.number - self.number   {a}.lerp(self.factor, 0.25)   torch.clamp({a}, self.factor - 5, self.factor)
    {a}.clamp(max=self.gain.max())   torch.minimum({a}, self.factor)   torch.maximum({a}, torch.tensor({n}))
    {a}.maximum(torch.zeros(()))   torch.pow({a}, 2.0)   torch.pow({a}.abs() + 0.5, 0.3)
    !torch.float_power({a}, 2).float()   !2 ** ({a} * 0.1)   {a}.square().sqrt()   torch.special.expit({a})
    torch.special.log1p({a}.abs())   !torch.sinc({a} * 0.1)   !torch.logit(torch.sigmoid({a}), eps=0.01)
    torch.sigmoid({a}) if {a}.dim() > 2 else {a} * 2   torch.relu({a}) if self.training else {a} * 0.5
    torch.add({a}, 1, out=torch.empty_like({a}))   torch.mul({a}, {n}, out=torch.empty_like({a}))
    torch.exp({a} * 0.1, out={a}.clone())
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
    torch.add({a}, {b}, out=torch.empty_like({a}))   torch.maximum({a}, {b}, out={b}.clone())   {a}.add({b}).mul({b})
    torch.cat([{a}, {b}], {d}, out=None)   torch.concat([{a}, {b}], dim={d})   torch.hstack([{a}, {b}])
    torch.dstack([{a}[:, None], {b}[:, None]]).sum(1)   torch.stack([{a}, {b}], -1).flatten(-2)   ({a} == {b}).float()
    torch.stack(({a}, {b}), 1).max(1)[0]   torch.stack([{a}, {b}]).mean(dim=0)   torch.where({a} > 0, {b}, {a})
    torch.where({a} > {b}, {a}, {n})   ({a} > 0) & ({b} > 0)   {a} * ({b} > 0)   torch.fmax({a}, {b})
    {a}.expand_as({b}) + {b}   {a} + {b}[:, :1]   {a} * {b}[..., -1:]   {a}[:, :1] - {b}   {a} / ({b}[..., :1] ** 2 + 1)
    !torch.broadcast_to({a}[..., :1], {b}.shape) * {b}   !torch.einsum('...i,...i->...', {a}, {b})
    !torch.einsum('b...,b...->b...', {a}, {b})   !{a}.lerp({b}, {b}.sigmoid())   !F.cosine_similarity({a}, {b}, dim={d})
    !F.pairwise_distance({a}, {b})   !F.mse_loss({a}, {b}, reduction='none')   !F.l1_loss({a}, {b}, reduction='none')
    !F.huber_loss({a}, {b}, reduction='none')   !torch.atan2({a}, {b})   !torch.fmod({a}, {b}.abs() + 1)
    torch.dist({a}, {b})   torch.sum(torch.stack([{a}, {b}, {a}]), 0)   torch.cat([{a}.relu(), (-{b}).relu()], dim=1)
    {a} ** 2 - 2 * {a} * {b}   sum([t.mean({d}, keepdim=True) for t in [{a}, {b}]])
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
    torch.add(y, {b}, out=y)   torch.mul(y, 2, out=y)   torch.relu(y, out=y) if 0 else torch.neg(y, out=y)
    z = torch.empty_like(y); torch.sub(y, {b}, out=z); y = z * y   z = y.clone(); torch.add(y, 1, out=z)
    z = y; torch.mul({b}, {n}, out=z); y = y + z   torch.sigmoid({b}, out=y)   torch.clamp(y, 0, {p}, out=y)
    z, w = y.chunk(2, {d}); y = z * w.sigmoid()   z, w = y.chunk(2, {d}); y = torch.cat([w, z], {d})
    z, *w = y.split(1, {d}); y = torch.cat([*w, z], {d})   z = y.unbind({d}); y = z[0] - z[-1]
    z = y.unbind({d}); y = sum(z)   z = y.unbind({d}); y = torch.stack(z[::-1], {d})
    z = y.unbind(1); y = torch.stack([t * i for i, t in enumerate(z)], 1)
    z, w = y.split([1, y.shape[1] - 1], 1); z.mul_(2); y = y + w.mean(1, keepdim=True)
    z = list(y.chunk(2, 1)); y = z.pop() * 2   z = y.split(2, {d})[0]; z += 1
    z = y.chunk(2, 1); y = torch.cat((F.relu(z[0]), z[1]), 1)   y[:, ::2] = {b}[:, ::2]   y[:, 1:] -= y[:, :1]
    y[:, 1:] += {b}[:, :-1]   y[..., 0], y[..., 1] = {b}[..., 1], {b}[..., 0]   y[:, [0]] = {n}   y[:] = {b}
    y[...] = {n}   y[:, 0] = y[:, 1]   y[:, -1:] = y.mean(1, keepdim=True)   y[y < 0] = {n}   !y[0] = 1
    y.transpose(-1, -2)[..., 0] = 0   y.permute(0, *range(y.dim() - 1, 0, -1)).mul_(2)   y.T.shape; y = y * y.ndim
    y.add_(y)   y.mul_(y)   y.sub_(y.mean({d}, keepdim=True))   y.div_(y.abs().amax({d}, keepdim=True) + 1)   y **= 2
    y.clamp_min_(0).clamp_max_({p})   y.lerp_({b}, 0.3)   y.addcmul_({b}, {b}, value=0.1)
    y.addcdiv_({b}, {b}.abs() + 1)   y.square_().add_(1).sqrt_()   y.reciprocal_() if 0 else y.add_(3)
    F.dropout(y, 0.3, False, True)   F.celu_(y, {p})   y.floor_()   y.rsqrt_() if 0 else y.exp_()
    F.threshold(y, {n}, {n}, True)   F.relu6(y, True)   F.selu_(y)   F.rrelu(y, inplace=True)   y.swapaxes_(1, -1)
    y.unsqueeze_(1); y.squeeze_(1)   y.t().shape if y.dim() == 2 else y.transpose_(1, 2)   y -= 1; y = 1 - y
    y = y if y.shape[1] > 2 else -y   y = [y, {b}]; y[0] = y[0] + 1; y = y[0] * y[1]
    y = dict(p=y, q={b}); y = y['p'] - y['q']   for t in self.convs: y = y * {n} + 1   y = y.view(y.shape); y += {b}
    y = y.reshape(y.shape); y.relu_(); y = y + {a}   y = y.contiguous(); y.mul_(3); y = y - {a}
    y = y.detach(); y += 1; y = y + {a}   y = y.expand(y.shape); y = y * 2   y = y[:]; y *= 2; y = y + {a}
    !y = y.data; y.add_(1); y = y * {a}   y = y.to(torch.float32); y -= 2; y = y + {a}
    """
)

#: Views, parts, reductions: negative places and axes.
MOVED = _lines(
    """
    {a}[:, :-1]   {a}[:, 1:]   {a}[:, -2:]   {a}[:, ::2]   {a}[..., ::2]   {a}[..., -3:-1]   {a}[:, [0, -1]]   {a}[:, 0]
    {a}[:, -1]   {a}[..., -1]   {a}[..., 0]   {a}[:, None].squeeze(1)   {a}[:, -1:] + {a}   {a}.flatten(1)
    {a}.flatten(-2)   {a}.flatten(start_dim=1, end_dim=2)   {a}.reshape({a}.shape[0], -1)   {a}.view({a}.size(0), -1)
    {a}.reshape(-1, *{a}.shape[1:])   {a}.transpose(1, -1)   {a}.transpose(-1, -2)   {a}.swapaxes(1, -1)
    {a}.movedim(-1, 1)   torch.moveaxis({a}, 1, -1)   {a}.unsqueeze(-1).squeeze(-1)   {a}.unsqueeze(1).squeeze(1)
    {a}.unsqueeze(-2).flatten(1)   {a}.chunk(2, {d})[0]   {a}.chunk(2, dim={d})[1]   {a}.chunk(3, {d})[-1]
    {a}.split(2, {d})[-1]   torch.split({a}, [1, {a}.shape[1] - 1], 1)[1]   {a}.unbind({d})[-1]
    torch.stack({a}.unbind({d}), {d})   {a}.narrow({d}, 0, 2)   {a}.roll(1, {d})   torch.roll({a}, -1, {d})
    {a}.flip({d})   torch.flip({a}, [{d}])   {a}.tile(2)   !{a}.repeat_interleave(2, {d})   {a}.select({d}, -1)
    {a}.mean({d})   {a}.mean({d}, keepdim=True)   {a}.sum({d})   {a}.sum({d}, keepdim=True) / 3   {a}.amax({d})
    {a}.amin({d}, keepdim=True)   {a}.max({d})[0]   {a}.min({d}, keepdim=True).values   {a}.max({d}).values * 1
    {a}.var({d}, keepdim=True)   {a}.std({d})   {a}.var({d}, unbiased=False)   {a}.std({d}, correction=0)
    {a}.norm(dim={d})   {a}.norm(p=1, dim={d}, keepdim=True)   torch.linalg.vector_norm({a}, dim={d})
    {a}.expand(-1, *{a}.shape[1:])   F.glu({a}, {d})   {a}.index_select({d}, torch.tensor([1, 0]))
    {a}.mean(1, True) * {a}   {a}.sum({d}).unsqueeze({d}) - {a}   torch.logsumexp({a}, {d})   !{a}.cumsum({d})
    {a}.diff(dim={d})   !{a}.prod({d})   !torch.gather({a}, {d}, torch.zeros_like({a}, dtype=torch.long))
    !{a}.sort({d})[0]   !{a}.topk(2, {d})[0]   torch.tensor_split({a}, 2, {d})[0]
    {a}.unflatten(1, (-1, 1)).flatten(1, 2)   !{a}.argmax({d}).float()   {a}[..., None].squeeze(-1)
    {a}[:, None, ..., 0]   {a}[:, torch.tensor([1, 0])]   {a}[:, -1, None]   {a}[:, (0, 1)]   {a}[:, slice(0, 2)]
    {a}[..., [1, 0]]   {a}[:, range(1)]   !{a}.take_along_dim(torch.zeros_like({a}, dtype=torch.long), {d})
    {a}[:, self.places]   {a}.index_select(-1, self.places)   torch.index_select({a}, 1, self.places.flip(0))
    {a}[:, :{a}.shape[1] // 2]   {a}[:, {a}.shape[1] // 2:]   {a}[..., : -({a}.shape[-1] // 2)]
    {a}[:, 0:1].expand_as({a})   {a}.flip((1,)).flip(-1)   torch.flip({a}, (-1, 1))   {a}.roll((1, -1), (1, -1))
    {a}.roll(-3, -1)   !torch.fliplr({a})   {a}.repeat(1, *[2] * ({a}.dim() - 1))
    {a}.tile(1, 2, *[1] * ({a}.dim() - 2))   !torch.repeat_interleave({a}, 2, dim=-1)   torch.split({a}, 1, dim={d})[0]
    torch.chunk({a}, 2, -1)[0] - torch.chunk({a}, 2, -1)[1]   {a}.hsplit(2)[0]   torch.unbind({a}, {d})[0]
    {a}.tensor_split((1, 2), 1)[1]   {a}.swapdims(-1, 1)   {a}.movedim((1, -1), (-1, 1))
    torch.permute({a}, (0, *range({a}.dim() - 1, 0, -1)))   {a}.flatten(1).unflatten(1, {a}.shape[1:])
    {a}.ravel()[None]   {a}.mean(tuple(range(1, {a}.dim())), keepdim=True)   {a}.sum([-1], True)
    {a}.mean(-1).unsqueeze(-1) + {a}   torch.amax({a}, dim=({d},), keepdim=True)   torch.mean({a}, {d}, True) - {a}
    torch.std_mean({a}, {d})[0]   torch.var_mean({a}, {d}, keepdim=True)[1]   !torch.aminmax({a}, dim={d}).max
    {a}.norm(2, {d})   {a}.norm(p='fro', dim={d})   {a}.norm(3, {d})   torch.linalg.norm({a}, dim={d})
    torch.linalg.vector_norm({a}, 1, {d}, True)   !{a}.median({d})[0]   {a}.norm(float('inf'), {d})
    F.normalize({a}, 2.0, {d}, 0.1)   {a}.std({d}, False, True)   !{a}.nanmean({d})
    !torch.count_nonzero({a}, {d}).float()   !{a}.any({d}).float()   !{a}.cummax({d})[0]   !{a}.logcumsumexp({d})
    F.pad({a}, (0, 1))   F.pad({a}, (1, 0), value={n})   {a}.unfold(-1, 2, 1)   {a}.unfold(1, 2, 2)
    !{a}.diagonal(dim1=-2, dim2=-1)
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
    !F.avg_pool2d({a}, 2, divisor_override=3)   F.avg_pool2d({a}, 3, 2, ceil_mode=True)
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
    F.interpolate({a}, scale_factor=1.7, recompute_scale_factor=True)   F.interpolate({a}, size=9, mode='nearest-exact')
    F.interpolate({a}, scale_factor=1.5, mode='bilinear', align_corners=True)
    F.interpolate({a}, size=3, mode='bicubic')   !F.interpolate({a}, scale_factor=0.5, mode='bilinear', antialias=True)
    F.interpolate({a}, scale_factor=(2, 1))   F.pad({a}, (1, 1))   F.pad({a}, (1, 0, 0, 2), value={n})
    F.pad({a}, (1, 1, 1, 1), mode='reflect')   F.pad({a}, (-1, 1))   F.pad({a}, (1, 1, 1, 1), 'replicate')
    F.pad({a}, (1, 1, 1, 1), mode='circular')   F.pad({a}, (0, 0, 0, 0, 1, 1))   F.pixel_shuffle({a}, 2)
    F.pixel_unshuffle({a}, 2)   F.channel_shuffle({a}, 2)   {a}.permute(0, 2, 3, 1)   {a}.permute(0, -2, -1, 1)
    {a}.permute(0, 2, 3, 1).permute(0, 3, 1, 2)   F.group_norm({a}, 2)   F.instance_norm({a})
    F.group_norm({a}, 1, eps=0.1)   F.local_response_norm({a}, 2)   {a}[:, :, 1:-1, ::2]   {a}[:, :, -1]   self.act({a})
    {a} * self.scale.view(1, -1, 1, 1)   {a} + self.scale[:, None, None]   {a} * self.scale[None, :, None, None]
    {a}.flatten(2).transpose(1, 2)   {a}.flatten(2).permute(0, 2, 1)   {a} @ {a}.transpose(-1, -2)   F.unfold({a}, 2)
    !torch.einsum('bchw,bchw->bhw', {a}, {a})   torch.einsum('bchw,bdhw->bcd', {a}, {a})
    {a} / {a}.norm(dim=1, keepdim=True)
    {a}.view({a}.shape[0], 2, -1, *{a}.shape[2:]).transpose(1, 2).reshape({a}.shape)   {a}.repeat(1, 2, 1, 1)
    torch.cat([{a}[..., ::2, ::2], {a}[..., 1::2, 1::2]], 1)   !{a}.rot90(1, (2, 3))
    F.fold(F.unfold({a}, 2), {a}.shape[-2:], 2)   torch.einsum('bchw,dc->bdhw', {a}, self.mix)
    !torch.einsum('bchw,c->bchw', {a}, self.scale)   !torch.einsum('bchw,c->bhw', {a}, self.scale)
    torch.einsum('nchw,nchv->ncwv', {a}, {a})   !torch.einsum('bchw->bwhc', {a})   !torch.einsum('bchw->bc', {a})
    torch.einsum('bihw,bjhw->bij', {a}, {a}.softmax(1))   !torch.tensordot({a}, self.mix, dims=([1], [1]))
    F.conv2d({a}, self.conv.weight[:, :, 1:2, 1:2])   F.conv2d({a}, self.conv.weight.flip(-1), None, 1, 1)
    F.conv2d({a}, self.mix[:, :, None, None], self.scale)
    F.conv2d({a}, self.scale.view(-1, 1, 1, 1), groups=len(self.scale))
    F.conv2d({a}, self.conv.weight, self.conv.bias, (1, 2), (1, 0), 1, 1)
    F.conv2d({a}, self.conv.weight, dilation=2, padding=2)   F.conv_transpose2d({a}, self.conv.weight, stride=2)
    F.conv_transpose2d({a}, self.conv.weight, self.conv.bias, 2, 1, 1)   self.conv({a}) + self.conv({a} * 2)
    self.conv(self.conv({a}))   self.act({a}) + self.act(-{a})   self.conv({a}) * 1 + {a}   self.bn(self.conv({a}) + 0)
    self.bn({a}) - self.bn(self.bn({a}))   self.bn(F.relu({a}))   self.bn(self.conv({a}) * 2)
    F.batch_norm({a}, self.bn.running_mean, self.bn.running_var)
    F.batch_norm({a}, self.bn.running_mean, self.bn.running_var, eps=0.1)
    {a} + self.table[:, :, : {a}.shape[2], : {a}.shape[3]]   {a} * self.scale.view(1, -1, 1, 1) + self.slope
    {a}.mul(self.scale.reshape(-1, 1, 1)).sub(self.mix[0].view(1, -1, 1, 1)) / 2   F.prelu({a}, self.scale)
    ({a} - {a}.mean((1, 2, 3), keepdim=True)) / ({a}.std((1, 2, 3), keepdim=True) + 0.1)
    F.layer_norm({a}, {a}.shape[1:])
    F.layer_norm({a}.permute(0, 2, 3, 1), ({a}.shape[1],), self.scale).permute(0, 3, 1, 2)
    F.instance_norm({a}, eps=0.1)   F.rms_norm({a}, {a}.shape[-1:], eps=0.1)
    F.group_norm({a}, 2, self.scale, self.mix[0])   F.softmax({a}.flatten(2), -1)
    {a} * torch.sigmoid({a}.mean((2, 3), keepdim=True))   {a} * F.hardsigmoid(F.adaptive_avg_pool2d({a}, 1))
    {a} * F.adaptive_avg_pool2d({a}, 1) + F.adaptive_max_pool2d({a}, 1)   {a}.max(dim=1, keepdim=True)[0] * {a}
    F.max_pool2d({a}, 3, 1, 1) - {a}   F.interpolate(F.avg_pool2d({a}, 2), {a}.shape[-2:]) + {a}
    -F.max_pool2d(-{a}, 2)   F.interpolate({a}, {a}.shape[2:], mode='bilinear')   F.interpolate({a}[:, :2], size=[6, 6])
    nn.Upsample(scale_factor=2)({a})   F.max_pool2d({a}, kernel_size=(3, 2), stride=(1, 2), padding=(1, 1))
    F.avg_pool2d({a}, (2, 3), (2, 1), (1, 0), False, True)   F.avg_pool2d({a}, 2, padding=1)
    !F.avg_pool2d({a}, 3, stride=2, padding=1, divisor_override=2)   F.pad({a}, [0, 1, 0, 1])
    F.pad({a}, (2, 1, 0, 3), 'constant', 0)   F.pad(F.pad({a}, (1, 1)), (0, 0, 1, 1))
    F.conv2d(F.pad({a}, (1, 2, 0, 1)), self.conv.weight)
    !torch.cat([{a}, {a}.new_ones({a}.shape[0], 1, *{a}.shape[2:])], 1)   torch.cat([{a}, {a}.mean(1, True)], 1)
    torch.cat([{a}, self.table[..., : {a}.shape[2], : {a}.shape[3]].expand({a}.shape[0], -1, -1, -1)], 1)
    {a}.flatten(1).softmax(1).view_as({a})   {a}.view({a}.shape[0], -1).view({a}.shape)
    {a}.reshape({a}.shape[0], {a}.shape[1], -1).mean(-1)   nn.Flatten()({a})   nn.Flatten(2)({a})
    nn.Identity()({a}) * 2   nn.Softmax(1)({a})   nn.Softmax2d()({a})   nn.ZeroPad2d(1)({a})
    nn.ReflectionPad2d(1)({a})   nn.PixelShuffle(2)({a})   nn.ChannelShuffle(2)({a})   nn.AdaptiveAvgPool2d((1, 1))({a})
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
    F.scaled_dot_product_attention({a}, {a}, {a}, is_causal=True)   !torch.tril({a} @ {a}.mT)   F.avg_pool1d({a}, 2)
    F.adaptive_avg_pool1d({a}, 1).squeeze(-1)   F.max_pool1d({a}, 2)   F.interpolate({a}, scale_factor=2)
    {a}.squeeze()
    """
)

#: Of vectors [B, C].
VECTORS = _lines(
    """
    {a}.unsqueeze(-1)   {a}[:, None] * {a}[:, :, None]   {a} @ {a}.new_ones({a}.shape[1], 3)   {a}[:, :, None, None]
    F.linear({a}, {a}.new_ones(4, {a}.shape[1]) * 0.1)   {a}.view(-1, {a}.shape[1], 1, 1)
    torch.outer({a}[0], {a}[0])[None]   !torch.addmm(self.scale, {a}, {a}.new_ones({a}.shape[1], 4), alpha=0.5)
    {a}.sum(-1, keepdim=True)   {a}.squeeze(-1)
    """
)
