"""The cheapest student that reaches its goal: one after another is made and judged as the result would be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from calibration.errors import UserError
from pipeline.artifacts import QuantisedStudent
from pipeline.config.validation import ValidationConfig
from pipeline.networks.outputs.meaning import Output
from pipeline.report.course import Course, StepName, StepTaken
from pipeline.report.course_words import step_words
from pipeline.report.gate import Gate
from pipeline.report.schema import Report
from pipeline.tools.kept import Kept
from pipeline.tools.progress import Progress
from pipeline.tools.source_text import counted
from pipeline.validation.evaluation import Scored
from pipeline.validation.validate import Validated

# Of the gates of a report those that say what was lost.
_OF_ACCURACY = ("max-drop", "worst")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A student that a run may end with."""

    name: StepName
    quantised: QuantisedStudent
    seconds: float | None = None
    """That making it took; None where it was made along with the one before."""


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What an interrupted run has measured of its candidates."""

    of: str
    """The run that they are of: another one has other limits or other images."""
    steps: tuple[StepTaken, ...]


def check_goal(limits: ValidationConfig, outputs: Sequence[Output]) -> None:
    """Raise UserError where no output has a limit, so that there is nothing to stop at."""
    if all(limit is None for limit in _limits(limits, outputs)):
        raise UserError(
            "--strategy auto has no goal to stop at: --output-max-drop leaves every output without a limit; give one,"
            " or name another strategy"
        )


def goal_words(limits: ValidationConfig, outputs: Sequence[Output], scored: Scored) -> str:
    """What a run that stops at its goal says of it when it begins."""
    least = min(limit for limit in _limits(limits, outputs) if limit is not None)
    unsaid = "" if limits.max_drop is not None or limits.output_max_drop else ", the default"
    what = "agreement with the float teacher" if scored.evaluation.labels is None else "accuracy against the labels"
    return (
        f"--strategy auto: of calibrated, corrected, reconstructed and distilled the first is taken that loses at most"
        f" {least:g} point{'' if least == 1 else 's'} (--max-drop{unsaid}) of {what} on"
        f" {counted(len(scored.indices), 'image')}"
    )


def _limits(limits: ValidationConfig, outputs: Sequence[Output]) -> list[float | None]:
    return [limits.output_limits.get(output.name, limits.drop_limit) for output in outputs]


def cheapest(
    candidates: Iterable[Candidate],
    judge: Callable[[QuantisedStudent], Validated],
    *,
    place: Kept,
    run: str,
    progress: Progress,
) -> tuple[QuantisedStudent, Validated]:
    """The first candidate whose accuracy gates all pass, else the one that comes nearest, the earlier of equals.

    Its report says what became of each. No candidate is made behind the one that suffices; those that have been
    measured are kept at `place`, so that a `run` that goes on measures none of them again.
    """
    known, taken = _known(place, run), list[StepTaken]()
    best: tuple[StepTaken, QuantisedStudent, Validated | None] | None = None
    for candidate in candidates:
        validated: Validated | None = None
        step = known.get(candidate.name)
        if step is None:
            validated = judge(candidate.quantised)
            step = step_of(candidate, validated.report, taken[-1] if taken else None)
            place.save_json(Measurements(of=run, steps=(*taken, step)))
        taken.append(step)
        progress.say(step_words(step))
        if best is None or _over(step) < _over(best[0]):
            best = step, candidate.quantised, validated
        elif candidate.quantised.compiled.model == best[1].compiled.model:
            # Training that was not kept: the same file, of which there is more to tell.
            best = best[0], candidate.quantised, validated
        if step.suffices:
            break
    assert best is not None, "there is a student to judge"
    step, quantised, validated = best
    validated = validated or judge(quantised)
    limits = [gate.limit for gate in _gates(validated.report) if gate.limit is not None]
    course = Course(name="auto", limit=min(limits), steps=tuple(taken), chosen=step.name)
    return quantised, replace(validated, report=replace(validated.report, strategy=course))


def step_of(candidate: Candidate, report: Report, before: StepTaken | None) -> StepTaken:
    """What a report says of a candidate, beside the step before."""
    gates, accuracy = _gates(report), report.accuracy
    last = accuracy.oracle if accuracy.runtime is None else accuracy.runtime
    lost = None if last is None or accuracy.teacher is None else round(100 * (accuracy.teacher - last), 9)
    over = [
        (gate.value - gate.limit, gate.name.partition(":")[2])
        for gate in gates
        if gate.value is not None and gate.limit is not None
    ]
    most, output = max(over, default=(0.0, ""))
    known = bool(over) and len(over) == len(gates)
    reached = None if any(gate.passed is None for gate in gates) else True
    # Where images cannot decide, nothing more can be shown on them once they show no loss.
    shown = all(gate.passed or (gate.undecided and gate.value is not None and gate.value <= 0) for gate in gates)
    return StepTaken(
        name=candidate.name,
        accuracy=last,
        lost=lost,
        over=round(most, 9) if known else None,
        decided_by=output or None if known else None,
        reached=False if any(gate.passed is False for gate in gates) else reached,
        suffices=shown,
        gained=None if before is None or before.lost is None or lost is None else round(before.lost - lost, 9),
        seconds=None if candidate.seconds is None else round(candidate.seconds, 3),
    )


def _gates(report: Report) -> list[Gate]:
    return [gate for gate in report.gates if gate.name.partition(":")[0] in _OF_ACCURACY]


def _over(step: StepTaken) -> float:
    return math.inf if step.over is None else step.over


def _known(place: Kept, run: str) -> Mapping[StepName, StepTaken]:
    """What the same run has measured before it was interrupted."""
    if not place.exists():
        return {}
    kept = place.load_json(Measurements)
    return {step.name: step for step in kept.steps} if kept.of == run else {}
