"""Which reason is given for an operator without a translation, and which of several is named."""

from __future__ import annotations

from typing import Any

import torch

from backends.onnx_file.runtime_refusals import one_line
from backends.onnx_file.translations.refused import most_telling, refusal, refusal_of
from tests.backends.onnx_file.hand_graphs import HandGraph

aten: Any = torch.ops.aten


def test_the_most_telling_operator_is_named() -> None:
    g = HandGraph(4)
    zeros = g(aten.zeros_like.default, g.x, name="zeros")
    running = g(aten.cumsum.default, g.x, 1, name="running")
    cast = g(aten._to_copy.default, g.x, dtype=torch.float64, name="cast")
    whole = g(aten._to_copy.default, g.x, dtype=torch.int64, name="whole")
    assert most_telling([zeros, running]) is running
    assert most_telling([zeros, cast]) is cast
    assert most_telling([whole, zeros]) is zeros
    assert most_telling([whole]) is whole
    reasons = [str(refusal_of(node)) for node in (cast, whole, running)]
    assert reasons[0].startswith("what is not integer is computed in float32 here")
    assert reasons[1].startswith("whole numbers and truths are no values")
    assert reasons[2].startswith("sums and products that run along an axis")


def test_reasons_are_those_of_the_table() -> None:
    assert str(refusal(aten.mean.default)).startswith("a reduction over all axes mixes the images of a batch")
    assert refusal(aten.acos.default) is None


def test_a_runtimes_words_are_shortened() -> None:
    assert one_line("word " * 100) == ("word " * 100)[:400]
