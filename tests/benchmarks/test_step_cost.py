"""What one training step costs: float with BatchNorm, ours, the affinity forms, and the whole distillation step.

    python3 -m pytest -m benchmark tests/benchmarks/test_step_cost.py -s [-k 8bits]

FAQD_BENCHMARK_REPEATS sets the timed rounds (25). All steps are interleaved, see the same batch of 128 images in memory
and use the same fused Adam; the float network is timed in both memory layouts and compared with at its faster one.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import faqd
from pipeline.distillation.training.trainer import Trainer
from pipeline.images.data import training_batches
from pipeline.tools.memory import freed_memory_kept
from pipeline.tools.randomness import generator_for

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Cifar, Columns, Ready, Results

pytestmark = pytest.mark.benchmark

NETWORK = "resnet20"
WARM_UP_ROUNDS = 3
ROUNDS = 25
_ENDLESS = 10**6  # steps of the schedule: none of those timed is its last

COLUMNS: Columns = {
    "W/A": lambda row: f"{row['key']['bits']}/8",
    "step": lambda row: row["key"]["step"],
    "median ms": lambda row: f"{row['median_ms']:.1f}",
    "p10 to p90": lambda row: f"{row['p10_ms']:.1f} to {row['p90_ms']:.1f}",
    "ratio": lambda row: f"{row['ratio']:.2f}",
    "goal": lambda row: row["goal"],
}

FLOAT_LAYOUTS = {
    "float with BatchNorm, contiguous": torch.contiguous_format,
    "float with BatchNorm, channels last": torch.channels_last,
}
OURS = "quantised: student forward, backward, update"
LOGITS = "with teacher and logit loss"
FORMS = {form: f"the same and affinity, {form}" for form in ("fa", "ffa", "gram")}
WHOLE = {
    False: "whole step: affinity of the cheapest form per map",
    True: "whole step, targets averaged over mirror images",
}
BATCH = "reading, augmenting, normalising one batch"


@pytest.mark.parametrize("bits", [8, 4], ids=["8bits", "4bits"])
def test_training_step(
    bits: int, cifar: Cifar, ready: Callable[..., Ready], results: Results, training_threads: int
) -> None:
    student = ready(cifar.config(NETWORK, bits=bits))
    steps = _steps(student, faqd.load_network(f"cifar:{NETWORK}", weights=cifar.weights(NETWORK)).module)
    rounds = int(os.environ.get("FAQD_BENCHMARK_REPEATS") or ROUNDS)
    with freed_memory_kept():  # as `faqd run` trains; the float step gains by it as well
        times = interleaved_times(steps, rounds=rounds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    reference = min(medians[name] for name in FLOAT_LAYOUTS)
    goals = {OURS: "<= 1.0", WHOLE[student.lesson.mirror]: "<= 1.6 (the default step)"}
    for name, values in times.items():
        ordered = sorted(values)
        results.add(
            {"bits": bits, "step": name, "threads": training_threads},
            median_ms=medians[name],
            p10_ms=ordered[len(ordered) // 10],
            p90_ms=ordered[(9 * len(ordered)) // 10],
            ratio=medians[name] / reference,
            goal=goals.get(name),
        )
    batch_size = student.schedule().batch_size
    results.publish(
        f"One training step of {NETWORK}, batch {batch_size}, {training_threads} threads",
        COLUMNS,
        [row for row in results.newest() if row["key"]["threads"] == training_threads],
        notes=[f"{rounds} interleaved rounds after {WARM_UP_ROUNDS}; ratio: median over the faster float layout's"],
    )


def interleaved_times(steps: dict[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call, one per round; who comes first changes from round to round."""
    names, times = list(steps), {name: list[float]() for name in steps}
    for number in range(-WARM_UP_ROUNDS, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            steps[name]()
            elapsed = time.perf_counter() - start
            if number >= 0:
                times[name].append(1000 * elapsed)
    return times


def _steps(student: Ready, module: nn.Module) -> dict[str, Callable[[], object]]:
    """Every step as a function without arguments, each with a network and an optimiser of its own."""
    p, schedule = student.teacher.preprocessing, student.schedule(_ENDLESS)
    (batch,) = training_batches(
        replace(student.images, workers=0), p, batch_size=schedule.batch_size, first_step=0, steps=1, seed=0
    )

    def trainer(affinity: str, *, mirror: bool = False) -> Trainer:
        prepared, lesson, settings, execution = student.training(affinity)
        execution = replace(execution, device="cpu", precision="float32")
        made = Trainer(prepared, replace(lesson, mirror=mirror), settings, execution, schedule=schedule)
        made.network.train()
        return made

    ours, logits, loading = trainer("none"), trainer("none"), trainer("none")
    forms = {form: trainer(form) for form in FORMS}
    whole = {mirror: trainer("auto", mirror=mirror) for mirror in WHOLE}
    images = ours.images.on_device(batch.images)
    targets = torch.randn((len(images), 10), generator=generator_for(0, "targets"))
    batches = loading.learner.batches()
    steps: dict[str, Callable[[], object]] = {}
    for name, layout in FLOAT_LAYOUTS.items():
        steps[name] = _float_step(module, images, targets, layout, schedule.learning_rate)
    steps[OURS] = lambda: ours.learner.optimiser.update(functional.mse_loss(ours.network(images)[0], targets), 0)
    steps[LOGITS] = lambda: logits.learner.update(images)
    for form, name in FORMS.items():
        steps[name] = partial(forms[form].learner.update, images)
    steps[WHOLE[False]] = lambda: whole[False].learner.update(images)
    steps[WHOLE[True]] = lambda: whole[True].learner.update(images[: len(images) // 2])  # it adds their mirror images
    steps[BATCH] = lambda: next(batches)
    return steps


def _float_step(
    module: nn.Module, images: Tensor, targets: Tensor, layout: torch.memory_format, learning_rate: float
) -> Callable[[], object]:
    module = copy.deepcopy(module).to(memory_format=layout).train()
    images = images.contiguous(memory_format=layout)
    optimiser = torch.optim.Adam(module.parameters(), lr=learning_rate, fused=True)
    return lambda: _update(module, optimiser, images, targets)


def _update(
    network: Callable[[Tensor], Tensor], optimiser: torch.optim.Optimizer, images: Tensor, targets: Tensor
) -> float:
    """Forward, mean squared error to fixed targets, backward, Adam: the cheapest loss, the same for all."""
    loss = functional.mse_loss(network(images), targets)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimiser.step()
    return float(loss.detach())
