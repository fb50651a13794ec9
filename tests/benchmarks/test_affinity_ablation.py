"""What the affinity losses add: logits only, + FA, + FFA, + exact Gram, at 8 and 4 bits, three seeds.

    FAQD_BENCHMARK_OUTPUT=DIR python3 -m pytest -m benchmark tests/benchmarks/test_affinity_ablation.py -s [-k "4bits"]

Every training run is kept in DIR/affinity_ablation.jsonl when it has ended, and is not repeated: an interrupted
benchmark goes on when started again. Delete the file to measure anew; the table says when rows come from code of
several states. FAQD_ABLATION_STEPS shortens all runs. Nothing but the last column but one reads a label.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from calibration.prepared import PreparedNetwork
from pipeline.data import open_evaluation, ordered_batches
from pipeline.defaults import resolve_device
from pipeline.preprocessing import normalise
from pipeline.stages.distill import distil

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Cifar, Columns, Ready, Results, Row

pytestmark = pytest.mark.benchmark

NETWORK = "resnet20"
SEEDS = (0, 1, 2)
BITS = (8, 4)
CALIBRATED, LOGITS = "calibrated, no training", "logits only"
FORMS = {LOGITS: "none", "+ FA": "fa", "+ FFA": "ffa", "+ exact Gram": "gram"}
"""Row of the table -> form of the affinity loss."""
_IDS = {LOGITS: "logits", "+ FA": "fa", "+ FFA": "ffa", "+ exact Gram": "gram", CALIBRATED: "calibrated"}
_BATCH = 128

TITLE = f"What affinity adds to logits: {NETWORK} on the shared CIFAR sample, squared forms"
COLUMNS: Columns = {
    "W/A": lambda row: f"{row['bits']}/8",
    "loss": lambda row: row["loss"],
    "seeds": lambda row: row["seeds"],
    "steps": lambda row: row["steps"],
    "held-out distillation loss, 1e-3": lambda row: _spread(row["held_out_loss"], 1e3, 3),
    "change to logits only, 1e-3": lambda row: _spread(row["change"], 1e3, 3, sign=True),
    "held-out agreement, %": lambda row: _spread(row["held_out_agreement"], 100, 2),
    "top-1, %": lambda row: _spread(row["top1"], 100, 2),
    "ms per step": lambda row: _spread(row["step_ms"], 1, 0),
}


# The seed varies slowest: a benchmark that was stopped early has whole comparisons.
@pytest.mark.parametrize("loss", [CALIBRATED, *FORMS], ids=lambda loss: _IDS[loss])
@pytest.mark.parametrize("bits", BITS, ids=lambda bits: f"{bits}bits")
@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed{seed}")
def test_affinity_forms(
    seed: int,
    bits: int,
    loss: str,
    cifar: Cifar,
    ready: Callable[..., Ready],
    results: Results,
    training_threads: int,
    tmp_path: Path,
) -> None:
    config = cifar.config(NETWORK, bits=bits, seed=seed)
    given = os.environ.get("FAQD_ABLATION_STEPS")
    settings = config.distillation
    common = {
        "threads": training_threads,
        "given_steps": given,
        **{name: getattr(settings, name) for name in ("batch_size", "learning_rate", "scale_learning_rate")},
        **{name: getattr(settings, name) for name in ("logit_loss", "temperature", "affinity_weight", "projections")},
    }
    key = {"bits": bits, "seed": seed, "loss": loss, **common}
    if results.find(key) is None:
        student = ready(config)
        steps = 0 if loss == CALIBRATED else student.schedule(int(given) if given else None).steps
        results.add(key, steps=steps, **_measured(student, loss, steps, cifar, tmp_path))
    kept = [row for row in results.rows() if row["key"].items() >= common.items()]
    results.publish(
        TITLE,
        COLUMNS,
        _table(kept),
        notes=[
            "mean over the seeds +- sample standard deviation; a seed draws the held-out images, those that "
            "calibrate, the batches and FFA's projections",
            f"held-out distillation loss: {settings.logit_loss} of the logits (T = {settings.temperature:g}) on "
            "unlabelled images that did not train; change: to logits only of the same seed, negative is better",
            "top-1: of the simulated network (equal to the runtime) on the labelled test images, reported only",
            f"affinity weight {settings.affinity_weight:g}, batch {settings.batch_size}, {training_threads} threads; "
            "ms per step: median of the whole step with reading and augmenting",
        ],
    )


def _measured(student: Ready, loss: str, steps: int, cifar: Cifar, folder: Path) -> Row:
    """Train unless `steps` is 0, and judge what comes out."""
    preprocessing = student.teacher.preprocessing
    ticks: list[float] = []
    trained = distil(
        student.prepared,
        student.teacher.folded,
        student.images,
        preprocessing,
        objective=student.objective(FORMS.get(loss, "none")),
        schedule=student.schedule(steps),
        taps=None,
        device=resolve_device(student.config.execution.device),
        fast=resolve_device(student.config.execution.device).type == "cuda",
        seed=student.config.execution.seed,
        checkpoint=folder / "checkpoint.safetensors",
        step=lambda done, total, figures: ticks.append(time.perf_counter()),
        say=print,
    )
    record = trained.distillation
    step_ms = [1000 * (after - before) for before, after in zip(ticks, ticks[1:], strict=False)]
    evaluation = open_evaluation(cifar.test, preprocessing)
    assert evaluation.labels is not None
    everything = np.arange(len(evaluation.images), dtype=np.int64)
    classes = partial(_classes, student)
    teacher_classes = classes(student.teacher.folded, student.images.source, student.images.held_out)
    student_classes = classes(trained.network, student.images.source, student.images.held_out)
    test_classes = classes(trained.network, evaluation.images, everything)
    return {
        "held_out_loss": record.loss_calibrated if record.loss_final is None else record.loss_final,
        "held_out_agreement": float((student_classes == teacher_classes).mean()),
        "top1": float((test_classes == evaluation.labels).mean()),
        "step_ms": statistics.median(step_ms) if step_ms else None,
        "chosen": record.chosen,
        "backoffs": record.backoffs,
    }
