"""Training within `--minutes`: steps that fit, beginnings anew, steps that become slower, chains of students."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from calibration.errors import UserError
from pipeline.artifacts import TrainedStudent
from pipeline.distillation.training.budget import Budget
from pipeline.distillation.training.learner import Learner
from pipeline.distillation.training.trainer import Trainer
from pipeline.stages.distill import distil, teach
from pipeline.tools.kept import Kept
from pipeline.tools.progress import SILENT, Progress
from tests.pipeline.stages.lessons import BATCH, Watched, made, same, train


def test_a_budget_sets_the_steps_and_is_kept(
    example: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve steps fit: a run that goes on takes as many, though the machine is slower now, and so does --steps 12."""
    changes: dict[str, Any] = {"steps": None, "minutes": 1.0, "affinity": "none"}
    checkpoint = Kept(tmp_path / "checkpoint.safetensors")

    def taught(progress: Progress, steps: int) -> TrainedStudent:
        plan_with(monkeypatch, steps)
        arguments, schedule = made(example, **changes)
        return teach(Trainer(*arguments, schedule=schedule), checkpoint=checkpoint, seconds=60, progress=progress)

    with pytest.raises(
        UserError, match=r"--minutes 1: a training step takes .* room for 9 steps, and 10 are the least"
    ):
        taught(SILENT, 9)
    assert not checkpoint.exists()
    watched = Watched(interrupt_at=1)
    with pytest.raises(KeyboardInterrupt):
        taught(watched, 12)
    assert any(
        re.fullmatch(r"--minutes 1: 12 of \d+ steps fit, .* s each; --steps 12( --patience \d+)? repeats them", line)
        for line in watched.said
    )
    assert any(line.startswith(f"batch {BATCH}, 12 steps: ") for line in watched.said)
    resumed = taught(SILENT, 11)
    assert resumed.distillation.steps == 12 and resumed.distillation.remarks[0].startswith("--minutes 1: 12 of ")
    (tmp_path / "typed").mkdir()
    typed = train(example, tmp_path / "typed", steps=12, affinity="none")
    assert typed.distillation.loss_final == resumed.distillation.loss_final
    assert typed.distillation.curve == resumed.distillation.curve


def plan_with(monkeypatch: pytest.MonkeyPatch, steps: int, *, step: float = 1.0) -> None:
    """Let every budget have room for so many steps of a second each, or of so many."""
    budget = Budget(seconds=0, minutes=1.0, step=step)
    seconds = budget.seconds_for(steps) + 1e-9

    def measured(self: Trainer, _: float) -> Budget:
        return replace(budget, seconds=seconds, students=self.settings.generations)

    monkeypatch.setattr(Trainer, "_measured", measured)


def lose(monkeypatch: pytest.MonkeyPatch, *, after: int, above: float) -> None:
    """Let training be lost after so many steps at every rate above one."""

    def lost(self: Learner, loss: float) -> str | None:
        assert self.attempt is not None
        return "diverged" if self.step == after and self.attempt.rates.weights > above else None

    monkeypatch.setattr(Learner, "lost", lost)


def taught_in_a_minute(example: SimpleNamespace, folder: Path, progress: Progress) -> TrainedStudent:
    arguments, schedule = made(example, steps=None, minutes=1.0, affinity="none")
    checkpoint = Kept(folder / "checkpoint.safetensors")
    return teach(Trainer(*arguments, schedule=schedule), checkpoint=checkpoint, seconds=60, progress=progress)


@pytest.mark.parametrize(("above", "steps"), [(1e-4, 20), (3e-5, 10)])
def test_training_that_begins_again_keeps_to_what_is_left(
    example: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, above: float, steps: int
) -> None:
    """Of 30 steps six are lost, and four that try the first each time; the rest is a schedule, also after a kill."""
    plan_with(monkeypatch, 30)
    lose(monkeypatch, after=6, above=above)
    (tmp_path / "killed").mkdir()
    whole = taught_in_a_minute(example, tmp_path, watched := Watched())
    attempts = (30 - steps) // 10
    assert watched.steps == [1, 2, 3, 4, 5] * attempts + list(range(1, steps + 1))
    assert (whole.distillation.backoffs, whole.distillation.steps) == (attempts, steps)
    assert watched.said[-1] == (
        f"diverged; starting again at learning rate {3e-4 * 0.3**attempts:.3g}, with {steps} steps, for which what is"
        " left of --minutes 1 has room"
    )
    times = "once" if attempts == 1 else "2 times"
    assert whole.distillation.remarks[0] == (
        f"--minutes 1: 30 steps were planned; training diverged {times}, and what was left had room for {steps}"
    )

    for killed_at in (4, 7):  # in the first attempt, and in the last
        with pytest.raises(KeyboardInterrupt):
            taught_in_a_minute(example, tmp_path / "killed", Watched(interrupt_at=killed_at))
        plan_with(monkeypatch, 12)  # what a slower machine would measure
    resumed = taught_in_a_minute(example, tmp_path / "killed", goes_on := Watched())
    assert goes_on.steps[0] == 8 and resumed.distillation == whole.distillation
    assert same(whole.network.state_dict(), resumed.network.state_dict())


def test_steps_that_become_slower_end_in_time(
    example: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty steps of a tenth of a millisecond were planned, and none is so quick."""
    plan_with(monkeypatch, 30, step=1e-4)
    record = taught_in_a_minute(example, tmp_path, watched := Watched()).distillation
    assert record.steps == watched.steps[-1] < 5 and record.planned_steps == 30
    # Steps may become slower still: then it ends even earlier.
    (said,) = (match for line in watched.said if (match := re.search(r"ends after (\d) steps instead of 30, to", line)))
    assert record.steps <= int(said[1]) < 5
    assert record.remarks[0] == (
        f"--minutes 1: 30 steps were planned and {record.steps} taken: they became slower than 0.0001 s each"
    )


def test_no_time_to_begin_again_ends_with_the_calibrated_network(
    example: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan_with(monkeypatch, 18)
    lose(monkeypatch, after=6, above=0)
    trained = taught_in_a_minute(example, tmp_path, watched := Watched())
    record = trained.distillation
    assert record.diverged and record.chosen == "calibrated" and record.backoffs == 0
    assert watched.said[-1] == (
        "diverged; given up, as what is left of --minutes 1 has room for 8 more steps: the calibrated network goes on"
    )
    assert [line for line in record.remarks if line.startswith(("WARNING", "--minutes"))] == [
        "WARNING: training diverged, at learning rate 0.0003, and --minutes had no room to begin again: the calibrated"
        " weights go on; --learning-rate lowers it"
    ]
    assert same(trained.network.state_dict(), example.prepared.network().state_dict())


def test_later_students_of_a_chain_learn_as_long_as_the_first(
    example: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (student, lesson, settings, execution), _ = made(example, steps=None, minutes=1.0, generations=2, affinity="none")
    rooms = iter((12, 11))
    taken = Trainer.keep_to

    def keep_to(self: Trainer, seconds: float) -> None:
        assert seconds < 30, "each has its half"
        plan_with(monkeypatch, next(rooms))
        taken(self, seconds)

    monkeypatch.setattr(Trainer, "keep_to", keep_to)
    last = distil(student, lesson, settings, execution)
    assert (last.distillation.planned_steps or last.distillation.steps) == 12
    assert last.distillation.remarks[0] == "--minutes 1: 12 steps, as many as the first of 2 students took"
