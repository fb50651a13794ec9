"""Networks drawn at random as source text, as users write them: numbers on either side, in-place operators, views."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.expression_lines import ACTIVATIONS, IN_PLACE, MAPS, MIXED, MOVED, NUMBERS, TOKENS, TWO, VECTORS

_ACTS: tuple[Any, ...] = (
    *(
        nn.ReLU,
        nn.ReLU6,
        nn.SiLU,
        nn.GELU,
        nn.ELU,
        nn.SELU,
        nn.CELU,
        nn.Hardswish,
        nn.Mish,
        nn.PReLU,
        nn.RReLU,
        nn.Softplus,
    ),
    *(lambda: nn.LeakyReLU(0.3), lambda: nn.Hardtanh(-2, 1), lambda: nn.Softplus(2, 1), lambda: nn.GELU("tanh")),
    *(lambda: nn.ReLU(inplace=True), lambda: nn.PReLU(4), lambda: nn.Softshrink(0.2), lambda: nn.Threshold(0.1, 0.3)),
    *(lambda: nn.LeakyReLU(0.3, inplace=True), lambda: nn.ELU(0.7, inplace=True), nn.Tanhshrink, nn.LogSigmoid),
)

CHANNELS, PIXELS = 4, 8

#: How many of the lines without translation that are drawn are kept: the others would hide what the file does.
_UNTRANSLATED_SHARE = 0.1


class RandomExpression(nn.Module):
    """Images [B, 3, 8, 8] through a convolution and up to eight lines of code drawn by a seed; `text` is that code."""

    def __init__(self, seed: int, *, lines: int = 8) -> None:
        super().__init__()
        draw = random.Random(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
            self.conv, self.bn = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS)
            self.convs = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 1) for _ in range(2))
            self.act = draw.choice(_ACTS)()
            self.slope, self.scale = nn.Parameter(torch.tensor([0.3])), nn.Parameter(torch.rand(CHANNELS) + 0.5)
            self.token, self.mix = nn.Parameter(torch.randn(1, 1, 1)), nn.Parameter(torch.randn(CHANNELS, CHANNELS))
            self.number, self.power = draw.choice((2, 0.5, -1.5)), draw.choice((1, 2, 3))
            for name, buffer in {
                "count": torch.tensor(3),
                "factor": torch.tensor(1.5),
                "gain": torch.tensor([0.25], dtype=torch.float64),
                "flag": torch.tensor(draw.random() < 0.5),
                "places": torch.tensor([1, 0, 1]),
                "table": torch.randn(1, 1, 2 * PIXELS, 2 * PIXELS),
            }.items():
                self.register_buffer(name, buffer)
            for statistic, low in ((self.bn.running_mean, -0.3), (self.bn.running_var, 0.5)):
                assert statistic is not None
                statistic.uniform_(low, low + 1)
            images = torch.randn(2, 3, PIXELS, PIXELS)
        self.eval()
        self.lines = ["x0 = self.stem(x)"]
        self._grow(draw, images, draw.randint(2, lines))

    @property
    def text(self) -> str:
        """The body of its forward."""
        return "\n".join([f"# self.act = {self.act}", *self.lines, f"return {self._result}"])

    @property
    def _result(self) -> str:
        return self.lines[-1].partition(" = ")[0]

    def forward(self, x: Tensor) -> Tensor:
        """What the last line gives."""
        result: Tensor = self._run(self.lines, x)[self._result]
        return result

    def _run(self, lines: Sequence[str], x: Tensor) -> dict[str, Any]:
        names: dict[str, Any] = {"self": self, "x": x, "torch": torch, "F": F, "nn": nn, "math": math}
        for line in lines:
            exec(line, names)
        return names

    def _grow(self, draw: random.Random, images: Tensor, lines: int) -> None:
        for _ in range(30 * lines):
            if len(self.lines) > lines:
                return
            values = self._values(self.lines, images)
            assert values is not None
            line = self._line(draw, values, f"x{len(self.lines)}")
            grown = self._values([*self.lines, line], images)
            if grown is not None and _is_fit(list(grown.values())[-1]):
                self.lines.append(line)

    def _values(self, lines: Sequence[str], images: Tensor) -> dict[str, Tensor] | None:
        """The tensors x0, x1, ... that lines compute; None where one of them raises."""
        try:
            with torch.no_grad():
                names = self._run(lines, images.clone())
        except Exception:  # the line that was drawn is not for these shapes
            return None
        return {f"x{index}": names[f"x{index}"] for index in range(len(lines))}

    def _line(self, draw: random.Random, values: Mapping[str, Tensor], name: str) -> str:
        first = draw.choice([*values, *list(values)[-2:] * 3])
        value = values[first]
        alike = [other for other, tensor in values.items() if tensor.shape == value.shape]
        own = {4: MAPS, 3: TOKENS, 2: VECTORS}.get(value.dim(), VECTORS)
        form = draw.choice((own, own, NUMBERS, ACTIVATIONS, TWO, MOVED, MIXED, IN_PLACE))
        axes = [axis for axis in range(-value.dim() + 1, value.dim()) if axis != 0]

        def filled(template: str) -> str:
            while "{n}" in template:
                template = template.replace("{n}", draw.choice(("0.5", "2", "-1.5", "1", "0.25", "3", "-2", "0.1")), 1)
            while "{p}" in template:
                template = template.replace("{p}", draw.choice(("0.5", "2", "1", "1.5", "0.25", "3")), 1)
            axis = str(draw.choice(axes)) if axes else "0"
            return template.replace("{d}", axis).replace("{a}", first).replace("{b}", draw.choice(alike))

        template = draw.choice(form)
        while template.startswith("!") and draw.random() > _UNTRANSLATED_SHARE:
            template = draw.choice(form)
        written = filled(template.removeprefix("!"))
        if form is not IN_PLACE:
            return f"{name} = {written}"
        begin = draw.choice((f"y = {first} * 1", f"y = {first} + {first}", f"y = {first}", f"y = {first}.clone()"))
        return f"{name} = None; {begin}; {written}; {name} = y"


def _is_fit(value: object) -> bool:
    """Whether a value may be an output: finite floats of several images, not too large and not too many."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dim() > 1
        and value.shape[0] == 2
        and 0 < value.numel() < 20_000
        and bool(value.isfinite().all())
        and float(value.abs().max()) < 1e5
    )
