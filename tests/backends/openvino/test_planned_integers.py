"""What is planned on integers and left in float by OpenVINO, or not loaded, in another form; and what counts as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from backends.onnx_file import writer
from calibration.errors import UserError
from tests.openvino_branches import Build, Line, broken, built_of, errors, floating, holds, written

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'faqd[openvino]'")


def _halves(y: Tensor) -> Tensor:
    """Channels of unlike activations, whose concatenation is rounded as a whole."""
    return torch.cat([y.relu(), F.gelu(y)], 1)


JOINED: dict[str, Line] = {
    "a part": lambda n, y: _halves(y)[:, 8:24],
    "reversed": lambda n, y: _halves(y[:, :8]).flip(1),
    "columns": lambda n, y: _halves(y[:, :8])[:, :, :, 1:],
    "a part of maxima": lambda n, y: F.max_pool2d(_halves(y), 2)[:, 8:24],
    "positions": lambda n, y: torch.cat([n.again(y), y.sigmoid()], 3),
    "positions of ReLUs": lambda n, y: torch.cat([n.again(y), y.relu()], 3),
}
SCALED: dict[str, Line] = {
    "a number": lambda n, y: (y + n.rows.weight) * 2,
    "a divisor": lambda n, y: (y - n.rows.weight) / -3,
    "numbers of channels": lambda n, y: (y + n.rows.weight) * (n.factors.abs() + 0.1),
    "of shared weights": lambda n, y: n.again(F.gelu(y)) + n.again(y) * 0.5,
}


def _spread(function: Callable[[Tensor], Tensor]) -> Line:
    """A function of channels that became positions, as tokens, and a linear layer."""

    def line(n: Any, y: Tensor) -> Tensor:
        tokens = function(F.pixel_shuffle(y, 2).flatten(2).transpose(1, 2))
        return F.linear(tokens, n.tokens.weight[:, :4], n.tokens.bias).transpose(1, 2).reshape(-1, 16, 24, 24)

    return line


TURNED: dict[str, Line] = {
    "GELU": _spread(F.gelu),
    "ReLU": _spread(torch.relu),
    "absolute value": _spread(torch.abs),
    "a number": _spread(lambda t: t + 1),
    "two functions": _spread(lambda t: (t.tanh() * 2).relu()),
}


def _rows(function: Callable[[Tensor], Tensor]) -> Line:
    """A function of a map, whose positions a linear layer reads as tokens."""

    def line(n: Any, y: Tensor) -> Tensor:
        y = function(y)
        return n.tokens(y.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(y.shape)  # type: ignore[no-any-return]

    return line


PARTS: dict[str, Line] = {
    "reversed": _rows(lambda y: torch.cat([y[:, :8], y[:, :8].flip(1)], 1).flip(3)),
    "a part": _rows(lambda y: torch.cat([y, y.flip(1)], 1)[:, 8:24]),
    "columns": _rows(lambda y: torch.cat([y[:, :8], y[:, 8:].flip(1)], 1)[:, :, :, ::2]),
}


@pytest.mark.parametrize(
    ("lines", "rule", "form"),
    [(SCALED, 51, "factors_apart"), (TURNED, 52, "turned_apart")],
    ids=["factors of convolutions", "channels turned as positions"],
)
def test_layers_run_in_float_unless_a_max_stands_between(
    lines: dict[str, Line], rule: int, form: str, build: Build
) -> None:
    built = built_of(lines, build)
    assert holds(lines, built)
    model = written(built, **{form: False})
    assert broken(built, model) == [rule] * len(lines)
    assert len(floating(built, model)) == len(lines)


@pytest.mark.parametrize("name", JOINED)
def test_a_rounded_concatenation_stands_apart_where_parts_or_positions_are_taken(
    name: str, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = {name: JOINED[name]}
    built = built_of(lines, build)
    assert holds(lines, built)
    monkeypatch.setattr(writer, "_is_part_of_a_join", lambda node: False)
    model = written(built, rounded_joins_apart=False)
    assert broken(built, model) == [50]
    try:
        assert len(floating(built, model)) == 1
    except UserError as refused:
        assert "cannot load the model" in str(refused)


def test_a_rounded_concatenation_of_channels_that_a_convolution_reads_stays_alone(build: Build) -> None:
    lines: dict[str, Line] = {
        "read": lambda n, y: _halves(y[:, :8]),
        "maxima": lambda n, y: F.max_pool2d(_halves(y[:, 8:]), 2),
    }
    built = built_of(lines, build)
    assert written(built).SerializeToString() == written(built, rounded_joins_apart=False).SerializeToString()
    assert holds(lines, built)


def test_parts_of_joined_channels_leave_a_linear_layer_in_float_unless_taken_of_integers(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = built_of(PARTS, build)
    assert holds(PARTS, built)
    monkeypatch.setattr(writer, "_is_part_of_a_join", lambda node: False)
    model = written(built)
    assert set(broken(built, model)) == {53} and len(floating(built, model)) == len(PARTS)


def test_what_the_compiler_makes_one_of_two_equal_layers_counts_for_both(build: Build) -> None:
    lines: dict[str, Line] = {
        "of one map": lambda n, y: n.again(y) + n.again(y) * 0.5,
        "of equal maps": lambda n, y: n.again(y.relu()) - n.again(y.relu()) * 0.3,
        "of others": lambda n, y: n.again(y) + n.again(y.flip(1)),
    }
    built = built_of(lines, build)
    assert holds(lines, built)
    model = written(built)
    assert len([node for node in model.graph.node if node.name.startswith("parts_0_again")]) > 1
    assert max(errors(lines, built, model).values()) < 0.01
