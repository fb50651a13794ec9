"""What there is to say of a strategy and its steps, on the terminal and on the page."""

from __future__ import annotations

from pipeline.report.course import Course, StepTaken
from pipeline.report.wording import percentage


def course_words(course: Course) -> str:
    """Return in one line what a strategy came to."""
    limit, result = f"at most {course.limit:g} point{'' if course.limit == 1 else 's'} lost", course.result
    if result.reached:
        return f"{course.name}, {limit}: {course.chosen} is the cheapest that reaches it"
    if result.reached is None:
        nothing = "which loses nothing on images that cannot decide"
        why = nothing if result.suffices else "which loses the least; undecided"
        return f"{course.name}, {limit}: {course.chosen} is taken, {why}"
    return f"{course.name}, {limit}: the goal is NOT reached; {course.chosen} comes nearest and is taken"


def step_words(step: StepTaken) -> str:
    """Return in one line what a step lost, what it gained and how long it took."""
    return f"{step.name}: {', '.join(part for part in (lost_words(step), gain_words(step), time_words(step)) if part)}"


def lost_words(step: StepTaken) -> str:
    """Return what a step's student gives, what it has lost, and whether that is little enough."""
    outcome = {True: "goal reached", False: "too much", None: "undecided"}[step.reached]
    lost = "" if step.lost is None else f", {step.lost:.2f} points lost"
    if step.decided_by is not None and step.over is not None:
        lost += f", {step.decided_by} {abs(step.over):.2f} points {'over' if step.over > 0 else 'within'} its limit"
    return f"{percentage(step.accuracy)}{lost} ({outcome})"


def gain_words(step: StepTaken) -> str:
    """Return what a step has gained against the one before; nothing of the first."""
    return "" if step.gained is None else f"gained {step.gained:.2f} points"


def time_words(step: StepTaken) -> str:
    """Return how long a step took to make."""
    if step.seconds is None:
        return "made with the former"
    return f"{step.seconds:.1f} s" if step.seconds < 90 else f"{step.seconds / 60:.1f} minutes"
