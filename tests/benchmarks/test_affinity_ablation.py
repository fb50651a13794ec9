"""What the affinity losses add: logits only, + FA, + FFA, + exact Gram, at 8 and 4 bits, three seeds.

    FAQD_BENCHMARK_OUTPUT=DIR python3 -m pytest -m benchmark tests/benchmarks/test_affinity_ablation.py -s [-k "4bits"]

Every training run is kept in DIR/affinity_ablation.jsonl when it has ended, and is not repeated: an interrupted
benchmark goes on when started again. Delete the file to measure anew; the table says when rows come from code of
several states. FAQD_ABLATION_STEPS shortens all runs. Nothing but the last column but one reads a label.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.distillation.training.trainer import Trainer
from pipeline.stages.distill import teach
from pipeline.stages.targets import target_outputs
from pipeline.tools.kept import Kept
from pipeline.tools.progress import LineProgress

if TYPE_CHECKING:
    import faqd
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
    steps_asked = os.environ.get("FAQD_ABLATION_STEPS")
    settings = config.distillation
    common = {
        "threads": training_threads,
        "given_steps": steps_asked,
        "targets": settings.targets,
        **{name: getattr(settings, name) for name in ("batch_size", "learning_rate", "scale_learning_rate")},
        **{name: getattr(settings, name) for name in ("logit_loss", "temperature", "affinity_weight", "projections")},
    }
    key = {"bits": bits, "seed": seed, "loss": loss, **common}
    if results.find(key) is None:
        student = ready(config)
        steps = 0 if loss == CALIBRATED else student.schedule(int(steps_asked) if steps_asked else None).steps
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
            "held-out agreement: same class as the distillation target (--targets "
            f"{settings.targets}: the mean over the image and its mirror image where the teacher hardly minds)",
            f"weight of the affinity: {_weights(settings)}; batch {settings.batch_size}, {training_threads} threads; "
            "what each form costs per step: test_step_cost.py, side by side",
        ],
    )


def _weights(settings: faqd.DistillationConfig) -> str:
    """The weight of each form of the affinity at the first step."""
    weights = {
        loss: replace(settings, affinity=form).ramp("affinity_weight").start  # type: ignore[arg-type]  # checked at birth
        for loss, form in FORMS.items()
        if loss != LOGITS
    }
    return ", ".join(f"{loss} {weight:g}" for loss, weight in weights.items())


def _measured(student: Ready, loss: str, steps: int, cifar: Cifar, folder: Path) -> Row:
    """Train unless `steps` is 0, and judge what comes out."""
    trainer = Trainer(*student.training(FORMS.get(loss, "none")), schedule=student.schedule(steps))
    trained = teach(trainer, checkpoint=Kept(folder / "checkpoint.safetensors"), progress=LineProgress(print))
    record = trained.distillation
    scored = cifar.labelled(student.teacher)
    labels = torch.cat([labels for _, labels in scored]).numpy()
    own = student.opened.held_out
    held_out = torch.split(torch.stack([own[index] for index in range(len(own))]), _BATCH)
    target = target_outputs(student.teacher.folded, mirror=student.lesson.mirror)
    target_classes, student_classes = _classes(target, held_out), _classes(trained.network, held_out)
    test_classes = _classes(trained.network, [images for images, _ in scored])
    return {
        "held_out_loss": record.loss_calibrated if record.loss_final is None else record.loss_final,
        "held_out_agreement": float((student_classes == target_classes).mean()),
        "top1": float((test_classes == labels).mean()),
        "chosen": record.chosen,
        "backoffs": record.backoffs,
    }


def _classes(network: Callable[[Tensor], Sequence[Tensor]], batches: Iterable[Tensor]) -> NDArray[np.int64]:
    """Argmax of a network's first output for normalised images, float32 [B, C, H, W] each."""
    with torch.no_grad():
        classes: NDArray[np.int64] = torch.cat([network(images)[0].argmax(1) for images in batches]).numpy()
    return classes


def _table(rows: Sequence[Row]) -> list[Row]:
    """One row per bits and loss, each figure a list over the seeds; the newest row of each run counts."""
    runs = {(row["key"]["bits"], row["key"]["loss"], row["key"]["seed"]): row for row in rows}
    lines = []
    for bits in BITS:
        for loss in (CALIBRATED, *FORMS):
            by_seed = {seed: runs[bits, loss, seed] for seed in SEEDS if (bits, loss, seed) in runs}
            if not by_seed:
                continue
            line: Row = {
                "bits": bits,
                "loss": loss,
                "seeds": len(by_seed),
                "steps": next(iter(by_seed.values()))["steps"],
            }
            for name in ("held_out_loss", "held_out_agreement", "top1"):
                line[name] = [row[name] for row in by_seed.values() if row[name] is not None]
            pairs = [(row, runs.get((bits, LOGITS, seed))) for seed, row in by_seed.items() if loss != LOGITS]
            line["change"] = [row["held_out_loss"] - base["held_out_loss"] for row, base in pairs if base is not None]
            # The table says when and where of all runs that a line stands for.
            line["circumstances"] = [row["circumstances"] for row in by_seed.values()]
            lines.append(line)
    return lines


def _spread(values: Sequence[float], factor: float, digits: int, *, sign: bool = False) -> str | None:
    if not values:
        return None
    mean = f"{factor * statistics.mean(values):{'+' if sign else ''}.{digits}f}"
    return f"{mean} +- {factor * statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean
