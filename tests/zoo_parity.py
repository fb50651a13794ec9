"""Integer by integer: simulation, oracle and ONNX Runtime on networks of the list, and the reviewed counts of each.

tests/backends/zoo/test_parity.py measures the counts of the whole list and writes them; docs/zoo.md shows them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backends.facts.onnxruntime_rules import host_profile
from backends.onnx_file.exposed import exposed
from backends.onnxruntime.backend import OnnxRuntime
from backends.oracle.differences import Comparison, TensorDifference, kernel_of
from calibration.plan import Plan
from tests.chain import folded_graph, shallow_folded, steps_of
from tests.zoo import ZooNetwork

FILE = Path(__file__).resolve().parent / "backends" / "zoo" / "zoo_parity.json"
#: Images that ranges are chosen by, and others that are compared.
CALIBRATION_IMAGES, IMAGES = 16, 4

#: The one integer kernel whose sums ONNX Runtime adds up in another order, so that a tie may round the other way.
TIES = frozenset({"AveragePool"})


def counts(network: ZooNetwork, *, pixels: int, shallow: bool = False) -> dict[str, Any]:
    """What a network's comparison counts, ready for the reviewed table.

    Every rounded tensor of the runtime is held against what the oracle makes of the runtime's own integers before it,
    so each difference is counted where it arises, under the operator that is rounded there.
    """
    images = network.images(IMAGES, pixels=pixels, seed=8)
    calibration = network.images(CALIBRATION_IMAGES, pixels=pixels)
    if shallow:
        folded = shallow_folded(network, pixels=pixels)
    else:
        folded = folded_graph(network.build(pixels=pixels), images, source=network.source)
    profile = host_profile()
    steps = steps_of(folded, calibration, profile, method="mse", check=images)
    plan, prepared, backend = steps.plan, steps.prepared.eval(), OnnxRuntime(profile)
    model = backend.emit(steps.frozen())
    comparison = Comparison(model)
    with backend.runner(exposed(model, comparison.names).SerializeToString(), threads=1) as runner:
        outputs = [torch.from_numpy(np.asarray(values)) for values in runner.run(images.numpy())]
    kept = len(model.graph.output)
    rounded = dict(zip(comparison.names, outputs[kept:], strict=True))
    mine = comparison.add(images, rounded)
    fed, _ = comparison.oracle.run(images, instead={name: values.to(torch.int32) for name, values in rounded.items()})
    step = (calibration.amax() - calibration.amin()) / 255
    with torch.no_grad():
        simulated = list(prepared(images))
        (target, *_), (quantised, *_) = folded(calibration), prepared(calibration)
        (image_rounded, *_) = folded((calibration / step).round() * step)
    arising: dict[str, dict[str, int]] = {}
    for entry in comparison.tensors.values():
        if entry.arises:
            word = rounded_operator(comparison, entry, plan)
            row = arising.setdefault(word, {"integers": 0, "differing": 0, "largest": 0})
            row["differing"] += entry.own
            row["largest"] = max(row["largest"], entry.own_largest)
    for entry in comparison.tensors.values():
        word = rounded_operator(comparison, entry, plan)
        if word in arising:
            arising[word]["integers"] += entry.elements
    return {
        "pixels": pixels,
        "tensors": len(comparison.tensors),
        "integers": sum(entry.elements for entry in comparison.tensors.values()),
        "computed in float": bool(plan.float_nodes),
        "arising": dict(sorted(arising.items())),
        "outputs": {
            "runtime from its own integers": _equal(fed, outputs[:kept]),
            "runtime": _equal(mine, outputs[:kept]),
            "simulation": _equal(mine, simulated),
        },
        "sqnr of outputs": {
            "quantised": _decibels(target, quantised),
            "image alone rounded": _decibels(target, image_rounded),
        },
    }


def _decibels(exact: torch.Tensor, approximate: torch.Tensor) -> float:
    """Signal-to-noise ratio of an output."""
    noise = float((exact - approximate).square().sum())
    return round(10 * math.log10(float(exact.square().sum()) / noise), 1)


def _equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """Share of the values of all outputs that are equal to the bit."""
    same = sum(int((mine == other).sum()) for mine, other in zip(ours, theirs, strict=True))
    return same / sum(mine.numel() for mine in ours)


def rounded_operator(comparison: Comparison, entry: TensorDifference, plan: Plan) -> str:
    """What is rounded in a tensor: the nearest operator that the plan computes in float, else the integer kernel."""
    chain = kernel_of(comparison.oracle.view, entry.name)
    for node in chain:
        owner = max((name for name in plan.kinds if _is_part(node.name, name)), key=len, default="")
        if owner in plan.float_nodes:
            return f"{plan.kinds[owner]} in float"
    return next((node.op_type for node in chain if node.op_type in TIES), chain[-1].op_type if chain else "image")


def _is_part(written: str, graph_node: str) -> bool:
    return written == graph_node or written.startswith(f"{graph_node}_")


def faults(parity: dict[str, Any]) -> list[str]:
    """What of a network's counts is more than the known exceptions, in words; nothing where all is well."""
    said = []
    for word, row in parity["arising"].items():
        where = f"{word}: {row['differing']} of {row['integers']} integers differ by up to {row['largest']}"
        if row["largest"] > 1:
            said.append(f"{where}, and one step is the bound")
        elif word not in TIES and not word.endswith(" in float"):
            said.append(f"{where}, and no integer kernel but {', '.join(sorted(TIES))} may differ")
    exact = not parity["computed in float"]
    outputs = parity["outputs"]
    if exact and not parity["arising"] and outputs["runtime"] < 1:
        said.append(f"outputs: oracle and runtime are equal in {outputs['runtime']:.6f} of the values")
    if exact and outputs["runtime from its own integers"] < 1:
        said.append("outputs: the runtime's are not what its own integers give")
    if exact and outputs["simulation"] < 1:
        said.append(f"outputs: oracle and simulation are equal in {outputs['simulation']:.6f} of the values")
    return said


def read() -> dict[str, dict[str, Any]]:
    """Network -> its counts."""
    table: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    return table
