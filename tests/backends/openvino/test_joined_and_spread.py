"""Positions that are joined, windows with gaps and constants that are spread: what OpenVINO makes of either form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends.facts.openvino_rules import PROFILE
from backends.lint.rule import lint_rules
from backends.lint.table import lint
from backends.onnx_file import writer
from backends.openvino.backend import OpenVINO
from backends.oracle.backend import IntegerOracle
from calibration.errors import UserError

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'faqd[openvino]'")

Build = Callable[..., Any]
BACKEND = OpenVINO()


class Lines(nn.Module):
    """A convolution, a line of code over what it gives, and a layer behind it."""

    def __init__(self, line: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = line
        self.a, self.b, self.wide = (nn.Conv2d(count, 16, 3, padding=1) for count in (3, 16, 32))
        self.few, self.leaps = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 16, 1, 2, 1)
        self.tokens, self.features = nn.Linear(16, 16), nn.Linear(32, 16)
        self.constant = nn.Parameter(torch.randn(1, 1, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.line(self, self.a(x))


def _row(n: Any, y: Tensor) -> Tensor:
    y = y.clone()
    y[:, :, 0] = 0.5
    result: Tensor = n.b(y)
    return result


def _window(n: Any, y: Tensor) -> Tensor:
    y = y.clone()
    y[:, :, 2:4, 1:5] = y[:, :, :2, :4]
    result: Tensor = n.b(y)
    return result


def _rows_of(y: Tensor) -> Tensor:
    return y.flatten(2).transpose(1, 2)


JOINED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a row written": _row,
    "a window written": _window,
    "rolled": lambda n, y: n.b(y.roll(1, 2)),
    "rows and columns changed": lambda n, y: n.b(torch.cat([y, y.flip(2)], 3).transpose(2, 3)),
    "features of tokens": lambda n, y: n.features(torch.cat([_rows_of(y), _rows_of(y.flip(3))], 2)),
}
#: Joined channels that become positions: as reals the file would not load.
SHUFFLED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "of two layers": lambda n, y: n.few(F.pixel_shuffle(torch.cat([y, n.b(y)], 1), 2)),
    "of one map": lambda n, y: n.few(F.pixel_shuffle(torch.cat([y, y.flip(1)], 1), 2)),
}
SPREAD: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a token": lambda n, y: n.tokens(torch.cat([n.constant.expand(len(y), -1, -1), _rows_of(y)], 1)),
    "channels": lambda n, y: n.wide(torch.cat([y, n.constant.reshape(1, 16, 1, 1).expand(len(y), -1, 8, 8)], 1)),
}


def built_of(line: Callable[[Any, Tensor], Tensor], build: Build, profile: Any = "openvino") -> Any:
    images = torch.randn((4, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    return build(Lines(line).eval(), profile, inputs=images)


def error(built: Any, model: Any) -> float:
    """How far the runtime's output is from the oracle's, relative to the oracle's."""
    (exact,), _ = IntegerOracle(model).run(built.images)
    with BACKEND.runner(model.SerializeToString(), threads=1) as runner:
        (result,) = runner.run(built.images.numpy())
    return float(np.linalg.norm(result - exact.numpy()) / np.linalg.norm(exact.numpy()))


def rules_broken(built: Any, model: Any) -> set[int]:
    return {violation.rule for violation in lint(model, lint_rules(PROFILE, built.plan))}


def floating(built: Any, model: Any) -> tuple[str, ...]:
    layers = [placement.layer for placement in built.plan.weights]
    return tuple(BACKEND.census(model.SerializeToString(), layers).floating)


DILATED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "dilated maxima": lambda n, y: n.b(F.max_pool2d(y, 3, 1, 1, dilation=2)),
    "of values that are not negative": lambda n, y: n.b(F.max_pool2d(y.relu(), 2, 2, dilation=(1, 2))),
    "moved before and behind": lambda n, y: n.b(F.max_pool2d(y.flip(3), (2, 3), dilation=2).transpose(2, 3)),
}


@pytest.mark.parametrize("name", [*JOINED, *SHUFFLED, *SPREAD, *DILATED])
def test_they_are_written_so_that_integers_stay_and_nothing_is_lost(name: str, build: Build) -> None:
    built = built_of((JOINED | SHUFFLED | SPREAD | DILATED)[name], build)
    model = BACKEND.emit(built.frozen)
    assert not rules_broken(built, model) and not floating(built, model)
    assert error(built, model) < 0.01


@pytest.mark.parametrize("name", JOINED)
def test_joined_reals_of_signed_integers_leave_the_layer_behind_in_float_and_are_refused(
    name: str, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = built_of(JOINED[name], build)
    monkeypatch.setattr(writer, "_joins_positions", lambda node: False)
    model = built.model()
    assert rules_broken(built, model) == {39} and len(floating(built, model)) == 1


@pytest.mark.parametrize("name", SHUFFLED)
def test_joined_channels_that_become_positions_as_reals_do_not_load(
    name: str, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = built_of(SHUFFLED[name], build)
    monkeypatch.setattr(writer, "_spreads_parts", lambda node: False)
    with pytest.raises(UserError, match="DepthToSpaceTransformation"):
        floating(built, built.model())


@pytest.mark.parametrize("name", DILATED)
def test_dilated_maxima_of_reals_leave_the_layer_behind_in_float_and_are_refused(
    name: str, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = built_of(DILATED[name], build)
    monkeypatch.setattr(writer, "_is_dilated", lambda node: False)
    model = built.model()
    assert rules_broken(built, model) == {41} and len(floating(built, model)) == 1


@pytest.mark.parametrize("name", SPREAD)
def test_a_constant_spread_to_a_computed_size_is_wrong_and_refused(name: str, build: Build) -> None:
    built = built_of(SPREAD[name], build, replace(PROFILE, form=replace(PROFILE.form, spreads_by_values=False)))
    model = built.model()
    assert rules_broken(built, model) == {40} and error(built, model) > 0.05


def test_what_is_not_negative_may_be_joined_as_reals(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule is about zero points, which such a map has not."""
    built = built_of(lambda n, y: n.b(y.relu().roll(1, 2)), build)
    monkeypatch.setattr(writer, "_joins_positions", lambda node: False)
    model = BACKEND.emit(built.frozen)
    assert not rules_broken(built, model) and not floating(built, model) and error(built, model) < 0.01


@pytest.mark.parametrize("signed", [True, False])
def test_a_pointwise_convolution_with_stride_and_border_keeps_its_size(signed: bool, build: Build) -> None:
    def line(n: Any, y: Tensor) -> Tensor:
        result: Tensor = n.leaps(y if signed else y.relu())
        return result

    built = built_of(line, build)
    model = BACKEND.emit(built.frozen)
    assert not floating(built, model) and error(built, model) < 0.01
    plain = built_of(line, build, replace(PROFILE, rewrites=()))
    assert rules_broken(plain, plain.model()) == {33}
    with BACKEND.runner(plain.model().SerializeToString(), threads=1) as runner:
        (result,) = runner.run(plain.images.numpy())
    assert result.shape != plain.simulate()[0].shape, "the runtime's own mistake"


def test_a_border_may_be_transposed(build: Build) -> None:
    built = built_of(lambda n, y: n.b(F.pad(y, (1, 1, 1, 2)).transpose(2, 3)), build)
    model = BACKEND.emit(built.frozen)
    assert not rules_broken(built, model) and not floating(built, model) and error(built, model) < 0.01


def test_it_is_the_same_in_a_file_of_one_batch_size(build: Build) -> None:
    built = built_of(SPREAD["a token"], build)
    model = BACKEND.emit(built.frozen, opset=None, batch=4)
    assert not rules_broken(built, model) and error(built, model) < 0.01
