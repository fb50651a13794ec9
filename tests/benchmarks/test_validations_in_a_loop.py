"""A process that validates one bundle a thousand times: memory, file descriptors and threads stay what they were.

python3 -m pytest -m benchmark tests/benchmarks/test_validations_in_a_loop.py -s

FAQD_VALIDATIONS: how many (1,000 by default; figures are taken after every tenth). The first tenth is warm-up:
libraries keep what they have seen once. After it descriptors and threads are as many as before. Memory may grow by a
KiB for a validation in the median tenth, which a single step of an allocator does not move, and by 8 MiB in all.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import faqd
from tests.command_line import command
from tests.users_desk import at_a_desk, blocks_of_four

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Columns, Results

pytestmark = [
    pytest.mark.benchmark,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="figures are those of /proc/self"),
]

COUNT = int(os.environ.get("FAQD_VALIDATIONS", "1000"))
MARKS = sorted({max(1, COUNT * tenth // 10) for tenth in range(1, 11)})
GROWTH, STEPS = 1.0, 8192  # KiB a validation, KiB in all, of some 800,000 that a process with torch has
COLUMNS: Columns = {
    "runtime": lambda row: row["key"]["backend"],
    "validations": lambda row: row["key"]["validations"],
    "memory, MB": lambda row: f"{row['resident'] / 1024:.1f}",
    "descriptors": lambda row: row["descriptors"],
    "threads": lambda row: row["threads"],
    "seconds": lambda row: f"{row['seconds']:.0f}",
}
MODULE = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)
    )
"""


def resident() -> int:
    """Memory of this process that is in use, KiB."""
    gc.collect()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "reference"])
@pytest.mark.usefixtures("little_time_for_latency")
def test_validations_leave_nothing_behind(backend: str, tmp_path: Path, results: Results) -> None:
    with at_a_desk(tmp_path, "tiny", MODULE, blocks_of_four(64)):
        made = command(
            *("run", "--quiet", "--teacher", "python:tiny:build", "--data", "npz:photos.npz", "--image-size", "16"),
            *("--mean", "0.5", "--std", "0.5", "--steps", "0", "--backend", backend, "--output", "run"),
        )
    assert made.status in (0, 4), made.err  # too few images for a limit are as good a bundle
    began, figures = time.monotonic(), dict[int, dict[str, int]]()
    for done in range(1, COUNT + 1):
        assert faqd.validate(tmp_path / "run" / "bundle").exit_status in (0, 4)
        if done in MARKS:
            figures[done] = {"resident": resident(), "descriptors": descriptors(), "threads": threads()}
            key = {"backend": backend, "validations": done}
            results.add(key, **figures[done], seconds=time.monotonic() - began)
            print(f"{backend}, {done} of {COUNT}: {figures[done]}", flush=True)
    results.publish("Validations in a loop", COLUMNS, results.newest())
    warm, *later = figures.values()
    assert {(row["descriptors"], row["threads"]) for row in later} == {(warm["descriptors"], warm["threads"])}
    kept = [row["resident"] for row in (warm, *later)]
    growth = [after - before for before, after in pairwise(kept)]
    assert statistics.median(growth) <= GROWTH * COUNT / 10, growth
    assert kept[-1] - kept[0] <= STEPS, kept
