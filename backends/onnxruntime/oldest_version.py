"""The oldest ONNX Runtime that runs a file, measured: every version from 1.15 on ran the embedded network's files."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import NodeProto, TensorProto

from backends.onnx_file.view import OnnxView, attributes, node_name

# Opset -> the oldest release whose outputs were the oracle's to the bit; the one before refuses to load the file (of 17
# and 18 none was tried that does). Measured with 1.15.1, 1.16.3, 1.17.3, 1.18.1, 1.19.2, 1.20.1, 1.21.1, 1.22.1,
# 1.23.2 and 1.24.1 on x86-64, where 23 was refused by 1.23.2 for two nodes of one name that its own optimiser makes.
LEAST_OF_OPSET = {17: "1.15", 18: "1.15", 19: "1.16", 20: "1.17", 21: "1.18", 22: "1.21", 23: "1.24"}
# Casts of int4 to int8 have a kernel from 1.23 on: 1.18 has no such type, 1.19 to 1.22 end with "Could not find an
# implementation for Cast(21)".
_LEAST_WITH_INT4 = "1.23"
# Averages with pads [1, 0, 1, 0] are others than float's in 1.23.0, 1.23.2, 1.24.1 and 1.24.4, the same in 1.25.0.
_LEAST_WITH_UNEQUAL_BORDERS = "1.25"
# Before opset 19 averages whose last windows reach beyond map and counted border divide by the whole window in 1.21.1,
# 1.22.1, 1.23.2, 1.24.4, 1.25.1, 1.27.0 and 1.28.0, by what is inside in 1.29.0, 1.31.1 and 1.32.0; from opset 19 on
# they are right in all of these (onnxruntime pull request 29629).
_LEAST_WITH_CUT_WINDOWS = "1.29"
_OPSET_OF_CUT_WINDOWS = 19
# Fused into a pooling, a border of its size is "Pad should be smaller than kernel" in 1.23.2 to 1.31.0, not in 1.32.
_LEAST_WITH_WIDE_BORDERS = "1.32"
_INT4 = (TensorProto.INT4, TensorProto.UINT4)


def least_runtime(model: onnx.ModelProto, backend: str) -> dict[str, str] | None:
    """The oldest runtime of a backend that runs a model, why, and flags that make a file for an older one.

    None for backends whose older versions were not tried.
    """
    if backend != "onnxruntime":
        return None
    view = OnnxView(model)
    least = LEAST_OF_OPSET.get(view.opset, LEAST_OF_OPSET[max(LEAST_OF_OPSET)])
    oldest = min(LEAST_OF_OPSET)
    way_out = f"a lower --opset ({oldest} runs from {LEAST_OF_OPSET[oldest]} on)"
    needed = [(least, f"its opset is {view.opset}", way_out), *_of_poolings(view)]
    if any(tensor.data_type in _INT4 for tensor in model.graph.initializer):
        needed.append((_LEAST_WITH_INT4, "its weights are stored in 4 bits", "--bits 8, whose weights older ones read"))
    least, why, way_out = max(needed, key=lambda one: tuple(map(int, one[0].split("."))))
    return {"name": backend, "least": least, "why": why, "way_out": way_out}


def _of_poolings(view: OnnxView) -> Iterator[tuple[str, str, str]]:
    """What poolings need: the oldest release, why, and the way out."""
    for node in view.nodes:
        if node.op_type == "AveragePool" and len({*attributes(node).get("pads", [])}) > 1:
            why = f"the borders of {node_name(node)} differ, which older ones average wrongly"
            yield _LEAST_WITH_UNEQUAL_BORDERS, why, "a pooling whose borders are all equal"
        cut = all(attributes(node).get(name, 0) for name in ("ceil_mode", "count_include_pad"))
        if node.op_type == "AveragePool" and cut and view.opset < _OPSET_OF_CUT_WINDOWS:
            why = f"{node_name(node)} cuts windows short whose border counts, which older ones average wrongly"
            yield _LEAST_WITH_CUT_WINDOWS, why, f"--opset {_OPSET_OF_CUT_WINDOWS} or newer"
        if node.op_type in ("AveragePool", "MaxPool") and _has_wide_border(view, node):
            why = f"the border before {node_name(node)} is as wide as its window, which older ones do not load"
            yield _LEAST_WITH_WIDE_BORDERS, why, "a border that is narrower than the window"


def _has_wide_border(view: OnnxView, pooling: NodeProto) -> bool:
    """Whether a border by itself, of which older runtimes make the pooling's own, is as wide as the window or wider."""
    border = view.producer(pooling.input[0])
    if border is None or border.op_type != "Pad" or attributes(border).get("mode", "constant") != "constant":
        return False
    amounts, kernel = view.value(border.input[1]), attributes(pooling)["kernel_shape"]
    if amounts is None:
        return False
    own = attributes(pooling).get("pads", [0] * 2 * len(kernel))
    rank = len(amounts) // 2
    sides = [*amounts[rank - len(kernel) : rank], *amounts[2 * rank - len(kernel) :]]
    return any(side + more >= size for side, more, size in zip(sides, own, [*kernel, *kernel], strict=True))
