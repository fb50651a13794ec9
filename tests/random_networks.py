"""Networks drawn at random from the operators that people use: combinations that nobody thought of."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: From a network, whose layers it reads, and its values so far to the next one.
Step = Callable[["RandomNetwork", Sequence[Tensor]], Tensor]
#: From a network and the place of its last value to the step behind it; None where the value is not fit for it.
Operator = Callable[["RandomNetwork", int], "Step | None"]

PIXELS = 16
ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    *(torch.relu, torch.relu, torch.relu, F.relu6, F.silu, F.hardswish, F.gelu, torch.tanh, torch.sigmoid, F.elu),
    *(F.hardsigmoid, F.softplus, F.mish, lambda x: F.leaky_relu(x, 0.1), lambda x: x.clamp(-1, 1.5)),
)


_WEIGHINGS: tuple[Callable[[Tensor], Tensor], ...] = (
    *(lambda scores: scores.softmax(-1), torch.relu, torch.sigmoid, lambda scores: scores),
)
_TO_VECTOR: tuple[Callable[[Tensor], Tensor], ...] = (
    *(lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1), lambda x: x.mean((2, 3))),
)
_GATES: tuple[Callable[[Tensor], Tensor], ...] = (torch.sigmoid, F.hardsigmoid)


class RandomNetwork(nn.Module):
    """Images [B, 3, 16, 16] through a convolution and up to a dozen operators drawn by a seed, often to 10 classes.

    `more`: operators of maps that are drawn as often as all of `MAPS` together.
    """

    def __init__(self, seed: int, more: Sequence[Operator] = ()) -> None:
        super().__init__()
        self.draw, self.layers, self.more = random.Random(seed), nn.ModuleList(), more
        self.steps = list[Step]()
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            self.values = [torch.randn(2, 3, PIXELS, PIXELS)]
            self._grow()
        del self.values
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the last step gives."""
        values = [x]
        for step in self.steps:
            values.append(step(self, values))
        return values[-1]

    def layer(self, layer: nn.Module) -> int:
        """The place of a layer among this network's, of which it is one from now on."""
        self.layers.append(layer.eval())
        return len(self.layers) - 1

    def alike(self, at: int) -> int | None:
        """The place of another value of the same shape, drawn; None where there is none."""
        places = [
            place for place in range(1, len(self.values)) if place != at and self._shape(place) == self._shape(at)
        ]
        return self.draw.choice(places) if places else None

    def _shape(self, place: int) -> torch.Size:
        return self.values[place].shape

    def _append(self, step: Step | None) -> None:
        if step is None:
            return
        try:
            value = step(self, self.values)
        except RuntimeError:
            assert self.more, "an operator here looks at one side of a map, and `more` make maps that are not square"
            return
        if value.numel():
            self.values.append(value)
            self.steps.append(step)

    def _grow(self) -> None:
        stride, bias = self.draw.choice([1, 2]), self.draw.random() < 0.7
        first = self.layer(nn.Conv2d(3, self.draw.choice([16, 24]), 3, stride=stride, padding=1, bias=bias))
        self._append(_of_layer(first, 0))
        for _ in range(self.draw.randint(4, 12)):
            rank = self.values[-1].dim()
            operators = self.more if rank == 4 and self.more and self.draw.random() < 0.5 else BY_RANK[rank]
            self._append(self.draw.choice(operators)(self, len(self.values) - 1))
        if self.draw.random() < 0.7:
            if self.values[-1].dim() == 4:
                self._append(_to_vector(self, len(self.values) - 1))
            if self.values[-1].dim() == 3:
                self._append(_mean_of_tokens(self, len(self.values) - 1))
            self._append(_linear(self, len(self.values) - 1, outputs=10))


def _called(n: RandomNetwork, layer: int, x: Tensor) -> Tensor:
    result: Tensor = n.layers[layer](x)
    return result


def _of_layer(layer: int, at: int) -> Step:
    return lambda n, values: _called(n, layer, values[at])


def _function(function: Callable[[Tensor], Tensor], *, least_side: int = 1, most_side: int = 1 << 10) -> Operator:
    """A function without weights of maps whose sides lie between bounds, or of anything."""

    def operator(n: RandomNetwork, at: int) -> Step | None:
        side = n.values[at].shape[-1] if n.values[at].dim() == 4 else least_side
        return (lambda n, values: function(values[at])) if least_side <= side <= most_side else None

    return operator


def _of_even_channels(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda n, at: (lambda n, values: function(values[at])) if n.values[at].shape[1] % 4 == 0 else None


def _of_two(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """A function of the last value and another one of its shape, in either order."""

    def operator(n: RandomNetwork, at: int) -> Step | None:
        other = n.alike(at)
        if other is None:
            return None
        first, second = (at, other) if n.draw.random() < 0.5 else (other, at)
        return lambda n, values: function(values[first], values[second])

    return operator


def _activation(n: RandomNetwork, at: int) -> Step:
    function = n.draw.choice(ACTIVATIONS)
    return lambda n, values: function(values[at])


def _prelu(n: RandomNetwork, at: int) -> Step:
    layer = n.layer(nn.PReLU(n.values[at].shape[1]))
    return _of_layer(layer, at)


def _convolution(n: RandomNetwork, at: int) -> Step:
    channels, side = n.values[at].shape[1], n.values[at].shape[-1]
    kernel, groups = n.draw.choice([1, 3]), n.draw.choice([1, 1, 1, 2]) if channels % 2 == 0 else 1
    stride, bias = n.draw.choice([1, 1, 2]) if side > 4 else 1, n.draw.random() < 0.7
    outputs = n.draw.choice([channels, 16, 24, 32])
    layer = n.layer(nn.Conv2d(channels, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias))
    return _of_layer(layer, at)


def _depthwise(n: RandomNetwork, at: int) -> Step:
    channels = n.values[at].shape[1]
    layer = n.layer(nn.Conv2d(channels, channels, 3, padding=1, groups=channels))
    return _of_layer(layer, at)


def _transposed(n: RandomNetwork, at: int) -> Step | None:
    if n.values[at].shape[-1] > PIXELS:
        return None
    layer = n.layer(nn.ConvTranspose2d(n.values[at].shape[1], 16, 2, stride=2))
    return _of_layer(layer, at)


def _batch_norm(n: RandomNetwork, at: int) -> Step:
    layer = nn.BatchNorm2d(n.values[at].shape[1]) if n.values[at].dim() == 4 else nn.BatchNorm1d(n.values[at].shape[1])
    nn.init.normal_(layer.weight, 1, 0.2)
    assert layer.running_mean is not None and layer.running_var is not None
    layer.running_mean.normal_(std=0.3)
    layer.running_var.uniform_(0.5, 2)
    return _of_layer(n.layer(layer), at)


def _group_norm(n: RandomNetwork, at: int) -> Step | None:
    if n.values[at].shape[1] % 4:
        return None
    norm = nn.GroupNorm(4, n.values[at].shape[1])
    nn.init.normal_(norm.weight, 1, 0.8)  # some of them negative, as they are learnt
    return _of_layer(n.layer(norm), at)


def _layer_norm(n: RandomNetwork, at: int) -> Step:
    """Over the channels, which lie on the last axis but for maps."""
    of_map = n.values[at].dim() == 4
    norm = nn.LayerNorm(n.values[at].shape[1 if of_map else -1])
    nn.init.normal_(norm.weight, 1, 0.8)
    layer = n.layer(norm)
    if of_map:
        return lambda n, values: _called(n, layer, values[at].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return _of_layer(layer, at)


def _linear(n: RandomNetwork, at: int, *, outputs: int | None = None) -> Step:
    inputs = n.values[at].shape[-1]
    layer = n.layer(nn.Linear(inputs, outputs or n.draw.choice([inputs, 16, 24]), bias=n.draw.random() < 0.8))
    return _of_layer(layer, at)


def _gate(n: RandomNetwork, at: int) -> Step:
    """Squeeze and excite."""
    channels, function = n.values[at].shape[1], n.draw.choice(_GATES)
    layer = n.layer(nn.Conv2d(channels, channels, 1))
    return lambda n, values: values[at] * function(_called(n, layer, F.adaptive_avg_pool2d(values[at], 1)))


def _attention(n: RandomNetwork, at: int) -> Step:
    width = n.values[at].shape[-1]
    query, key, value = (n.layer(nn.Linear(width, width)) for _ in range(3))
    weigh = n.draw.choice(_WEIGHINGS)

    def step(n: RandomNetwork, values: Sequence[Tensor]) -> Tensor:
        asked, keys, carried = (_called(n, layer, values[at]) for layer in (query, key, value))
        return weigh(asked @ keys.transpose(1, 2) * width**-0.5) @ carried

    return step


def _to_tokens(n: RandomNetwork, at: int) -> Step | None:
    if n.values[at].shape[-1] > PIXELS:
        return None
    return lambda n, values: values[at].flatten(2).transpose(1, 2)


def _to_map(n: RandomNetwork, at: int) -> Step | None:
    side = int(n.values[at].shape[1] ** 0.5)
    if side * side != n.values[at].shape[1]:
        return None
    return lambda n, values: values[at].transpose(1, 2).reshape(-1, values[at].shape[2], side, side)


def _to_vector(n: RandomNetwork, at: int) -> Step:
    function = n.draw.choice(_TO_VECTOR)
    return lambda n, values: function(values[at])


def _mean_of_tokens(n: RandomNetwork, at: int) -> Step:
    return lambda n, values: values[at].mean(1)


_ANYWHERE: tuple[Operator, ...] = (
    *(_function(lambda x: x * 0.5), _function(lambda x: x * -1.0), _function(lambda x: x + 1.0)),
    *(_of_two(torch.add), _of_two(torch.add), _of_two(torch.mul), _of_two(torch.sub)),
    *(_of_two(lambda x, y: torch.cat([x, y], 1)), *[_activation] * 5),
)
MAPS: tuple[Operator, ...] = (
    *(*_ANYWHERE, *[_convolution] * 5, _depthwise, _transposed, _batch_norm, _group_norm, _layer_norm, _gate, _prelu),
    *(
        _to_tokens,
        _to_vector,
        _function(lambda x: x.amax((2, 3))),
        _function(lambda x: x + F.adaptive_avg_pool2d(x, 1)),
    ),
    _function(lambda x: F.max_pool2d(x, 3, 2, 1), least_side=3),
    _function(lambda x: F.avg_pool2d(x, 2), least_side=3),
    _function(lambda x: F.avg_pool2d(x, 3, 1, 1), least_side=3),
    _function(lambda x: F.interpolate(x, scale_factor=2, mode="nearest"), most_side=PIXELS),
    _function(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), most_side=PIXELS),
    *(_function(lambda x: F.pad(x, (0, 1, 0, 1))), _function(lambda x: x[:, :, 1:], least_side=3)),
    _function(lambda x: x.flip(-1)),
    *(_of_even_channels(lambda x: x.chunk(2, 1)[1]), _of_even_channels(lambda x: F.channel_shuffle(x, 2))),
    _of_even_channels(lambda x: F.pixel_shuffle(x, 2)),
)
TOKENS: tuple[Operator, ...] = (
    *(*_ANYWHERE, *[_linear] * 5, _layer_norm, _layer_norm, _attention, _attention, _to_map, _mean_of_tokens),
    *(_function(lambda x: x[:, 0]), _function(lambda x: x.softmax(-1))),
)
VECTORS: tuple[Operator, ...] = (*_ANYWHERE, *[_linear] * 4, _layer_norm, _batch_norm)
BY_RANK: dict[int, tuple[Operator, ...]] = {4: MAPS, 3: TOKENS, 2: VECTORS}
