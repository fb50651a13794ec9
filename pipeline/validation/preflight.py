"""What can be known to go wrong is found before anything takes time: a dry pass over inputs, machine and disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends import BACKENDS
from backends.onnx_file.scratch import scratch_folder
from calibration.errors import UserError
from pipeline.artifacts import Network
from pipeline.config.distillation import DistillationConfig
from pipeline.config.execution import ExecutionConfig
from pipeline.config.quantisation import QuantisationConfig
from pipeline.config.validation import EngineConfig, ValidationConfig
from pipeline.distillation.training.schedule import resolve_device
from pipeline.images.data import EvaluationSet, ImageSource
from pipeline.images.loading import Reader, none_readable
from pipeline.images.preprocessing import Preprocessing
from pipeline.images.sources.arrays import ArraySource
from pipeline.images.split_images import SplitImages
from pipeline.networks.checkpoints.files import split_part
from pipeline.networks.outputs.class_order import read_class_names
from pipeline.networks.outputs.meaning import Output, primary
from pipeline.setup.identity import images_identity, network_identity, sample
from pipeline.setup.networks import Networks
from pipeline.setup.own_files import STATE
from pipeline.tools.atomic import check_place
from pipeline.validation.evaluation import Scored, evaluation_of
from pipeline.validation.label_tally import check_labels


def check_machine(
    weights: Sequence[Path | None], limits: ValidationConfig, engine: EngineConfig, execution: ExecutionConfig
) -> None:
    """Check what is quickly known: the files that flags name, the device that trains, where kernel timings go.

    `weights`: of the networks that are read from files.

    Raises:
        UserError: there is no such file or device, or a place that cannot be written.
    """
    for file in weights:
        if file is not None and not (path := split_part(file)[0]).exists():
            raise UserError(f"weights {path}: there is no such file")
    if limits.classes is not None:
        read_class_names(limits.classes)
    resolve_device(execution.device)
    if engine.timing_cache is not None:
        check_place(engine.timing_cache, flag="--timing-cache")


def scored_on(source: str | None, images: SplitImages | None, teacher: Network) -> Scored | None:
    """The images that a run is scored on, checked where they are others than those that it learns on.

    `source`: of `--eval-data`, None: those held out of `images`. None where these are still to be generated.

    Raises:
        UserError: they cannot be opened, none can be read, or labels are no classes of the network.
    """
    if source is None:
        return None if images is None else Scored.held_out(images)
    scored = evaluation_of(source, teacher)
    check_scored(scored.evaluation, teacher.outputs, teacher.preprocessing)
    return scored


def identities(networks: Networks, images: SplitImages | None) -> dict[str, str]:
    """What each flag of an input names: networks and images by what is in them."""
    named = {"teacher": network_identity(networks.teachers)}
    if networks.student is not networks.teacher:
        named["student"] = network_identity([networks.student])
    named["data"] = "generated" if images is None else images_identity(images)
    return named


def check_learnable(images: SplitImages, teacher: Network) -> None:
    """Check images to learn on, and labels if a loss is to read them.

    Raises:
        UserError: none can be read, or a label is no class of the network.
    """
    check_readable(images.source, teacher.preprocessing)
    check_taught_labels(images.labels, teacher)


def check_readable(source: ImageSource, preprocessing: Preprocessing) -> None:
    """Decode and prepare some images from all over a source, and more of them until one can be read.

    Raises:
        UserError: none can, or one is none that the network takes.
    """
    reader = Reader(source, preprocessing)
    if reader.array is not None:
        return  # stored as the network takes them
    read = [reader.plain(index) is not None for index in sample(source)]
    if not any(read) and all(reader.plain(index) is None for index in range(len(source))):
        raise UserError(none_readable(source.name, len(source), reader.bad[min(reader.bad)][1]))


def check_scored(evaluation: EvaluationSet, outputs: Sequence[Output], preprocessing: Preprocessing) -> None:
    """Check that images to score on can be read, and that their labels, if any, are classes of the network.

    Raises:
        UserError: none of them can, or a label is none.
    """
    check_readable(evaluation.images, preprocessing)
    if evaluation.labels is not None and evaluation.labels.ndim > 1:
        _check_maps(evaluation, outputs[primary(outputs)], preprocessing)
        return
    classes = _classes(outputs)
    if evaluation.labels is not None and classes is not None:
        check_labels(evaluation.labels, classes)


def check_taught_labels(labels: NDArray[np.int64] | None, teacher: Network) -> None:
    """Check that labels that a loss is to read, if any, are classes of the network.

    Raises:
        UserError: one is none.
    """
    classes = _classes(teacher.outputs)
    if labels is not None and labels.ndim > 1:
        raise UserError("--label-weight takes one label per image, and those of --data are maps: leave it out")
    if labels is not None and classes is not None:
        check_labels(labels, classes, flag="--data")


def _check_maps(evaluation: EvaluationSet, output: Output, preprocessing: Preprocessing) -> None:
    """Raise UserError where maps of labels do not lie on their images as the network sees them, or hold no class."""
    labels, name = evaluation.labels, evaluation.images.name
    assert labels is not None and output.classes is not None
    p = preprocessing
    if not isinstance(evaluation.images, ArraySource) or not evaluation.images.is_prepared(p):
        raise UserError(
            f"--eval-data {name}: its labels are maps, which are not resized as images are: store the images at the"
            f" network's {p.width}x{p.height} px, and the maps as the network answers them"
        )
    if not bool(((labels >= 0) & (labels < output.classes)).any()):
        raise UserError(
            f"--eval-data {name} has labels {labels.min()} to {labels.max()}, and none is one of the network's"
            f" {output.classes} classes, 0 to {output.classes - 1}"
        )


def _classes(outputs: Sequence[Output]) -> int | None:
    """How many classes an image may have; None where the output holds no one class for each image."""
    main = outputs[primary(outputs)]
    return main.shape[main.axis - 1] if main.holds == "classes" and main.decisions == 1 else None


def check_room(
    root: Path, networks: Networks, quantisation: QuantisationConfig, learning: DistillationConfig, *, in_float: bool
) -> None:
    """Check the room for results, for training's checkpoints, and for what a runtime reads from temporary files.

    `in_float`: whether the student learns in float first.

    Raises:
        UserError: the disk has no room for what a run is sure to write.
    """
    teacher, student = networks.teacher, networks.student
    size, integers = _bytes(student), _bytes(student) * max(4, quantisation.bits) // 32
    ours = quantisation.trains
    trains = in_float or (ours and learning.steps != 0)
    before = size if in_float else 0
    results = before + (size if ours else 0) + _bytes(teacher) + integers
    # Weights and the optimiser's two moments of each; the next one is written beside the last.
    checkpoints = before + 2 * 3 * size if trains else 0
    needed = max(results, checkpoints)
    kept = sum(file.stat().st_size for file in (root / STATE).glob("*.safetensors"))
    free = shutil.disk_usage(root).free
    if free + kept < needed:
        what = f"needs {needed / 1e6:.4g} MB for its training's checkpoints"
        if results >= checkpoints:
            what = f"writes {needed / 1e6:.4g} MB at the least"
        raise UserError(
            f"{root} has {free / 1e6:.4g} MB free and a run of this network {what}: make room there, or choose another"
            " place with --output"
        )
    if BACKENDS[quantisation.backend].writes_scratch:
        with scratch_folder("room", needed=integers):
            pass


def _bytes(network: Network) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.folded.state_dict().values())
