"""Every network of the list in float, from faqd and from onnxruntime.quantization: structure, latency, agreement.

    python3 -m pytest -m benchmark tests/benchmarks/test_zoo_latency.py -s [-k "resnet18 or mobilenet"]

Networks have random weights, so agreement tells what rounding does to the list's own images and not what training
reaches. The figures go into the reviewed table and its page (tests/zoo_table.py) as well. FAQD_BENCHMARK_SECONDS limits
the timing of one case (4), FAQD_BENCHMARK_PIXELS is the size of images (128), FAQD_BENCHMARK_CASES which batch sizes
and threads are measured ("1,1 8,2"; four pairs; "none": kernels and agreement alone).
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from backends.facts.onnxruntime_rules import host_profile
from backends.onnx_file.emit import emit
from backends.onnxruntime.backend import OnnxRuntime
from backends.timing import interleaved_latency
from calibration.graph.operators import WEIGHTED, kind
from pipeline.setup.machine.circumstances import host
from tests import zoo_table
from tests.benchmarks.test_latency_against_peers import quantised_by_peer
from tests.chain import folded_graph, steps_of
from tests.zoo import ZOO

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from backends.base import Array, Runner
    from tests.benchmarks.conftest import Columns, Results

pytestmark = pytest.mark.benchmark

FLOAT, OURS, PEER = "float", "faqd", "onnxruntime.quantization"
CASES = [(1, 1), (1, 2), (8, 1), (8, 2)]
#: Networks on which the peer's inference of symbolic shapes fails.
UNKNOWN_SHAPES = frozenset({"swin_v2_t", "ghostnetv2_100", "edgenext_xx_small", "efficientformerv2_s0"})
SECONDS, PIXELS, MOST_ROUNDS = 4.0, 128, 200


def cases() -> list[tuple[int, int]]:
    """Batch sizes and threads to measure: FAQD_BENCHMARK_CASES such as "1,1 8,2", none, or all."""
    words = os.environ.get("FAQD_BENCHMARK_CASES", "").split()
    if words == ["none"]:
        return []
    chosen = [(int(batch), int(threads)) for batch, _, threads in (case.partition(",") for case in words)]
    return chosen or CASES


def _speed(case: str) -> Callable[[dict[str, Any]], str | None]:
    return lambda row: (
        f"{row['speedup'][case]:.2f}x, {row['to_peer'][case]:.2f}x the peer" if case in row["speedup"] else None
    )


COLUMNS: Columns = {
    "network": lambda row: row["key"]["network"],
    "integer layers": lambda row: row["integer"],
    "computed in float": lambda row: ", ".join(f"{count} {word}" for word, count in row["floats"].items()) or "-",
    "agreement": lambda row: f"{row['agreement']:.0f} %",
    **{f"batch {batch}, threads {threads}": _speed(f"{batch},{threads}") for batch, threads in CASES},
}


@pytest.mark.parametrize("name", ZOO)
def test_network(name: str, results: Results, tmp_path: Path) -> None:
    network, backend = ZOO[name], OnnxRuntime()
    pixels = int(os.environ.get("FAQD_BENCHMARK_PIXELS") or PIXELS)
    images = network.images(16, pixels=pixels)
    folded = folded_graph(network.build(pixels=pixels), images[:2], source=name)
    steps = steps_of(folded, images, host_profile(), method="mse")
    student, plan, prepared = steps.folded, steps.plan, steps.prepared.eval()
    float_model = emit(folded, opset=20).SerializeToString()
    files = {
        FLOAT: float_model,
        OURS: backend.emit(steps.frozen()).SerializeToString(),
        PEER: quantised_by_peer(float_model, images.numpy(), tmp_path, symbolic=name not in UNKNOWN_SHAPES),
    }
    layers = [node.name for node in student.graph.nodes if kind(node) in WEIGHTED]
    census, theirs = backend.census(files[OURS], layers), backend.census(files[PEER], []).histogram
    no_more = all(count <= theirs.get(kernel, 0) for kernel, count in census.histogram.items())
    with torch.no_grad():
        same = prepared(images)[0].argmax(-1) == folded(images)[0].argmax(-1)
    speedup: dict[str, float] = {}
    to_peer: dict[str, float] = {}
    milliseconds: dict[str, Any] = {}
    for batch, threads in cases():
        times = _times(backend, files, np.resize(images.numpy(), (batch, *images.shape[1:])), threads)
        case = f"{batch},{threads}"
        milliseconds[case] = times
        speedup[case], to_peer[case] = times[FLOAT] / times[OURS], times[PEER] / times[OURS]
    assert census.floating == ()
    agreement = 100 * float(same.float().mean())
    results.add(
        {"network": name, "pixels": pixels},
        integer=len(census.integer),
        floats=dict(Counter(plan.kinds[node] for node in plan.float_nodes).most_common()),
        agreement=agreement,
        speedup=speedup,
        to_peer=to_peer,
        milliseconds=milliseconds,
        kernels=dict(census.histogram),
        kernels_of_peer=dict(theirs),
    )
    _refresh(name, agreement, speedup, to_peer, no_more)
    rows = [row for row in results.newest() if row["to_peer"]]
    if not rows:
        return
    ratios = [ratio for row in rows for ratio in row["to_peer"].values()]
    mean = math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))
    results.publish(
        "Networks of the list on ONNX Runtime",
        COLUMNS,
        rows,
        notes=[
            "speed-up over the float model, and over onnxruntime.quantization U8S8 of the same float model; above 1 is "
            f"faster; geometric mean over the peer {mean:.3f}, least {min(ratios):.2f}",
            "random weights, calibrated and not trained; agreement with the float network's classes on the 16 images",
        ],
    )


def _refresh(name: str, agreement: float, speedup: dict[str, float], to_peer: dict[str, float], no_more: bool) -> None:
    """Put the figures into the reviewed table, beside those of other cases."""
    before = zoo_table.read()[name].get("figures", {})
    machine = host()
    figures = {
        "date": time.strftime("%Y-%m-%d"),
        "host": f"{machine['processor']}, {machine['cores']} cores, {machine['integer_instructions']}",
        "agreement": agreement,
        "no more kernels than the peer": no_more,
    }
    for word, measured in (("speedup", speedup), ("to peer", to_peer)):
        rounded = {case: round(ratio, 2) for case, ratio in measured.items()}
        figures[word] = dict(sorted({**before.get(word, {}), **rounded}.items()))
    zoo_table.update(name, figures=figures)


class _OnProcessor:
    """A runner whose time is that of the processor, all threads together: what else runs on the machine hardly counts.

    With one thread on a quiet machine it is the time on the wall.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def run(self, images: Array) -> list[Any]:
        return self._runner.run(images)

    def device_seconds(self, images: Array) -> float:
        start = time.process_time()
        self._runner.run(images)
        return time.process_time() - start


def _times(backend: OnnxRuntime, files: dict[str, bytes], images: np.ndarray, threads: int) -> dict[str, float]:
    """Median milliseconds of each file, over both orders in which the quantised ones can follow each other."""
    seconds = float(os.environ.get("FAQD_BENCHMARK_SECONDS") or SECONDS)
    with ExitStack() as stack:
        opened = {name: stack.enter_context(backend.runner(file, threads=threads)) for name, file in files.items()}
        runners: dict[str, Runner] = (
            {name: _OnProcessor(runner) for name, runner in opened.items()} if threads == 1 else opened
        )
        measured = [
            interleaved_latency(
                {name: runners[name] for name in order}, images, repeats=MOST_ROUNDS, seconds=seconds / 2
            )
            for order in ((FLOAT, OURS, PEER), (FLOAT, PEER, OURS))
        ]
    return {name: statistics.median(times[name].median_ms for times in measured) for name in files}
