"""Place quantisers where the backend executes integers, and read their ranges from real images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from backends.base import Backend
from backends.facts.profile import Profile
from backends.facts.widths import Widths
from backends.placement.place import place
from calibration.graph.interface import set_free_size
from calibration.ranges.observation import choose_ranges, observe
from calibration.rewrites.rewrite import rewritten
from calibration.simulation.correction import FloatStatistics, find_corrections
from calibration.simulation.sums import check_first_sums
from pipeline.artifacts import Network, PreparedStudent
from pipeline.config.quantisation import QuantisationConfig
from pipeline.images.batches import images_at_once
from pipeline.images.calibration_images import calibration_batches, calibration_indices
from pipeline.images.split_images import SplitImages
from pipeline.tools.memory import freed_memory_kept
from pipeline.tools.progress import SILENT, Progress

_BATCH = 64
# Rounding's shifts are differences between two passes of the same images, which few of them tell well: with eight times
# as many a network's outputs came no nearer to the float one's.
_CORRECTION_IMAGES = 64


def suited(student: Network, profile: Profile, widths: Widths, *, check: Tensor | None = None) -> Network:
    """The student in the form that runtime and widths ask for; the same function, and the same object if it is so.

    `check`: normalised images on which each rewrite is held against the graph before it (see `rewritten`).
    """
    rows = profile.rewrites_for(widths)
    folded = rewritten(student.folded, rows, check=check)
    if folded is student.folded:
        return student
    other = None if student.other is None else rewritten(student.other, rows)
    if other is not None:
        set_free_size(folded, other)
    return replace(student, folded=folded, other=other)


def prepare(
    student: Network,
    backend: Backend,
    images: SplitImages,
    quantisation: QuantisationConfig,
    *,
    progress: Progress = SILENT,
) -> PreparedStudent:
    """Plan for the backend and calibrate on the images drawn for it, prepared as on the device.

    Raises UserError when nothing can be quantised.
    """
    plan = place(student.folded, backend.profile, quantisation.widths)
    check_first_sums(student.folded, plan)
    batches = _calibration(student, images, calibration_indices(images), progress)
    with freed_memory_kept():
        observers = observe(student.folded, plan, batches)
    ranges = choose_ranges(observers, plan, quantisation.range_method)
    return PreparedStudent(student=student, plan=plan, ranges=ranges, quantisation=quantisation)


def corrected(
    prepared: PreparedStudent, images: SplitImages, *, known: FloatStatistics | None = None
) -> PreparedStudent:
    """A calibrated student with its layers' means and spreads put right, on up to 64 of its calibration images.

    `known`: what its float network gives for them, kept from one student to the next.
    """
    chosen = calibration_indices(images)
    chosen = chosen[:: -(-len(chosen) // _CORRECTION_IMAGES)]  # from all over the source, whatever its order
    batches = _calibration(prepared.student, images, chosen, SILENT)
    network = prepared.network().eval()
    with freed_memory_kept():
        corrections = find_corrections(network, prepared.student.folded, batches, known=known)
    return replace(prepared, corrections=corrections)


def _calibration(
    student: Network, images: SplitImages, indices: NDArray[np.int64], progress: Progress
) -> Iterator[Tensor]:
    size = images_at_once(student.preprocessing, _BATCH)
    return calibration_batches(images, indices, student.preprocessing, batch_size=size, progress=progress)
