"""Latency of several models at once: their runs alternate, so that what slows the machine slows all of them alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backends.base import Array, DeviceTimed, Runner


@dataclass(frozen=True, kw_only=True)
class RunTimes:
    """Median and 90th percentile of single runs, milliseconds, over `samples` runs."""

    median_ms: float
    p90_ms: float
    samples: int


def interleaved_latency(
    runners: Mapping[str, Runner],
    images: Array,
    *,
    warm_up: int = 5,
    repeats: int = 200,
    least: int = 10,
    seconds: float = 4.0,
) -> dict[str, RunTimes]:
    """Time every runner on the same images, one run each in turn: A B A B.

    At most `warm_up` untimed rounds come first, at least one if any, within a quarter of the budget; then at most
    `repeats` timed rounds, ending early once `seconds` have passed for all runners together, but never before
    `least` rounds.
    """
    if not runners or repeats < 1 or least < 1:
        raise ValueError("at least one runner and one repeat are needed")
    start = time.perf_counter()
    for done in range(warm_up):
        if done and time.perf_counter() - start > seconds / 4:
            break
        for runner in runners.values():
            runner.run(images)
    times: dict[str, list[float]] = {name: [] for name in runners}
    start = time.perf_counter()
    for done in range(repeats):
        if done >= least and time.perf_counter() - start > seconds:
            break
        for name, runner in runners.items():
            times[name].append(_seconds(runner, images))
    return {name: latency_of(samples) for name, samples in times.items()}


def _seconds(runner: Runner, images: Array) -> float:
    """Time of one run: by the device's clock where it has one."""
    if isinstance(runner, DeviceTimed):
        return runner.device_seconds(images)
    begin = time.perf_counter()
    runner.run(images)
    return time.perf_counter() - begin


def latency_of(samples: Sequence[float]) -> RunTimes:
    """Summary of run times in seconds; the 90th percentile is the smallest time that 90 % of the runs stay within."""
    ordered = sorted(samples)
    p90 = ordered[math.ceil(0.9 * len(ordered)) - 1]
    return RunTimes(median_ms=statistics.median(ordered) * 1e3, p90_ms=p90 * 1e3, samples=len(ordered))
