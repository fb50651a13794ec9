"""The images that a run asks for: of a source or generated, what is held out, and how their targets are mirrored."""

from __future__ import annotations

import torch

from calibration.errors import UserError
from pipeline.artifacts import Network, load_tensors, save_tensors
from pipeline.config import NO_DATA, RunConfig
from pipeline.images.batches import suggested_workers
from pipeline.images.data import open_images, open_labelled, split_held_out
from pipeline.images.image_facts import check_single, look, readable_split
from pipeline.images.sources.arrays import ArraySource
from pipeline.images.unlabelled import UnlabelledImages
from pipeline.networks.outputs.class_order import in_network_order
from pipeline.networks.outputs.meaning import primary
from pipeline.setup.machine.memory import freed_memory_kept
from pipeline.setup.state import RunFolder
from pipeline.stages.imagine import imagine, preview
from pipeline.stages.targets import LEAST_AGREEMENT, can_mirror, flips_in_training, mirror_agreement
from pipeline.tools.progress import Progress


def images_of(config: RunConfig, teacher: Network) -> UnlabelledImages:
    """The images of `--data`, apart in those that train and those that are held out; labels where a loss reads them.

    Raises UserError for whatever is wrong with the source.
    """
    labels, label_order = None, ""
    if config.distillation.label_weight is None:
        source = open_images(config.data.source, teacher.preprocessing)
    else:
        labelled = open_labelled(config.data.source, teacher.preprocessing)
        source, main = labelled.images, teacher.outputs[primary(teacher.outputs)]
        if main.is_classifier:  # no other has a loss that looks at labels
            labelled, order = in_network_order(labelled, main, source=config.data.source, flag="data")
            if labelled.folders is not None:
                source.notes += (f"--data {config.data.source}: {order.known_by}",)
            label_order = order.known_by
        labels = labelled.labels
    check_single(source)
    training, held_out = split_held_out(len(source), config.execution.seed, count_held_out=config.data.held_out_images)
    training, held_out = readable_split(source, training, held_out)
    source.notes += look(source, teacher.preprocessing)
    workers = config.data.workers
    if workers is None:
        workers = suggested_workers(source, teacher.preprocessing)
    return UnlabelledImages(
        source=source,
        training=training,
        held_out=held_out,
        workers=workers,
        augmentation=config.data.augmentation,
        labels=labels,
        label_order=label_order,
    )


def imagined(config: RunConfig, folder: RunFolder, teacher: Network, progress: Progress) -> UnlabelledImages:
    """Images generated from the teacher, or those that an interrupted run had generated."""
    if config.output.resume and folder.generated.exists():
        tensors, record = load_tensors(folder.generated)
        pixels, remarks = tensors["images"].numpy(), tuple(record["remarks"])
    else:
        with freed_memory_kept():
            pixels, remarks = imagine(
                teacher,
                steps=config.data.generator_steps,
                count=config.data.generated_images,
                seed=config.execution.seed,
                step=lambda done, total, figures: progress.step(done, total, **figures),
            )
        save_tensors(folder.generated, {"images": torch.from_numpy(pixels)}, {"remarks": remarks})
    source = ArraySource(NO_DATA, pixels)
    source.notes = remarks
    training, held_out = split_held_out(len(source), config.execution.seed, count_held_out=config.data.held_out_images)
    return UnlabelledImages(
        source=source,
        training=training,
        held_out=held_out,
        workers=0,
        augmentation=config.data.augmentation,
        preview=preview(pixels),
    )


def mirrored_targets(config: RunConfig, teacher: Network, images: UnlabelledImages) -> tuple[bool, tuple[str, ...]]:
    """Whether targets are averaged over mirror images, and what to say about it."""
    wanted, possible = config.distillation.targets, can_mirror(teacher.outputs)
    if wanted == "mirror" and not possible:
        other = next(output for output in teacher.outputs if output.holds == "values" or len(output.shape) != 1)
        raise UserError(
            f"--targets mirror needs a classifier: {other.name} {['batch', *other.shape]} of {teacher.source} holds"
            f" {other.holds}, which mirror images would turn around"
        )
    possible = possible and teacher.preprocessing.mirrors
    if wanted == "mirror" and not possible:
        raise UserError(
            "--targets mirror: the mirror image of one at the top left of its frame is none that the device sees; take"
            " --placement centre"
        )
    if wanted != "auto":
        return wanted == "mirror", ()
    if not possible or not flips_in_training(images, teacher.preprocessing):
        return False, ()
    agreement = mirror_agreement(teacher.folded, teacher.outputs, images, teacher.preprocessing)
    found = f"the teacher gives {100 * agreement:.1f} % of held-out images the class of their mirror image"
    if agreement < LEAST_AGREEMENT:
        return False, (f"{found}: too few to average its logits over both (--targets mirror does it all the same)",)
    return True, (f"{found}: the student learns its mean over both (--targets image learns the image's alone)",)
