"""A strategy stops at the first student that reaches its goal, and ends with the nearest where none does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import faqd
from calibration.errors import UserError
from pipeline.artifacts import QuantisedStudent
from pipeline.config import ValidationConfig
from pipeline.report.course import Course, StepTaken
from pipeline.report.course_words import course_words, lost_words, step_words
from pipeline.report.gate import Gate
from pipeline.report.schema import Accuracy, Report
from pipeline.tools.kept import Kept
from pipeline.tools.progress import SILENT
from pipeline.validation.cheapest import Candidate, cheapest, check_goal, goal_words, step_of
from pipeline.validation.evaluation import Scored
from pipeline.validation.validate import Validated

NAMES = ("calibrated", "corrected", "reconstructed", "distilled")
Made = Callable[..., Report]


class Way:
    """Students that lose so many points each, of a limit of one, and what was made and judged of them."""

    def __init__(self, make_report: Made, *lost: float, undecided: bool = False, files: str = "abcd") -> None:
        self._make, self._lost, self._files, self._undecided = make_report, lost, files, undecided
        self.made, self.judged = list[str](), list[int]()

    def candidates(self) -> Iterator[Candidate]:
        for index, _ in enumerate(self._lost):
            self.made.append(NAMES[index])
            student = SimpleNamespace(number=index, compiled=SimpleNamespace(model=self._files[index].encode()))
            seconds = None if index == 1 else 30.0 * index
            yield Candidate(name=cast(Any, NAMES[index]), quantised=cast(QuantisedStudent, student), seconds=seconds)

    def judge(self, quantised: QuantisedStudent) -> Validated:
        index = cast(Any, quantised).number
        self.judged.append(index)
        lost = self._lost[index]
        gate = Gate(name="max-drop", limit=1.0, value=lost, passed=lost <= 1.0)
        if self._undecided:
            gate = Gate(name="max-drop", limit=1.0, value=lost, passed=None, undecided=True)
        score = 0.9 - lost / 100
        accuracy = Accuracy(metric="top1", images=9, teacher=0.9, simulated=score, oracle=score, runtime=score)
        status = "undecided" if self._undecided else "validated" if gate.passed else "gate-failed"
        report = self._make(gates=(gate,), accuracy=accuracy, status=status, seed=index)
        return Validated(report=report, golden=cast(Any, None), device_files={})

    def taken(self, place: Path, run: str = "one") -> tuple[int, Course]:
        """Number of the student that is the result, and the course that its report has."""
        place = place / "measured.json"
        quantised, validated = cheapest(self.candidates(), self.judge, place=Kept(place), run=run, progress=SILENT)
        number = cast(Any, quantised).number
        assert validated.report.seed == number and validated.report.strategy is not None
        return number, validated.report.strategy


def test_the_first_that_reaches_the_goal_is_the_last_that_is_made(make_report: Made, tmp_path: Path) -> None:
    way = Way(make_report, 20.0, 0.5, 0.0, 0.0)
    number, course = way.taken(tmp_path)
    assert (number, course.chosen, way.made, way.judged) == (1, "corrected", list(NAMES[:2]), [0, 1])
    first, second = course.steps
    assert (first.lost, first.over, first.reached, first.gained, first.seconds) == (20.0, 19.0, False, None, 0.0)
    assert (second.lost, second.over, second.reached, second.gained, second.seconds) == (0.5, -0.5, True, 19.5, None)
    assert (
        step_words(second)
        == "corrected: 89.50 %, 0.50 points lost (goal reached), gained 19.50 points, made with the former"
    )
    assert course_words(course) == "auto, at most 1 point lost: corrected is the cheapest that reaches it"


def test_where_none_reaches_it_the_nearest_is_the_result(make_report: Made, tmp_path: Path) -> None:
    way = Way(make_report, 20.0, 3.0, 2.0, 2.5)
    number, course = way.taken(tmp_path)
    assert (number, course.chosen, way.judged) == (2, "reconstructed", [0, 1, 2, 3])
    assert course_words(course) == (
        "auto, at most 1 point lost: the goal is NOT reached; reconstructed comes nearest and is taken"
    )
    assert course.steps[3].gained == -0.5 and step_words(course.steps[3]).endswith("gained -0.50 points, 1.5 minutes")


def test_of_equals_the_cheaper_is_the_result(make_report: Made, tmp_path: Path) -> None:
    number, course = Way(make_report, 20.0, 3.0, 2.0, 2.0).taken(tmp_path)
    assert (number, course.chosen) == (2, "reconstructed")


def test_training_that_was_not_kept_is_told_of_by_the_same_file(make_report: Made, tmp_path: Path) -> None:
    number, course = Way(make_report, 20.0, 3.0, 2.0, 2.0, files="abcc").taken(tmp_path)
    assert (number, course.chosen) == (3, "reconstructed")


def test_images_too_few_to_decide_end_it_where_they_show_no_loss(make_report: Made, tmp_path: Path) -> None:
    way = Way(make_report, 5.0, 0.1, 0.0, 0.0, undecided=True)
    number, course = way.taken(tmp_path)
    assert (number, way.judged) == (2, [0, 1, 2])
    assert course.result.reached is None and course_words(course).endswith(
        "reconstructed is taken, which loses nothing on images that cannot decide"
    )
    (tmp_path / "again").mkdir()
    _, course = Way(make_report, 5.0, 0.1, 0.2, 0.3, undecided=True).taken(tmp_path / "again")
    assert course_words(course).endswith("corrected is taken, which loses the least; undecided")


def test_what_is_measured_is_not_measured_again(make_report: Made, tmp_path: Path) -> None:
    first = Way(make_report, 20.0, 3.0)
    first.taken(tmp_path)  # as if it had been interrupted then
    second = Way(make_report, 20.0, 3.0, 2.0, 4.0)
    number, course = second.taken(tmp_path)
    assert (number, second.made, second.judged) == (2, list(NAMES), [2, 3])
    assert [step.lost for step in course.steps] == [20.0, 3.0, 2.0, 4.0]
    third = Way(make_report, 20.0, 3.0, 2.0, 4.0)
    assert third.taken(tmp_path) == (number, course) and third.judged == [2], "the result alone, for its report"
    other = Way(make_report, 20.0, 3.0, 2.0, 4.0)
    assert other.taken(tmp_path, run="with other limits") == (number, course) and other.judged == [0, 1, 2, 3]


def test_the_output_that_decides_is_named(make_report: Made) -> None:
    """The scored output loses nothing, and another one too much."""
    report = make_report(
        status="gate-failed",
        gates=(
            Gate(name="max-drop", limit=1.0, value=0.0, passed=True),
            Gate(name="max-drop:aux", limit=5.0, value=20.125, passed=False),
        ),
    )
    step = step_of(Candidate(name="calibrated", quantised=cast(QuantisedStudent, None)), report, None)
    assert (step.decided_by, step.over, step.reached) == ("aux", 15.125, False)
    assert lost_words(step).endswith(" points lost, aux 15.12 points over its limit (too much)")
    within = replace(step, over=-4.0, reached=True)
    assert lost_words(within).endswith(" points lost, aux 4.00 points within its limit (goal reached)")
    first = replace(
        report, gates=(replace(report.gates[0], value=3.0, passed=False), replace(report.gates[1], value=5.5))
    )
    assert step_of(Candidate(name="calibrated", quantised=cast(QuantisedStudent, None)), first, None).decided_by is None


def test_a_report_keeps_its_course(make_report: Made) -> None:
    step = StepTaken(name="calibrated", accuracy=None, lost=None, over=None, reached=None, suffices=False)
    report = make_report(strategy=Course(name="auto", limit=0.5, steps=(step,), chosen="calibrated"))
    assert Report.from_json(report.to_json()) == report
    assert "strategy" not in make_report().to_json()
    with pytest.raises(ValueError, match="chosen"):
        Course(name="auto", limit=0.5, steps=(step,), chosen="corrected")
    with pytest.raises(ValueError, match="accuracy"):
        replace(step, accuracy=2.0)


def test_a_goal_is_told_and_must_be_one() -> None:
    network = faqd.load_network("digits")
    outputs, scored = network.outputs, Scored.held_out(faqd.open_images("digits", network).split)
    count = len(scored.indices)
    assert goal_words(ValidationConfig(), outputs, scored) == (
        "--strategy auto: of calibrated, corrected, reconstructed and distilled the first is taken that loses at most 1"
        f" point (--max-drop, the default) of agreement with the float teacher on {count} images"
    )
    assert " at most 0.5 points (--max-drop) of " in goal_words(ValidationConfig(max_drop=0.5), outputs, scored)
    (name,) = (output.name for output in outputs)
    free = ValidationConfig(output_max_drop=(f"{name}=none",))
    with pytest.raises(UserError, match="--strategy auto has no goal to stop at: --output-max-drop leaves every"):
        check_goal(free, outputs)
    check_goal(ValidationConfig(), outputs)
