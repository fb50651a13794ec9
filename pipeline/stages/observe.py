"""Place quantisers where the backend executes integers, and read their ranges from real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor
from torch.fx import GraphModule

from backends.base import Backend
from backends.facts.profile import Profile
from backends.facts.widths import Widths
from backends.placement.place import place
from calibration.graph.interface import set_free_size
from calibration.ranges.observation import choose_ranges, observe
from calibration.ranges.observers import RangeMethod
from calibration.rewrites.rewrite import rewritten
from calibration.simulation.correction import find_corrections
from pipeline.artifacts import Network, PreparedStudent
from pipeline.images.batches import images_at_once
from pipeline.images.calibration_images import calibration_batches, calibration_indices
from pipeline.images.preprocessing import Preprocessing
from pipeline.images.unlabelled import UnlabelledImages

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
    folded: GraphModule,
    backend: Backend,
    images: UnlabelledImages,
    preprocessing: Preprocessing,
    *,
    widths: Widths,
    method: RangeMethod,
    count: int,
    seed: int,
    step: Callable[[int, int], None],
) -> PreparedStudent:
    """Plan for the backend and calibrate on `count` training images drawn by the seed, prepared as on the device.

    `step(done, total)` hears of the progress. Raises UserError when nothing can be quantised.
    """
    plan = place(folded, backend.profile, widths)
    chosen = calibration_indices(images, count=count, seed=seed)
    batches = calibration_batches(
        images, chosen, preprocessing, batch_size=images_at_once(preprocessing, _BATCH), step=step
    )
    observers = observe(folded, plan, batches)
    return PreparedStudent(folded=folded, plan=plan, ranges=choose_ranges(observers, plan, method))


def corrected(
    student: PreparedStudent, images: UnlabelledImages, preprocessing: Preprocessing, *, count: int, seed: int
) -> PreparedStudent:
    """A calibrated student with its layers' means and spreads put right, on up to 64 of its calibration images.

    `count` and `seed` as given to `prepare`, which draws the same images by them.
    """
    chosen = calibration_indices(images, count=count, seed=seed)
    chosen = chosen[:: -(-len(chosen) // _CORRECTION_IMAGES)]  # from all over the source, whatever its order
    batches = calibration_batches(
        images,
        chosen,
        preprocessing,
        batch_size=images_at_once(preprocessing, _BATCH),
        step=lambda done, total: None,
    )
    found = find_corrections(student.network().eval(), student.folded, batches)
    return replace(student, corrections=found)
