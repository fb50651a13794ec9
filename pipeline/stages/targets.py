"""What the student is asked to say about an image: the teacher's logits, possibly averaged over its mirror image.

That mean is usually better than the network (see `pipeline.distillation.training.mirror`): a student that learns it,
without a label, may beat its teacher. Where left and right mean something (text, traffic signs), mirrored images
mislead; the teacher itself tells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from calibration.errors import UserError
from pipeline.artifacts import Lesson, Network
from pipeline.config.distillation import DistillationConfig
from pipeline.distillation.losses.of_outputs import mean_outputs
from pipeline.distillation.taps import tap_float
from pipeline.distillation.training.mirror import mean_of_mirrored, with_mirror_images
from pipeline.images.augmentation import choose_augmentation
from pipeline.images.data import ordered_batches
from pipeline.images.preprocessing import Preprocessing, normalise
from pipeline.images.split_images import SplitImages
from pipeline.networks.outputs.meaning import Output, primary
from pipeline.tools.source_text import batch_shape

# Ours: networks for natural images keep 93 to 97 % of their classes under mirroring on CIFAR-10; a set whose classes
# know left from right (mirrored digits, signs with a direction) stays far below.
LEAST_AGREEMENT = 0.9
_BATCH = 64


def flips_in_training(images: SplitImages, preprocessing: Preprocessing) -> bool:
    """Whether the training augmentation mirrors images at random."""
    return choose_augmentation(images.augmentation, images.source, preprocessing).flip


def can_mirror(outputs: Sequence[Output]) -> bool:
    """Whether every output decides on the whole image, [B, K]: maps, boxes and points would be mirrored themselves."""
    return all(output.holds != "values" and len(output.shape) == 1 for output in outputs)


def mirror_agreement(
    teacher: GraphModule, outputs: Sequence[Output], images: SplitImages, preprocessing: Preprocessing
) -> float:
    """Fraction of the held-out images (of labels: answers) that the teacher decides as it does their mirror images."""
    index, same, total = primary(outputs), 0, 0
    decided = outputs[index].decided
    with torch.no_grad():
        for batch in ordered_batches(
            images.source, images.held_out, preprocessing, batch_size=_BATCH, workers=images.workers
        ):
            inputs = normalise(batch.images, preprocessing)
            equal = decided(teacher(inputs)[index]) == decided(teacher(inputs.flip(3))[index])
            same, total = same + int(equal.sum()), total + equal.numel()
    return same / total


def lesson_for(
    teachers: tuple[Network, ...], images: SplitImages, settings: DistillationConfig | None
) -> tuple[Lesson, tuple[str, ...]]:
    """What a student learns from these teachers, their targets mirrored as asked for; and what to say about that.

    `settings` None: it is compared with them and learns nothing. Raises UserError where mirrored targets are asked for
    and make no sense.
    """
    if settings is None:
        return Lesson(teachers=teachers, images=images), ()
    mirror, said = _mirrors(teachers[0], images, settings.targets)
    return Lesson(teachers=teachers, images=images, mirror=mirror), said


def _mirrors(teacher: Network, images: SplitImages, asked: str) -> tuple[bool, tuple[str, ...]]:
    possible = can_mirror(teacher.outputs)
    if asked == "mirror" and not possible:
        other = next(output for output in teacher.outputs if output.holds == "values" or len(output.shape) != 1)
        raise UserError(
            f"--targets mirror needs a classifier: {other.name} {batch_shape(other.shape)} of {teacher.source} holds"
            f" {other.holds}, which mirror images would turn around"
        )
    possible = possible and teacher.preprocessing.mirrors
    if asked == "mirror" and not possible:
        raise UserError(
            "--targets mirror: the mirror image of one at the top left of its frame is none that the device sees; take"
            " --placement centre"
        )
    if asked != "auto":
        return asked == "mirror", ()
    if not possible or not flips_in_training(images, teacher.preprocessing):
        return False, ()
    agreement = mirror_agreement(teacher.folded, teacher.outputs, images, teacher.preprocessing)
    remark = f"the teacher gives {100 * agreement:.1f} % of held-out images the class of their mirror image"
    if agreement < LEAST_AGREEMENT:
        return False, (f"{remark}: too few to average its logits over both (--targets mirror does it all the same)",)
    return True, (f"{remark}: the student learns its mean over both (--targets image learns the image's alone)",)


def target_outputs(
    teacher: GraphModule, outputs: Sequence[Output] = (), *, mirror: bool
) -> Callable[[Tensor], list[Tensor]]:
    """The function from normalised images float32 [B, C, H, W] to the logits that the student is asked for.

    `outputs`: the teacher's own; left out, what it gives is taken for logits.
    """
    tapped = tap_float(teacher, [], outputs=outputs)

    def run(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            if not mirror:
                return list(tapped(images)[0])
            return [mean_of_mirrored(output)[: len(images)] for output in tapped(with_mirror_images(images))[0]]

    return run


def joint_targets(
    teachers: Sequence[GraphModule],
    outputs: Sequence[Sequence[Output]],
    *,
    mirror: bool,
    temperature: float | None,
) -> Callable[[Tensor], list[Tensor]]:
    """What the student is to say, in the form of the first teacher's outputs: its own, or the mean of several.

    `outputs`: of each teacher. The mean is that of logits, of classes softened by `temperature` (None: not).
    """
    each = [target_outputs(teacher, own, mirror=mirror) for teacher, own in zip(teachers, outputs, strict=True)]

    def run(images: Tensor) -> list[Tensor]:
        if len(teachers) == 1 and not mirror:
            with torch.no_grad():
                return list(teachers[0](images))
        logits = mean_outputs([targets(images) for targets in each], outputs[0], temperature=temperature)
        return [output.activated(values) for output, values in zip(outputs[0], logits, strict=True)]

    return run
