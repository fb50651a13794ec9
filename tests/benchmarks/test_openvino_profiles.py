"""OpenVINO with its own placement, with ONNX Runtime's, and beside ONNX Runtime: latencies, interleaved.

    python3 -m pytest -m benchmark tests/benchmarks/test_openvino_profiles.py -s

Networks have random weights, which changes no time. Each case is timed twice: by the clock, and by the processor time
of the process, which other work on the machine does not lengthen by waiting. OpenVINO hands every image to a thread of
its own, so that by the clock it loses far more to such work than ONNX Runtime, which computes in the caller's.
FAQD_BENCHMARK_SECONDS limits the timing of one case (6).
"""

from __future__ import annotations

import os
import statistics
import time
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from backends.facts.onnxruntime_rules import X64
from backends.facts.openvino_rules import PROFILE
from backends.facts.widths import Widths
from backends.onnx_file.emit import emit
from backends.onnxruntime.backend import OnnxRuntime
from backends.openvino.backend import OpenVINO
from backends.timing import interleaved_latency
from pipeline.networks.architectures.cifar_resnet import CifarResNet
from tests.chain import folded_graph, steps_of
from tests.zoo import ZOO

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.base import Array, Runner
    from tests.benchmarks.conftest import Columns, Results, Row

pytestmark = pytest.mark.benchmark
pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'faqd[openvino]'")

FLOAT, OWN, BORROWED = "OpenVINO, float", "OpenVINO, own profile", "OpenVINO, ONNX Runtime's profile"
OTHER_FLOAT, OTHER = "ONNX Runtime, float", "ONNX Runtime, own profile"
SECONDS, MOST_ROUNDS = 6.0, 400

COLUMNS: Columns = {
    "network": lambda row: f"{row['key']['network']}, {row['key']['pixels']} px, {row['key']['bits']} bits",
    **{
        name: lambda row, name=name: _milliseconds(row, name)  # type: ignore[misc]  # bound for each column
        for name in (FLOAT, OWN, BORROWED, OTHER_FLOAT, OTHER)
    },
    "own to ONNX Runtime's profile": lambda row: _ratio(row, BORROWED),
    "OpenVINO to ONNX Runtime": lambda row: _ratio(row, OTHER),
}


def _milliseconds(row: Row, name: str) -> str:
    return f"{row['processor'][name]:.3f} ({row['clock'][name]:.3f})"


def _ratio(row: Row, slower: str) -> str:
    return " ".join(
        shown.format(row[clock][slower] / row[clock][OWN])
        for clock, shown in (("processor", "{:.2f}x"), ("clock", "({:.2f}x)"))
    )


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("name", "pixels"), [("resnet20", 32), ("mobilenet_v2", 128)])
def test_profiles(name: str, pixels: int, bits: int, results: Results) -> None:
    images = torch.randn(16, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    folded = folded_graph(_network(name, pixels), images[:2], source=name)
    backends = {
        FLOAT: OpenVINO(),
        OWN: OpenVINO(),
        BORROWED: OpenVINO(),
        OTHER_FLOAT: OnnxRuntime(),
        OTHER: OnnxRuntime(),
    }
    plain = emit(folded, opset=21).SerializeToString()
    files = dict.fromkeys(backends, plain)
    for place_of, profile in ((OWN, PROFILE), (BORROWED, X64), (OTHER, X64)):
        steps = steps_of(folded, images, profile, widths=Widths(weights=bits), rewrites=False)
        form = replace(profile.form, packs_int4=bits <= 4)
        files[place_of] = emit(steps.frozen(), opset=21, form=form).SerializeToString()
    one, seconds = images[:1].numpy(), float(os.environ.get("FAQD_BENCHMARK_SECONDS") or SECONDS)
    with ExitStack() as stack:
        runners = {
            where: stack.enter_context(backend.runner(files[where], threads=1)) for where, backend in backends.items()
        }
        timed: dict[str, dict[str, Runner]] = {
            "clock": runners,
            "processor": {where: _ByProcessorTime(runner) for where, runner in runners.items()},
        }
        # In both orders: what ran before decides what lies in the caches.
        figures = {
            clock: [
                interleaved_latency(
                    {where: several[where] for where in order}, one, repeats=MOST_ROUNDS, seconds=seconds / 4
                )
                for order in (list(several), list(reversed(several)))
            ]
            for clock, several in timed.items()
        }
    results.add(
        {"network": name, "pixels": pixels, "bits": bits},
        **{
            clock: {where: statistics.median(times[where].median_ms for times in both) for where in runners}
            for clock, both in figures.items()
        },
        samples={clock: sum(times[OWN].samples for times in both) for clock, both in figures.items()},
    )
    results.publish(
        "Placements on OpenVINO, and both runtimes",
        COLUMNS,
        results.newest(),
        notes=["milliseconds of processor time (and by the clock) of one image on one thread, interleaved medians"],
    )


class _ByProcessorTime:
    """A runner whose time is that of the process's threads."""

    def __init__(self, runner: Runner) -> None:
        self.run = runner.run

    def device_seconds(self, images: Array) -> float:
        begin = time.process_time()
        self.run(images)
        return time.process_time() - begin


def _network(name: str, pixels: int) -> nn.Module:
    torch.manual_seed(0)
    networks: dict[str, Callable[[], nn.Module]] = {
        "resnet20": lambda: CifarResNet(3),
        "mobilenet_v2": lambda: ZOO["mobilenet_v2"].build(pixels=pixels),
    }
    return networks[name]()
