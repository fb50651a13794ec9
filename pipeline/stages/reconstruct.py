"""Round the weights of a calibrated student so that its layers' outputs come nearest, before any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from calibration.simulation.reconstruction.block_by_block import BlockChange, Reconstructing, bytes_per_image
from calibration.simulation.reconstruction.blocks import blocks_of
from calibration.simulation.reconstruction.reconstruction import Reconstruction
from pipeline.artifacts import PreparedStudent
from pipeline.images.batches import images_at_once
from pipeline.images.calibration_images import calibration_batches, calibration_indices
from pipeline.images.split_images import SplitImages
from pipeline.tools.kept import Kept
from pipeline.tools.progress import SILENT, Progress
from pipeline.tools.randomness import generator_for
from pipeline.tools.source_text import counted

# Images that layers are rounded by, and what memory may be held for them [ours].
_IMAGES, _MEMORY = 512, 2 << 30
_BATCH = 64
#: The share of its outputs' variance that a calibrated network may miss, by so many images, before its roundings are
#: worth the time at 8 bits [ours]: the embedded network misses 0.006 %, ResNet-20 0.07 %, a detector that loses 0.9
#: points of mAP by it (FastestDet) 5 %.
MOST_MISSED, _SAMPLE = 0.01, 32
_STANDSTILL = 1e-6


@dataclass(frozen=True, kw_only=True)
class Remarks:
    """What a file says of the weights in it."""

    remarks: tuple[str, ...]


def reconstruct(
    student: PreparedStudent,
    images: SplitImages,
    *,
    seed: int,
    place: Kept | None = None,
    progress: Progress = SILENT,
) -> PreparedStudent:
    """A calibrated student whose weights are rounded by least squares, where asked for or needed; kept at `place`.

    From some of its calibration images, without labels. Raises UserError when the place cannot be written or read.
    """
    asked = student.quantisation.resolved_rounding
    if asked == "nearest":
        return student
    if place is not None and place.exists():
        tensors, record = place.load(Remarks)
        reconstruction = Reconstruction.of_tensors(tensors)
        if (other := reconstruction.not_in(student.network())) is not None:
            raise place.damaged(f"it speaks of {other}, which this network has not, or has otherwise")
        return _with(student, reconstruction, record.remarks)
    why: tuple[str, ...] = ()
    if asked == "auto":
        if (missed := missed_of_outputs(student, images)) <= MOST_MISSED:
            return student
        why = (
            f"calibrated alone the network misses {100 * missed:.2g} % of its outputs' variance: at 8 bits too its"
            " weights are rounded by least squares (--rounding nearest leaves them)",
        )
        progress.say(why[0])
    network = student.network(trainable=True)
    most = max(1, min(_IMAGES, _MEMORY // bytes_per_image(student.folded, blocks_of(student.folded, network))))
    indices = calibration_indices(images)
    chosen = indices[:: -(-len(indices) // most)]  # from all over the source, whatever its order
    shown = _images(student, images, chosen)
    work, changes = Reconstructing(network, student.folded, shown), list[BlockChange]()
    for index, block in enumerate(work.blocks):
        changes.append(work.reconstruct(block, generator_for(seed, "reconstruction", index)))
        progress.step(index + 1, len(work.blocks), before=changes[-1].before, after=changes[-1].after)
    reconstruction, remarks = work.changes(), (*why, *remarks_on_blocks(changes, count=len(shown)))
    if place is not None:
        place.save(reconstruction.tensors(), Remarks(remarks=remarks))
    return _with(student, reconstruction, remarks)


@torch.no_grad()
def missed_of_outputs(student: PreparedStudent, images: SplitImages) -> float:
    """What a student misses of its float outputs' variance over images; of several outputs the largest share.

    On some of its calibration images. 0 and more: 1 is what a student misses that gives each output's mean.
    """
    indices = calibration_indices(images)
    shown = _images(student, images, indices[:: -(-len(indices) // _SAMPLE)])
    network, folded, size = (
        student.network().eval(),
        student.folded,
        images_at_once(student.student.preprocessing, _BATCH),
    )
    shares = list[float]()
    for simulated, exact in zip(_outputs(network, shown, size), _outputs(folded, shown, size), strict=True):
        # Of one image all that differs from place to place is its variance.
        spread = exact - exact.mean(0) if len(exact) > 1 else exact - exact.mean()
        varied = float(spread.square().sum())
        # What stands all but still (less than a step of 8 bits moves by) has no variance to be missed.
        if varied > _STANDSTILL * float(exact.square().sum()):
            shares.append(float((simulated - exact).square().sum()) / varied)
    return max(shares, default=0.0)


def _outputs(network: nn.Module, images: Tensor, size: int) -> list[Tensor]:
    """All outputs of images, float64 [N, ...]."""
    parts = [network(batch) for batch in torch.split(images, size)]
    return [torch.cat(outputs).double() for outputs in zip(*parts, strict=True)]


def _images(student: PreparedStudent, images: SplitImages, chosen: NDArray[np.int64]) -> Tensor:
    """Calibration images as the network takes them, float32 [N, C, H, W]."""
    preprocessing = student.student.preprocessing
    size = images_at_once(preprocessing, _BATCH)
    return torch.cat(list(calibration_batches(images, chosen, preprocessing, batch_size=size, progress=SILENT)))


def remarks_on_blocks(changes: Sequence[BlockChange], *, count: int) -> tuple[str, ...]:
    """What there is to say of it: how far blocks of layers are from their float outputs, before and after."""
    layers = sum(change.layers for change in changes)
    if not layers:
        return ()
    before, after = (sum(errors) / len(changes) for errors in zip(*((c.before, c.after) for c in changes), strict=True))
    return (
        f"the weights of {counted(layers, 'layer')} are rounded by least squares on {counted(count, 'image')}: what"
        f" blocks of layers miss of their float outputs' variance has come down from {100 * before:.2g} to"
        f" {100 * after:.2g} %",
    )


def _with(student: PreparedStudent, reconstruction: Reconstruction, remarks: tuple[str, ...]) -> PreparedStudent:
    return replace(student, reconstruction=reconstruction, notes=(*student.notes, *remarks))
