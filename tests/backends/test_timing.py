"""Interleaved timing: runs alternate, warm-ups are not counted, the budget ends it, percentiles are by hand."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from backends.timing import RunTimes, interleaved_latency, latency_of

IMAGES = np.zeros((1, 3, 4, 4), np.float32)


class Sleeper:
    """A runner that takes a known time and writes down when it ran."""

    def __init__(self, name: str, seconds: float, diary: list[str]) -> None:
        self.name, self.seconds, self.diary = name, seconds, diary

    def run(self, images: Any) -> list[Any]:
        self.diary.append(self.name)
        time.sleep(self.seconds)
        return [images]


def test_runs_alternate_after_the_warm_up() -> None:
    diary: list[str] = []
    runners = {"a": Sleeper("a", 0.0, diary), "b": Sleeper("b", 0.0, diary)}
    latencies = interleaved_latency(runners, IMAGES, warm_up=2, repeats=5)
    assert diary == ["a", "b"] * 7
    assert latencies["a"].samples == latencies["b"].samples == 5


def test_the_slower_one_is_slower() -> None:
    runners = {"fast": Sleeper("fast", 0.001, []), "slow": Sleeper("slow", 0.004, [])}
    latencies = interleaved_latency(runners, IMAGES, warm_up=0, repeats=20)
    assert 1.0 <= latencies["fast"].median_ms < latencies["slow"].median_ms
    assert all(latency.median_ms <= latency.p90_ms for latency in latencies.values())


def test_the_budget_ends_it_but_not_before_the_least() -> None:
    start = time.perf_counter()
    latencies = interleaved_latency({"a": Sleeper("a", 0.01, [])}, IMAGES, warm_up=0, repeats=10_000, seconds=0.1)
    assert 10 <= latencies["a"].samples < 30
    assert time.perf_counter() - start < 2
    latencies = interleaved_latency({"a": Sleeper("a", 0.01, [])}, IMAGES, warm_up=0, repeats=50, least=4, seconds=0.0)
    assert latencies["a"].samples == 4


def test_a_warm_up_costs_a_quarter_of_the_budget_at_most() -> None:
    diary: list[str] = []
    interleaved_latency({"a": Sleeper("a", 0.05, diary)}, IMAGES, warm_up=100, repeats=1, seconds=0.2)
    assert 2 <= len(diary) <= 4


def test_percentiles_by_hand() -> None:
    assert latency_of([0.003, 0.001, 0.002]) == RunTimes(median_ms=2.0, p90_ms=3.0, samples=3)
    ten = latency_of([index / 1000 for index in range(1, 11)])
    assert ten.median_ms == pytest.approx(5.5) and ten.p90_ms == pytest.approx(9.0)


def test_nothing_to_time_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="at least one runner"):
        interleaved_latency({}, IMAGES)
