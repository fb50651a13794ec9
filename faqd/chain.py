"""The steps from a network to its artifact, each alone; what they need is imported when they are called."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack

from faqd.calls import own_call

if TYPE_CHECKING:
    from torch import nn

    from faqd.results import Artifact, Images, Student
    from faqd.settings import DataSettings, DistillationSettings, QuantisationSettings
    from pipeline.artifacts import Network
    from pipeline.bundle.bundle import Bundle
    from pipeline.images.preprocessing import Preprocessing
    from pipeline.images.preprocessing_overrides import Overrides
    from pipeline.tools.progress import Progress

Arguments = ParamSpec("Arguments")
Learner = TypeVar("Learner", "Student", "Network")
Result = TypeVar("Result")


def _among_own(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, whose imports find our packages whatever else has their names."""

    @functools.wraps(function)
    def inside(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with own_call():
            return function(*args, **kwargs)

    return inside


@_among_own
def capture(
    model: nn.Module,
    example: Any = None,
    *,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
    name: str | None = None,
    output_kinds: Sequence[str] = (),
    submodule: str | None = None,
    classes: Sequence[str] | str | Path | None = None,
    dynamic_size: bool = False,
    static_batch: int | None = None,
    **overrides: Unpack[Overrides],
) -> Network:
    """Capture a network at hand as a graph that computes the same; your own is left as it is.

    Args:
        model: takes images float32 [B, C, H, W].
        example: such images, normalised, float32 tensor or array; says their size where nothing else does, and the
            graph must compute for them what the network does.
        preprocessing: from an image to the network's input; a dict may have some of its fields (height, width, mean,
            std, ...). None: ImageNet's, which the network's notes say.
        name: of the network in reports and errors; its class where left out.
        output_kinds: NAME=KIND of outputs whose shape does not show what they hold, as of --output-kinds.
        submodule: dotted path of the part to take instead of the whole.
        classes: names in the order of the outputs, or a file with one a line.
        dynamic_size: height and width are free in what is written.
        static_batch: 1 for a network whose code is for one image at a time.
        overrides: parts of the preprocessing: image_size=(width, height) or a side, fit, mean, std, ...

    Raises:
        UserError: the network cannot be captured, or its graph is not what it computes.
    """
    from faqd.checks import declared_of
    from faqd.sources import captured_network

    declared = declared_of(
        "capture",
        output_kinds=output_kinds,
        submodule=submodule,
        classes=classes,
        dynamic_size=dynamic_size,
        static_batch=static_batch,
    )
    return captured_network(model, example, declared, preprocessing=preprocessing, name=name, overrides=overrides)


@_among_own
def load_network(
    source: str,
    *,
    weights: str | Path | None = None,
    like: Network | None = None,
    output_kinds: Sequence[str] = (),
    submodule: str | None = None,
    classes: str | Path | None = None,
    dynamic_size: bool = False,
    static_batch: int | None = None,
    **overrides: Unpack[Overrides],
) -> Network:
    """Load and capture the network that KIND:REST names, as on the command line.

    Args:
        source: torchvision:resnet18, timm:NAME, cifar:resnet20, python:package.module:function, digits.
        weights: a checkpoint, .safetensors or .pth.
        like: a teacher whose images this network takes and whose answers it is to give; without weights it begins with
            random ones where it can.
        output_kinds, submodule, classes, dynamic_size, static_batch, overrides: as of `capture`.

    Raises:
        UserError: whatever is wrong with the source, the file or the network.
    """
    from faqd.checks import declared_of, path_of
    from faqd.sources import named_network

    declared = declared_of(
        "load_network",
        output_kinds=output_kinds,
        submodule=submodule,
        classes=None if classes is None else path_of(classes, "load_network(classes=...)", "the path of a file"),
        dynamic_size=dynamic_size,
        static_batch=static_batch,
    )
    return named_network(source, declared, weights=weights, like=like, overrides=overrides)


@_among_own
def open_images(
    images: Any,
    network: Network | Preprocessing,
    *,
    labels: bool = False,
    seed: int = 0,
    progress: Progress | bool | None = None,
    **settings: Unpack[DataSettings],
) -> Images:
    """Open unlabelled images for a network, most to calibrate and train with, the rest held out.

    Args:
        images: a folder or .npz file or KIND:REST as of --data ("none": generated from the network), a uint8 array or
            tensor [N, C, H, W] or [N, H, W, C], or a sequence or map-style data set of images, paths or (image, label).
        network: that they are for, or its preprocessing.
        labels: read labels too, for a loss that was asked to look at them (`distil(label_weight=...)`).
        seed: of the division, and of what is drawn to calibrate.
        progress: True for a bar, or who else is to hear; only generating takes time.
        settings: fields of `faqd.DataConfig` (calibration_images, held_out_images, augmentation, workers, ...).

    Raises:
        UserError: a source, an image or a setting is wrong.
    """
    from faqd.checks import progress_of
    from faqd.sources import opened_images

    return opened_images(
        images, network, labels=labels, seed=seed, progress=progress_of(progress), settings=dict(settings)
    )


@_among_own
def prepare(
    network: Network,
    images: Images,
    *,
    teacher: Network | None = None,
    progress: Progress | bool | None = None,
    **settings: Unpack[QuantisationSettings],
) -> Student:
    """Quantise a network for a runtime and calibrate it, without training; `.module` computes what the runtime will.

    Args:
        network: to be quantised.
        images: that it is calibrated on.
        teacher: whose answers it is to give where that is not the network itself.
        progress: True for a bar, or who else is to hear.
        settings: fields of `faqd.QuantisationConfig`: backend="onnxruntime", bits=8, target, opset, ...

    Raises:
        UserError: nothing can be quantised, the runtime here refuses the file, or a setting is wrong.
    """
    from faqd.checks import progress_of
    from faqd.stages import prepared_student

    return prepared_student(network, images, teacher=teacher, progress=progress_of(progress), settings=dict(settings))


@_among_own
def distil(
    student: Learner,
    network: Network | Sequence[Network],
    images: Images,
    *,
    seed: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    checkpoint: str | PathLike[str] | None = None,
    progress: Progress | bool | None = None,
    **settings: Unpack[DistillationSettings],
) -> Learner:
    """Train a student to be its float network, from images alone; the weights that are better on held-out images.

    Args:
        student: calibrated by `prepare`; it is left as it is. Or a float network (`load_network(like=...)`), which
            learns in float before it is prepared.
        network: the float network to learn from; of several the student learns the mean.
        images: to learn from.
        seed: of batches and of everything drawn; that of the images where left out.
        device: auto, cpu, cuda or cuda:N.
        precision: auto, float32 or bfloat16.
        checkpoint: a file that is written every few seconds and gone on from; removed at the end.
        progress: True for a bar, or who else is to hear.
        settings: fields of `faqd.DistillationConfig`: steps, batch_size, learning_rate, temperature, affinity, ...

    Raises:
        UserError: a setting is wrong, or the student has been trained already.
    """
    from faqd.checks import execution_of, path_of, progress_of
    from faqd.results import Student
    from faqd.stages import distilled_student, taught_network
    from pipeline.tools.atomic import check_place

    execution = execution_of(images, seed=seed, device=device, precision=precision)
    teachers = tuple(network) if isinstance(network, (list, tuple)) else (network,)
    file = None
    if checkpoint is not None:
        file = path_of(checkpoint, "distil(checkpoint=...)", "the path of a file")
        check_place(file, flag="distil(checkpoint=...)")
    if isinstance(student, Student):
        return distilled_student(
            student,
            teachers,
            images,
            execution,
            checkpoint=file,
            progress=progress_of(progress),
            settings=dict(settings),
        )
    return taught_network(
        student,
        teachers,
        images,
        execution,
        checkpoint=file,
        progress=progress_of(progress),
        settings=dict(settings),
    )


@_among_own
def convert(student: Student, *, progress: Progress | bool | None = None) -> Artifact:
    """Convert a student as it is now, trained or not, into the model file of its runtime, checked against its rules.

    Raises:
        UserError: the file would break a rule of the runtime, or training has left values that are not finite.
    """
    from faqd.checks import progress_of
    from faqd.stages import converted

    return converted(student, progress_of(progress))


@_among_own
def read_bundle(folder: str | PathLike[str], *, key: str | PathLike[str] | None = None) -> Bundle:
    """Read the bundle of a run, once every file in it is what its manifest says; `key`: file of its signature's key.

    Raises:
        UserError: it is no bundle, a file is missing, more or changed, or it is signed otherwise.
    """
    from faqd.checks import key_file, path_of
    from pipeline.bundle.bundle import read_bundle

    return read_bundle(path_of(folder, "read_bundle", "the folder of a bundle"), key=key_file(key, "read_bundle"))
