"""Small networks, one per operator that a target treats in its own way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.one_line_net import Net

C = nn.Conv2d
relu = torch.relu


def pool(x: Tensor) -> Tensor:
    """The mean over height and width, [B, C, 1, 1]."""
    return F.adaptive_avg_pool2d(x, 1)


def _residual(n: Any, x: Tensor) -> Tensor:
    x = relu(n.a(x))
    x = relu(x + n.b(F.max_pool2d(x, 3, 1, 1)))  # of x itself, both would be one convolution
    x = relu(n.down(x) + n.c(F.max_pool2d(x, 3, 1, 1)))
    logits: Tensor = n.fc(x.mean((2, 3)))
    return logits


def _split(n: Any, x: Tensor) -> Tensor:
    kept, changed = relu(n.a(x)).chunk(2, 1)
    result: Tensor = n.c(F.channel_shuffle(torch.cat([kept, relu(n.b(changed))], 1), 2))
    return result


def _borders(n: Any, x: Tensor) -> Tensor:
    """Zeros in front of convolutions, as networks ported from TensorFlow write them."""
    x = n.a(F.pad(x, (0, 1, 0, 1)))
    x = relu(n.d(F.pad(x, (1, 2, 0, 1))))
    result: Tensor = n.c(F.pad(relu(n.e(F.pad(x, (1, 1, 1, 1)))), (0, 1)))
    return result


def _mixed_concat(n: Any, x: Tensor) -> Tensor:
    result: Tensor = n.c(torch.cat([n.a(x), relu(n.b(x))], 1))
    return result


def _shortcut_a(n: Any, x: Tensor) -> Tensor:
    """He et al.'s option A: every second position, padded with channels of zeros."""
    x = relu(n.a(x))
    short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
    result: Tensor = n.c(relu(short + n.b(x)))
    return result


def _squeeze_excite(n: Any, x: Tensor) -> Tensor:
    x = relu(n.a(x))
    result: Tensor = n.b(x * torch.sigmoid(n.e2(relu(n.e1(pool(x))))))
    return result


def _dense(n: Any, x: Tensor) -> Tensor:
    x = relu(n.a(x))
    y = relu(n.b(x))
    z = relu(n.d(torch.cat([x, y], 1)))
    result: Tensor = n.c(torch.cat([x, y, z], 1))
    return result


def _attention(n: Any, x: Tensor) -> Tensor:
    t = n.a(x).flatten(2).transpose(1, 2)
    weights = torch.softmax(t @ n.k(t).transpose(1, 2), -1)
    result: Tensor = n.o(weights @ n.v(t)).mean(1)
    return result


def _over_tokens(activation: Callable[[Tensor], Tensor]) -> Net:
    """A linear layer and an activation of every token, of which the mean is read in float."""
    return Net(
        lambda n, x: n.o(activation(n.l(n.a(x).flatten(2).transpose(1, 2))).mean(1)),
        a=C(3, 16, 4, stride=4),
        l=nn.Linear(16, 16),
        o=nn.Linear(16, 10),
    )


def _relu_of_scores(n: Any, x: Tensor) -> Tensor:
    """Attention with a ReLU and a normalisation in place of the softmax."""
    tokens = n.k(n.a(x).flatten(2).transpose(1, 2))
    scores = relu(tokens @ tokens.transpose(1, 2)).mean(1)
    result: Tensor = n.o((F.layer_norm(scores, scores.shape[1:])[:, :, None] * tokens).mean(1))
    return result


def _scores(n: Any, x: Tensor) -> Tensor:
    """Query, key and value of one layer, a number on the first, and no softmax."""
    tokens = n.qkv(n.a(x).flatten(2).transpose(1, 2))
    query, key, value = tokens.reshape(-1, 9, 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
    mixed = ((query * 0.173) @ key.transpose(-2, -1)) @ value
    result: Tensor = n.p(mixed.transpose(1, 2).flatten(2))
    return result


#: Networks that a runtime executes to the bit as the oracle and the simulation do.
EXACT: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: Net(
        lambda n, x: n.c(relu(n.b(relu(n.a(x))))),
        a=C(3, 16, 3, padding=1),
        b=C(16, 16, 5, stride=2, padding=(1, 2)),
        c=C(16, 4, 1, bias=False),
    ),
    "same_padding": lambda: Net(
        lambda n, x: n.b(relu(n.a(x))), a=C(3, 16, (2, 4), padding="same"), b=C(16, 8, 3, padding="valid")
    ),
    "depthwise": lambda: Net(
        lambda n, x: n.c(F.relu6(n.b(F.relu6(n.a(x))))),
        a=C(3, 16, 3, padding=1),
        b=C(16, 16, 3, padding=1, groups=16),
        c=C(16, 16, 1),
    ),
    "depth_multiplier": lambda: Net(lambda n, x: n.b(relu(n.a(x))), a=C(3, 12, 3, groups=3), b=C(12, 24, 3, groups=12)),
    "grouped": lambda: Net(lambda n, x: n.b(relu(n.a(x))), a=C(3, 16, 3), b=C(16, 32, 3, groups=4)),
    "dilated": lambda: Net(
        lambda n, x: n.b(relu(n.a(x))), a=C(3, 16, 3, dilation=2), b=C(16, 16, 3, dilation=(1, 2), padding=1)
    ),
    "one_channel": lambda: Net(lambda n, x: n.b(relu(n.a(x))), a=C(3, 1, 3), b=C(1, 16, 3)),
    "linear": lambda: Net(
        lambda n, x: n.c(relu(n.b(relu(n.a(x.flatten(1)))))),
        a=nn.Linear(432, 32),
        b=nn.Linear(32, 32, bias=False),
        c=nn.Linear(32, 10),
    ),
    "residual": lambda: Net(
        _residual,
        a=C(3, 16, 3, padding=1),
        b=C(16, 16, 3, padding=1),
        down=C(16, 32, 1, stride=2),
        c=C(16, 32, 3, stride=2, padding=1),
        fc=nn.Linear(32, 10),
    ),
    "shortcut_a": lambda: Net(
        _shortcut_a, a=C(3, 16, 3, padding=1), b=C(16, 32, 3, stride=2, padding=1), c=C(32, 16, 1)
    ),
    "add_broadcast": lambda: Net(lambda n, x: n.b(relu((y := n.a(x)) + pool(y))), a=C(3, 16, 3), b=C(16, 16, 1)),
    "add_input": lambda: Net(lambda n, x: n.b(relu(n.a(x) + x)), a=C(3, 3, 3, padding=1), b=C(3, 16, 3)),
    "squeeze_excite": lambda: Net(_squeeze_excite, a=C(3, 16, 3), e1=C(16, 16, 1), e2=C(16, 16, 1), b=C(16, 16, 1)),
    "multiply": lambda: Net(lambda n, x: n.c(n.a(x) * n.b(x)), a=C(3, 16, 3), b=C(3, 16, 3), c=C(16, 16, 1)),
    "pool_signed": lambda: Net(lambda n, x: n.fc(pool(n.a(x)).flatten(1)), a=C(3, 16, 3), fc=nn.Linear(16, 10)),
    "pool_relu": lambda: Net(lambda n, x: n.b(relu(pool(n.a(x)))), a=C(3, 16, 3), b=C(16, 16, 1)),
    "concat": lambda: Net(
        lambda n, x: n.c(torch.cat([relu(n.a(x)), relu(n.b(x))], 1)),
        a=C(3, 16, 3, padding=1),
        b=C(3, 16, 1),
        c=C(32, 16, 3),
    ),
    "mixed_concat": lambda: Net(_mixed_concat, a=C(3, 16, 3, padding=1), b=C(3, 16, 1), c=C(32, 16, 3)),
    "dense": lambda: Net(
        _dense, a=C(3, 16, 3, padding=1), b=C(16, 16, 3, padding=1), d=C(32, 16, 3, padding=1), c=C(48, 16, 1)
    ),
    "borders": lambda: Net(
        _borders, a=C(3, 16, 3, stride=2), d=C(16, 16, 3, groups=16), e=C(16, 16, 3, padding=(0, 1)), c=C(16, 10, 2)
    ),
    "split_shuffle": lambda: Net(_split, a=C(3, 32, 3), b=C(16, 16, 1), c=C(32, 16, 1)),
    "pad_slice": lambda: Net(lambda n, x: n.b(F.pad(n.a(x), (1, 2, 0, 1))[:, :, 1:-1]), a=C(3, 16, 3), b=C(16, 16, 3)),
    "pad_reflect": lambda: Net(
        lambda n, x: n.b(F.pad(relu(n.a(x)), (1, 1, 1, 1), mode="reflect")), a=C(3, 16, 3), b=C(16, 16, 3)
    ),
    "pad_ones": lambda: Net(
        lambda n, x: n.b(F.pad(relu(n.a(x)), (1, 1, 1, 1), value=1.0)), a=C(3, 16, 3), b=C(16, 16, 3)
    ),
    "max_pool": lambda: Net(lambda n, x: n.b(F.max_pool2d(relu(n.a(x)), 3, 2, 1)), a=C(3, 16, 3), b=C(16, 16, 3)),
    "max_pool_signed": lambda: Net(
        lambda n, x: n.b(F.max_pool2d(n.a(x), 2, ceil_mode=True)), a=C(3, 16, 3, stride=2), b=C(16, 16, 2)
    ),
    "upsample": lambda: Net(
        lambda n, x: n.b(F.interpolate(relu(n.a(x)), scale_factor=2.0, mode="nearest")), a=C(3, 16, 3), b=C(16, 16, 3)
    ),
    "pixel_shuffle": lambda: Net(lambda n, x: n.b(F.pixel_shuffle(relu(n.a(x)), 2)), a=C(3, 16, 3), b=C(4, 16, 3)),
    "sigmoid": lambda: Net(lambda n, x: n.b(torch.sigmoid(n.a(x))), a=C(3, 16, 3), b=C(16, 16, 3)),
    "silu": lambda: Net(lambda n, x: n.b(F.silu(n.a(x))), a=C(3, 16, 3), b=C(16, 16, 3)),
    "hard_swish": lambda: Net(lambda n, x: n.b(F.hardswish(n.a(x))), a=C(3, 16, 3), b=C(16, 16, 3)),
    "hard_sigmoid": lambda: Net(lambda n, x: n.b(F.hardsigmoid(n.a(x))), a=C(3, 16, 3), b=C(16, 16, 3)),
    "tokens": lambda: Net(
        lambda n, x: n.p(relu(n.l(n.a(x).flatten(2).transpose(1, 2)))).flatten(1),
        a=C(3, 16, 4, stride=4),
        l=nn.Linear(16, 32),
        p=nn.Linear(32, 10),
    ),
    "average_pool": lambda: Net(lambda n, x: F.avg_pool2d(relu(n.a(x)), 3, 2, 1), a=C(3, 16, 3)),
    "average_pool_signed": lambda: Net(lambda n, x: n.b(F.avg_pool2d(n.a(x), 2)), a=C(3, 16, 3), b=C(16, 16, 1)),
    "average_pool_relu": lambda: Net(
        lambda n, x: n.b(relu(F.adaptive_avg_pool2d(n.a(x), (5, 2)))), a=C(3, 16, 3), b=C(16, 16, 1)
    ),
    "average_pool_ceil": lambda: Net(
        lambda n, x: n.b(F.avg_pool2d(n.a(x), (2, 4), 2, ceil_mode=True)), a=C(3, 16, 3), b=C(16, 16, 1)
    ),
    "prelu": lambda: Net(lambda n, x: n.b(n.p(n.a(x))), a=C(3, 16, 3), p=nn.PReLU(16), b=C(16, 16, 3)),
    "number": lambda: Net(
        lambda n, x: n.b((y := relu(n.a(x))) * 0.3 + 0.7 * F.max_pool2d(y, 3, 1, 1)), a=C(3, 16, 3), b=C(16, 16, 3)
    ),
    "quick_gelu": lambda: Net(
        lambda n, x: n.b((y := n.a(x)) * torch.sigmoid(1.702 * y)), a=C(3, 16, 3), b=C(16, 16, 3)
    ),
    "scores": lambda: Net(_scores, a=C(3, 16, 4, stride=4), qkv=nn.Linear(16, 96), p=nn.Linear(32, 10)),
    "leaky_relu": lambda: Net(lambda n, x: n.b(F.leaky_relu(n.a(x), 0.1)), a=C(3, 16, 3), b=C(16, 16, 3)),
    "swish": lambda: Net(lambda n, x: n.b((y := n.a(x)) * torch.sigmoid(y)), a=C(3, 16, 3), b=C(16, 16, 3)),
    "batch_norm_alone": lambda: Net(
        lambda n, x: n.b(relu(n.norm(torch.cat([n.a(x), n.d(x)], 1)))),
        a=C(3, 16, 3),
        d=C(3, 16, 3),
        norm=nn.BatchNorm2d(32),
        b=C(32, 16, 3),
    ),
    "shared_weight": lambda: Net(
        lambda n, x: n.b(relu(n.a(relu(n.a(relu(n.i(x))))))), i=C(3, 16, 1), a=C(16, 16, 3, padding=1), b=C(16, 16, 3)
    ),
    "three_outputs": lambda: Net(
        lambda n, x: {"logits": n.fc(pool(y := relu(n.a(x))).flatten(1)), "mask": n.b(y), "map": y},
        a=C(3, 16, 3),
        fc=nn.Linear(16, 10),
        b=C(16, 16, 3),
    ),
    "fork_before_relu": lambda: Net(
        lambda n, x: n.b(relu(y := n.a(x))) + n.c(y), a=C(3, 16, 3), b=C(16, 16, 3), c=C(16, 16, 3)
    ),
}


#: Networks with an operator that runtimes compute in float or round their own way: equal up to one step of a grid.
CLOSE: dict[str, Callable[[], nn.Module]] = {
    "number_in_concat": lambda: Net(
        lambda n, x: n.b(torch.cat([(y := relu(n.a(x))), y * 0.3], 1)), a=C(3, 16, 3), b=C(32, 16, 3)
    ),
    "number_and_result": lambda: Net(lambda n, x: (n.b((y := n.a(x)) / 7), y / 7), a=C(3, 16, 3), b=C(16, 16, 3)),
    "average_pool_of_a_border": lambda: Net(
        lambda n, x: n.b(F.avg_pool2d(n.a(x), 3, 2, 1, count_include_pad=False)), a=C(3, 16, 3), b=C(16, 16, 1)
    ),
    "bilinear": lambda: Net(
        lambda n, x: n.b(F.interpolate(relu(n.a(x)), scale_factor=2.0, mode="bilinear")), a=C(3, 16, 3), b=C(16, 16, 3)
    ),
    "transposed": lambda: Net(
        lambda n, x: n.b(relu(n.t(relu(n.a(x))))),
        a=C(3, 16, 3),
        t=nn.ConvTranspose2d(16, 16, 2, stride=2),
        b=C(16, 16, 3),
    ),
    "group_norm": lambda: Net(
        lambda n, x: n.b(relu(n.plain(n.g(n.a(x))))),
        a=C(3, 16, 3),
        g=nn.GroupNorm(4, 16),
        plain=nn.GroupNorm(2, 16, affine=False),
        b=C(16, 16, 3),
    ),
    "constants": lambda: Net(lambda n, x: n.b(relu(n.a(x * 2.0 + 0.5)) - 0.1), a=C(3, 16, 3), b=C(16, 16, 3)),
    "bordered_average": lambda: Net(lambda n, x: n.b(F.avg_pool2d(n.a(x), 3, 1, 1)), a=C(3, 16, 3), b=C(16, 16, 1)),
    "bordered_average_of_a_part": lambda: Net(
        lambda n, x: n.b(F.avg_pool2d(n.a(x).chunk(2, 1)[1], 3, 1, 1)), a=C(3, 32, 3), b=C(16, 16, 1)
    ),
    "bordered_average_of_a_sum": lambda: Net(
        lambda n, x: n.b(F.avg_pool2d(F.avg_pool2d(n.a(x), 2) + 1.0, 3, 1, 1)), a=C(3, 16, 3), b=C(16, 16, 1)
    ),
    "bordered_part": lambda: Net(
        lambda n, x: n.b(F.pad(n.a(x).chunk(2, 1)[1][:, :, 1:], (0, 1, 0, 1))), a=C(3, 32, 3), b=C(16, 16, 3)
    ),
    "strided_pointwise": lambda: Net(
        lambda n, x: n.fc(relu(n.c(relu(n.b(y := relu(n.a(x))))) + n.d(y)).mean((2, 3))),
        a=C(3, 16, 3),
        b=C(16, 16, 1, stride=2),
        c=C(16, 16, 3, padding=1),
        d=C(16, 16, 1, stride=2),
        fc=nn.Linear(16, 10),
    ),
    "signed_transposed": lambda: Net(
        lambda n, x: n.b(relu(n.t(n.a(x)))), a=C(3, 16, 3), t=nn.ConvTranspose2d(16, 16, 2, stride=2), b=C(16, 16, 3)
    ),
    "largest": lambda: Net(lambda n, x: n.fc(n.a(x).amax((2, 3))), a=C(3, 16, 3), fc=nn.Linear(16, 10)),
    "largest_and_shifted": lambda: Net(
        lambda n, x: n.fc(n.a(x).amax((2, 3)) + 1.0), a=C(3, 16, 3), fc=nn.Linear(16, 10)
    ),
    "smallest_of_tokens": lambda: Net(
        lambda n, x: n.o(n.l(n.a(x).flatten(2).transpose(1, 2)).amin(1)),
        a=C(3, 16, 4, stride=4),
        l=nn.Linear(16, 16),
        o=nn.Linear(16, 10),
    ),
    "sum_without_bias": lambda: Net(lambda n, x: torch.tanh(y := n.a(x)) + y, a=C(3, 16, 3, bias=False)),
    "tokens_without_bias": lambda: Net(
        lambda n, x: n.o(n.l(F.softplus(n.a(x).flatten(2).transpose(1, 2))).mean(1)),
        a=C(3, 16, 3),
        l=nn.Linear(16, 16, bias=False),
        o=nn.Linear(16, 10),
    ),
    "float_concat": lambda: Net(
        lambda n, x: F.layer_norm(torch.cat([n.b(y := F.gelu(n.a(x)).flip(-1)), y], 1), (10,)),
        a=C(3, 16, 3),
        b=C(16, 16, 3, padding=1),
    ),
    "float_pool": lambda: Net(
        lambda n, x: n.b(y := F.gelu(n.a(x)).flip(-1)) * pool(y).tanh(), a=C(3, 16, 3), b=C(16, 16, 3, padding=1)
    ),
    "leaky_relu_and_relu": lambda: Net(
        lambda n, x: (relu(F.leaky_relu(n.a(x), 0.1)) - 0.5).exp().mean((2, 3)), a=C(3, 16, 3)
    ),
    "relu_of_tokens": lambda: _over_tokens(relu),
    "relu6_of_tokens": lambda: _over_tokens(F.relu6),
    "least_of_tokens": lambda: _over_tokens(lambda t: torch.clamp(t, min=0.25)),
    "most_of_tokens": lambda: _over_tokens(lambda t: torch.clamp(t, max=0.25)),
    "clamp_of_tokens": lambda: _over_tokens(lambda t: torch.clamp(t, -0.5, 0.25)),
    "clamp_between_layers": lambda: Net(
        lambda n, x: n.o(torch.clamp(n.l(pool(relu(n.a(x))).flatten(1)), -0.1, 0.1)),
        a=C(3, 16, 3),
        l=nn.Linear(16, 16),
        o=nn.Linear(16, 10),
    ),
    "relu_of_scores": lambda: Net(_relu_of_scores, a=C(3, 16, 4, stride=4), k=nn.Linear(16, 16), o=nn.Linear(16, 10)),
    "clamp": lambda: Net(lambda n, x: n.b(torch.clamp(n.a(x), -1, 1)), a=C(3, 16, 3), b=C(16, 16, 3)),
    "attention": lambda: Net(
        _attention, a=C(3, 16, 4, stride=4), k=nn.Linear(16, 16), v=nn.Linear(16, 16), o=nn.Linear(16, 10)
    ),
}
