"""What each form of FAQD's affinity costs against N, C and k, up to the maps of 224 px images: CPU time and memory.

    FAQD_BENCHMARK_OUTPUT=DIR python3 -m pytest -m benchmark tests/benchmarks/test_affinity_cost.py -s

CPU time of this process on one thread, so that other work on the machine counts little. Memory: what torch's profiler
sees allocated at once at most during loss and gradient, beyond the maps themselves.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from pipeline.distillation.losses.cost import FORM_MACS, AffinityForm, choose_form
from pipeline.distillation.losses.table import AFFINITY_FORMS

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Columns, Results

pytestmark = pytest.mark.benchmark

# Height = width, channels: the stage ends of CIFAR ResNets, of ResNet-18 and ResNet-50 at 224 px, and a stem's map.
MAPS = ((32, 16), (16, 32), (8, 64), (56, 64), (28, 128), (14, 256), (7, 512), (56, 256), (14, 1024), (112, 64))
PROJECTIONS = (15, 60)
# Exact FA of larger maps takes minutes per image.
_MOST_POSITIONS = 56 * 56
_BATCH, _ROUNDS = 4, 3

COLUMNS: Columns = {
    "map": lambda row: f"{row['key']['side']}x{row['key']['side']}",
    "N": lambda row: row["key"]["side"] ** 2,
    "C": lambda row: row["key"]["channels"],
    "form": lambda row: row["key"]["form"] + (f", k = {row['key']['k']}" if row["key"]["form"] == "ffa" else ""),
    "MMAC per image": lambda row: f"{row['macs'] / 1e6:.1f}",
    "CPU ms per image": lambda row: f"{row['ms']:.2f}",
    "MiB at once": lambda row: f"{row['mib']:.1f}",
    "automatic choice": lambda row: "yes" if row["chosen"] else None,
}


def _cases() -> Iterator[tuple[int, int, AffinityForm, int]]:
    for side, channels in MAPS:
        for form in FORM_MACS:
            for k in PROJECTIONS if form == "ffa" else PROJECTIONS[:1]:
                if k <= side * side and not (form == "fa" and side * side > _MOST_POSITIONS):
                    yield side, channels, form, k


@pytest.mark.parametrize(("side", "channels", "form", "k"), list(_cases()))
def test_affinity_cost(side: int, channels: int, form: AffinityForm, k: int, results: Results) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    shape = (_BATCH, channels, side, side)
    student, teacher = (torch.randn(shape, generator=generator) for _ in range(2))

    def work() -> Tensor:
        leaf = student.detach().requires_grad_()
        loss = AFFINITY_FORMS[form](leaf, teacher, "squared", k, generator)
        torch.autograd.backward(loss)
        assert leaf.grad is not None
        return leaf.grad

    work()
    times = []
    for _ in range(_ROUNDS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    torch.set_num_threads(before)
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    # Every allocation and release in order; the events that the profiler sums up per operator lose the order.
    raw = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(raw, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    positions = side * side
    results.add(
        {"side": side, "channels": channels, "form": form, "k": k},
        macs=FORM_MACS[form](positions, channels, channels, k),
        ms=1000 * statistics.median(times) / _BATCH,
        mib=most / 2**20,
        chosen=k == PROJECTIONS[0]
        and form
        == choose_form(positions=positions, student_channels=channels, teacher_channels=channels, projections=k),
    )
    results.publish(
        "What the forms of the affinity loss cost",
        COLUMNS,
        results.newest(),
        notes=[
            f"loss and gradient of {_BATCH} images, one thread, median of {_ROUNDS} rounds of this process's CPU time",
            "MMAC: student forward and backward and teacher forward, as executed (distillation/losses/cost.py)",
            "automatic choice: among k = 15 and the exact forms",
        ],
    )
