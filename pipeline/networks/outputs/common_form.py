"""Two networks that answer alike may say it in two forms, one in logits and one in probabilities: one form for both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from pipeline.networks.outputs.meaning import Output

Computation = Callable[[Tensor], list[Tensor]]


def in_student_form(teacher: Sequence[Output], student: Sequence[Output] | None) -> tuple[Output, ...]:
    """The teacher's outputs with the activations that the student's end in; as they are without a student's own."""
    return tuple(
        replace(output, activation=own.activation, shown=own.shown, negligible=min(output.negligible, own.negligible))
        for output, own in zip(teacher, student or teacher, strict=True)
    )


def answers_in_form(judged: Sequence[Output], own: Sequence[Output], run: Computation) -> Computation:
    """The answers of a network whose outputs are `own`, in the form of those that are judged.

    Without it a yes would be one above 0.5 in logits too.
    """

    def converted(images: Tensor) -> list[Tensor]:
        return [
            output.in_own_form(values, other) for output, other, values in zip(judged, own, run(images), strict=True)
        ]

    return converted
