"""What the student is asked to say about an image: the teacher's logits, possibly averaged over its mirror image.

That mean is usually better than the network (see `pipeline.distillation.mirror`): a student that learns it, without a
label, may beat its teacher. Where left and right mean something (text, traffic signs), mirrored images mislead; the
teacher itself tells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from calibration.operators import static_shape
from pipeline.artifacts import UnlabelledImages
from pipeline.augmentation import choose_augmentation
from pipeline.data import ordered_batches
from pipeline.distillation.mirror import mean_of_mirrored, with_mirror_images
from pipeline.distillation.outputs import mean_outputs
from pipeline.outputs import Output
from pipeline.preprocessing import Preprocessing, normalise

# Ours: networks for natural images keep 93 to 97 % of their classes under mirroring on CIFAR-10; a set whose classes
# know left from right (mirrored digits, signs with a direction) stays far below.
LEAST_AGREEMENT = 0.9
_BATCH = 64


def flips_in_training(images: UnlabelledImages, preprocessing: Preprocessing) -> bool:
    """Whether the training augmentation mirrors images at random."""
    return choose_augmentation(images.augmentation, images.source, preprocessing).flip


def can_mirror(teacher: GraphModule) -> bool:
    """Whether every output is a vector of class logits [B, K]: dense outputs would be mirrored themselves."""
    output = next(node for node in teacher.graph.nodes if node.op == "output")
    return all(len(static_shape(value)) == 2 for value in output.args[0])


def mirror_agreement(teacher: GraphModule, images: UnlabelledImages, preprocessing: Preprocessing) -> float:
    """Fraction of the held-out images that the teacher gives the same class as their mirror images."""
    same = total = 0
    with torch.no_grad():
        for batch in ordered_batches(
            images.source, images.held_out, preprocessing, batch_size=_BATCH, workers=images.workers
        ):
            inputs = normalise(batch.images, preprocessing)
            same += int((teacher(inputs)[0].argmax(1) == teacher(inputs.flip(3))[0].argmax(1)).sum())
            total += len(inputs)
    return same / total


def target_outputs(teacher: GraphModule, *, mirror: bool) -> Callable[[Tensor], list[Tensor]]:
    """The function from normalised images float32 [B, C, H, W] to the logits that the student is asked for."""

    def run(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            if not mirror:
                return list(teacher(images))
            return [mean_of_mirrored(output)[: len(images)] for output in teacher(with_mirror_images(images))]

    return run


def joint_targets(
    teachers: Sequence[GraphModule], outputs: Sequence[Output], *, mirror: bool, temperature: float | None
) -> Callable[[Tensor], list[Tensor]]:
    """As `target_outputs`, of the mean of several teachers; `temperature` softens classes, None: the mean of logits."""
    each = [target_outputs(teacher, mirror=mirror) for teacher in teachers]
    return lambda images: mean_outputs([run(images) for run in each], outputs, temperature=temperature)
