"""Choose among the profiles that are exact on one processor: the fastest, unless it costs accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from backends.base import Backend
from backends.placement.place import place
from calibration.simulation.prepared import PreparedNetwork
from pipeline.artifacts import Network, PreparedStudent
from pipeline.images.batches import images_at_once
from pipeline.images.data import ordered_batches
from pipeline.images.preprocessing import normalise
from pipeline.images.split_images import SplitImages
from pipeline.networks.outputs.meaning import primary
from pipeline.tools.memory import freed_memory_kept
from pipeline.tools.source_text import counted

_BATCH = 64
# A difference of the means counts from here on: by chance alone it is larger in one case of forty.
_STANDARD_ERRORS = 2.0


def choose_profile(
    prepared: PreparedStudent,
    candidates: Sequence[Backend],
    teacher: Network,
    images: SplitImages,
    corrected: Callable[[PreparedStudent, SplitImages], PreparedStudent],
) -> PreparedStudent:
    """The student prepared for one of the candidates, which differ in their weights alone and are the fastest first.

    `corrected` puts the means and spreads of a calibrated student right, by its images: it is judged, and returned, as
    training would begin with it. Each is judged by how much of what the teacher decides for the held-out images its
    student decides alike (for an output of values: by the squared difference); a slower one is taken only where it
    gains more than two standard errors of the mean difference per image. `prepared` is the first candidate's, judged
    against none where there is no other.
    """
    if len(candidates) == 1:
        return corrected(prepared, images)
    students = [prepared]
    widths = prepared.quantisation.widths
    students += [replace(prepared, plan=place(prepared.folded, other.profile, widths)) for other in candidates[1:]]
    students = [corrected(student, images) for student in students]
    output = teacher.outputs[primary(teacher.outputs)]
    scores = _scores(students, teacher, images)
    best = 0
    for index in range(1, len(students)):
        gain = scores[index] - scores[best]
        if float(gain.mean()) > _STANDARD_ERRORS * _standard_error(gain):
            best = index
    means = [float(score.mean()) for score in scores]
    shown = [f"{-mean:.3g}" if output.holds == "values" else f"{100 * mean:.2f} %" for mean in means]
    names = [candidate.profile.variant for candidate in candidates]
    measured = ", ".join(f"{name} {value}" for name, value in zip(names, shown, strict=True))
    what = "mean squared difference" if output.holds == "values" else "decisions like the teacher's"
    # The oracle runs every profile alike: what differs in speed is a runtime.
    runs = candidates[0].name != "reference"
    first, later = ("the fastest, and", ", though slower") if runs else ("the first, as", "")
    why = f"{first} none is better beyond chance" if best == 0 else f"better beyond chance{later}"
    count = scores.shape[1]
    # Weights may be rounded otherwise behind this, which must not be read into these figures.
    otherwise = prepared.quantisation.resolved_rounding == "least-squares"
    when = "calibrated, weights rounded to the nearest integers" if otherwise else "calibrated only"
    note = f"{when}, {what} on {counted(count, 'held-out image')}: {measured}; {names[best]} is taken: {why}"
    return replace(students[best], notes=(*prepared.notes, note))


def _scores(students: Sequence[PreparedStudent], teacher: Network, images: SplitImages) -> Tensor:
    """Per student and held-out image how near it is to the teacher, more is better, float64 [S, images]."""
    index = primary(teacher.outputs)
    # The student may end in another activation than its teacher: a yes is above 0 in logits, above 0.5 after a sigmoid.
    output, own = teacher.outputs[index], students[0].student.outputs[index]
    networks = [student.network().eval() for student in students]

    def score(network: PreparedNetwork, inputs: Tensor, target: Tensor) -> Tensor:
        answer: Tensor = network(inputs)[index]
        if output.holds == "values":
            return -(answer - target).double().square().reshape(len(target), -1).mean(1)
        return (own.decided(answer) == output.decided(target)).double().reshape(len(answer), -1).mean(1)

    columns = []
    size = images_at_once(teacher.preprocessing, _BATCH)
    with freed_memory_kept(), torch.no_grad():
        for batch in ordered_batches(
            images.source, images.held_out, teacher.preprocessing, batch_size=size, workers=images.workers
        ):
            inputs = normalise(batch.images, teacher.preprocessing)
            target = teacher.folded(inputs)[index]
            columns.append(torch.stack([score(network, inputs, target) for network in networks]))
    return torch.cat(columns, 1)


def _standard_error(values: Tensor) -> float:
    """Of the mean of [N] independent values; infinite for a single one, which says nothing about chance."""
    return float(values.std()) / len(values) ** 0.5 if len(values) > 1 else float("inf")
