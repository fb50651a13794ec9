"""The divergence watch: catches a collapse, and nothing else."""

from __future__ import annotations

import json
import math
import random

import pytest

from backends.device.bundle_check.records import from_json, to_json
from pipeline.distillation.training.divergence import DivergenceWatch, Watched


def verdicts(watch: DivergenceWatch, losses: list[float]) -> list[int]:
    """Steps at which the watch says that the run has diverged."""
    return [step for step, loss in enumerate(losses) if watch.observe(loss) is not None]


def noisy(levels: list[float], spread: float = 0.5, seed: int = 0) -> list[float]:
    """Losses around the levels, off by a log-normal factor."""
    source = random.Random(seed)
    return [level * math.exp(source.gauss(0, spread)) for level in levels]


def test_a_collapse_that_stays_is_noticed_within_a_window() -> None:
    losses = noisy([0.2] * 100 + [2.0] * 60)
    steps = verdicts(DivergenceWatch(), losses)
    assert steps and 100 < steps[0] <= 120
    assert steps[-1] == 159


@pytest.mark.parametrize("seed", range(20))
def test_noise_progress_and_single_spikes_are_not_a_collapse(seed: int) -> None:
    losses = noisy([0.5 * 0.99**step for step in range(400)], seed=seed)
    for step in range(30, 400, 40):
        losses[step : step + 3] = [500.0] * 3
    assert not verdicts(DivergenceWatch(), losses)
    assert not verdicts(DivergenceWatch(reference=0.5), losses)


def test_the_jolt_of_the_first_steps_is_not_a_collapse() -> None:
    jolt = [0.3, 4.0, 3.0, 2.0, 2.0, 1.5, 1.0, 0.8, 0.6, 0.5]
    losses = jolt + noisy([0.4] * 60)
    assert not verdicts(DivergenceWatch(reference=0.3), losses)
    assert not verdicts(DivergenceWatch(), losses)


# Medians of ten steps each, ResNet-20 on the CIFAR sample, KL at T = 4, batches of 128, Adam without warm-up:
# W8A8 and W4A8 at 1e-4 (91.3 and 91.4 % afterwards) and at 1e-3 (87.4 and 89.5 %).
MEASURED = {
    "w8 1e-4": (0.0047, [0.12, 0.08, 0.041, 0.026, 0.018, 0.013, 0.012, 0.011], False),
    "w4 1e-4": (0.4974, [0.424, 0.304, 0.205, 0.201, 0.171, 0.164, 0.164, 0.153], False),
    "w8 1e-3": (0.0047, [18.287, 11.343, 7.828, 5.262, 3.55, 2.63, 2.421, 1.98], True),
    "w4 1e-3": (0.4974, [16.818, 11.178, 7.158, 4.838, 3.228, 2.566, 2.27, 1.859], True),
}


@pytest.mark.parametrize(("start", "medians", "lost"), MEASURED.values(), ids=MEASURED)
def test_measured_runs_are_judged_rightly(start: float, medians: list[float], lost: bool) -> None:
    losses = [start, *noisy([median for median in medians for _ in range(10)], spread=0.2)]
    watch = DivergenceWatch(reference=start, floor=0.05 * 28.5)
    steps = verdicts(watch, losses)
    assert bool(steps) == lost
    if lost:
        assert steps[0] == 19, "at the end of the first window"


def test_one_loss_that_is_not_finite_is_enough() -> None:
    for loss in (math.nan, math.inf, -math.inf):
        watch = DivergenceWatch()
        assert watch.observe(1.0) is None
        reason = watch.observe(loss)
        assert reason is not None and reason.startswith("diverged at step 1: the loss is ")


def test_the_limit_and_the_line_that_says_so() -> None:
    watch = DivergenceWatch(window=3, factor=2.0)
    assert watch.limit is None
    assert [watch.observe(loss) for loss in (1.0, 3.0, 2.0, 4.0)] == [None] * 4
    assert watch.limit == 4.0  # twice the first window's median
    assert watch.observe(9.0) is None  # the median of 2, 4, 9 is at the limit
    assert watch.observe(5.0) == (
        "diverged at step 5: median loss of the last 3 steps 5, limit 4 (2 times the reference)"
    )
    assert DivergenceWatch(factor=2.0, reference=0.1, floor=3.0).limit == 6.0


def test_goes_on_from_its_saved_state() -> None:
    losses = noisy([0.2] * 50 + [2.0] * 30)
    whole = DivergenceWatch()
    expected = [whole.observe(loss) for loss in losses]
    for cut in (0, 10, 20, 60):
        first, second = DivergenceWatch(), DivergenceWatch()
        before = [first.observe(loss) for loss in losses[:cut]]
        second.restore(from_json(Watched, json.loads(json.dumps(to_json(first.state()))), where="watch"))
        assert before + [second.observe(loss) for loss in losses[cut:]] == expected


def test_settings_out_of_range_are_refused() -> None:
    for setting in (
        {"window": 0},
        {"factor": 1.0},
        {"factor": math.inf},
        {"reference": -1.0},
        {"reference": math.nan},
        {"floor": -1.0},
        {"floor": math.inf},
    ):
        with pytest.raises(ValueError, match="must be"):
            DivergenceWatch(**setting)
