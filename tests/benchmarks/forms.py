"""Ways to write an operator between roundings, run in ONNX Runtime beside each other: time, accuracy and kernels."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Columns, Results

Step = tuple[str, str, str, dict[str, Any]]
"""A node as (operator, inputs, outputs, attributes); those of com.microsoft say so in "domain"."""

Forms = Mapping[tuple[str, str], Sequence[Step]]
"""(function, form) to its nodes, from the uint8 tensor x to y; a function's first form is the one it is held to.

Forms whose name begins with "float" run without integer kernels even where the runtime has one.
"""

ROUNDS = 60
COLUMNS: Columns = {
    "function": lambda row: row["key"]["function"],
    "form": lambda row: row["key"]["form"],
    "ns per value": lambda row: f"{row['nanoseconds']:.2f}",
    "dB": lambda row: None if row["decibels"] is None else f"{row['decibels']:.2f}",
    "kernels": lambda row: ", ".join(row["kernels"]),
}


def model_of(nodes: Sequence[Step], shape: Sequence[int], constants: Mapping[str, Any]) -> onnx.ModelProto:
    """The model of a form."""
    used = {name for _, inputs, _, _ in nodes for name in inputs.split()}
    graph = helper.make_graph(
        [
            helper.make_node(operator, inputs.split(), outputs.split(), **extra)
            for operator, inputs, outputs, extra in nodes
        ],
        "form",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", _output_type(nodes, constants), None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items() if name in used],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _output_type(nodes: Sequence[Step], constants: Mapping[str, Any]) -> int:
    """uint8 where the last node rounds, or moves what is rounded; else float."""
    known = {"x": True} | {name: np.asarray(value).dtype == np.uint8 for name, value in constants.items()}
    for operator, inputs, outputs, _ in nodes:
        moved = operator not in ("DequantizeLinear", "QuantizeLinear", "Cast") and known.get(inputs.split()[0], False)
        known |= dict.fromkeys(outputs.split(), operator == "QuantizeLinear" or moved)
    return int(TensorProto.UINT8 if known["y"] else TensorProto.FLOAT)


def compare(
    forms: Forms,
    shape: Sequence[int],
    constants: Mapping[str, Any],
    *,
    title: str,
    results: Results,
    folder: Path,
) -> None:
    """Time all forms in turns, processor time of one thread, and publish them with their distance from float.

    The distance is the signal to noise ratio of a rounded y against the values that the function's first form rounds.
    """
    import onnxruntime

    def opened(model: onnx.ModelProto, *, floating: bool) -> Any:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.disable_quant_qdq", str(int(floating)))
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        options.optimized_model_filepath = str(folder / "optimised.onnx")
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    sessions, kernels, exact = {}, {}, dict[str, Any]()
    decibels: dict[tuple[str, str], float | None] = {}
    for (function, form), nodes in forms.items():
        key = function, form
        sessions[key] = opened(model_of(nodes, shape, constants), floating=form.startswith("float"))
        kernels[key] = [node.op_type for node in onnx.load(str(folder / "optimised.onnx")).graph.node]
        decibels[key] = None
        operator, inputs, _, _ = nodes[-1]
        if operator == "QuantizeLinear":
            before, scale, zero = inputs.split()
            if function not in exact:
                reals = [*nodes[:-1], ("Identity", before, "y", {})]
                exact[function] = opened(model_of(reals, shape, constants), floating=True).run(None, {"x": images})[0]
            dequantised = (sessions[key].run(None, {"x": images})[0] - np.float32(constants[zero])) * constants[scale]
            decibels[key] = _decibels(exact[function], dequantised)
    seconds: dict[Any, list[float]] = {key: [] for key in sessions}
    for _ in range(ROUNDS):
        for key, session in sessions.items():
            start = time.process_time()
            session.run(None, {"x": images})
            seconds[key].append(time.process_time() - start)
    for function, form in sessions:
        nanoseconds = statistics.median(seconds[function, form]) / images.size * 1e9
        results.add(
            {"function": function, "form": form},
            nanoseconds=nanoseconds,
            kernels=kernels[function, form],
            decibels=decibels[function, form],
        )
    notes = [
        f"one thread, a tensor of {'x'.join(map(str, shape))}, medians of {ROUNDS} interleaved rounds, processor time",
        "dB: signal to noise of the rounded result against the values that the first form rounds",
    ]
    results.publish(title, COLUMNS, results.newest(), notes=notes)


def _decibels(exact: np.ndarray[Any, Any], approximate: np.ndarray[Any, Any]) -> float:
    noise = float(np.square(exact.astype(np.float64) - approximate).sum())
    return 10 * math.log10(float(np.square(exact.astype(np.float64)).sum()) / max(noise, 1e-30))
