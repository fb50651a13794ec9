"""What the functions of the chain are given, held against what they take; sections of a run out of keywords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from torch import Tensor

from backends.device.bundle_check import records
from backends.device.bundle_check.manifest import MANIFEST
from backends.onnx_file.serialised import Serialised, files_of
from calibration.errors import UserError
from faqd.results import Images
from pipeline.artifacts import Network
from pipeline.config import (
    DataConfig,
    DistillationConfig,
    ExecutionConfig,
    QuantisationConfig,
    RunConfig,
)
from pipeline.images.preprocessing_overrides import FLAGS, Overrides
from pipeline.networks.declared import Declared
from pipeline.networks.outputs.class_order import read_class_names
from pipeline.tools.atomic import check_place
from pipeline.tools.printing import console
from pipeline.tools.progress import SILENT, Progress, progress_on
from pipeline.tools.source_text import shortened

Configuration = TypeVar("Configuration")
Section = TypeVar("Section", DataConfig, QuantisationConfig, DistillationConfig)

#: A section of images whose source is of no matter: they are open already.
OPEN = DataConfig(source="images:open")


def section(kind: type[Section], settings: Mapping[str, Any], function: str, **own: Any) -> Section:
    """A section of a run from keywords. Raises UserError for one that it has not."""
    known = [name for name in records.hints(kind) if name not in {*own, "quantiser", "source"}]
    for name, value in settings.items():
        if name not in known:
            close = records.nearest(name, known) or f"; known: {', '.join(known)}"
            raise UserError(f"{function}({name}={value!r}): there is no such setting{close}")
    return kind(**settings, **own)


def run_with(**sections: Any) -> RunConfig:
    """A run of these sections on open images, which knows what a setting needs beside others in order to mean anything.

    Raises UserError where one would be ignored.
    """
    return RunConfig(data=OPEN, **sections)


def overrides_of(overrides: Mapping[str, Any], function: str) -> Overrides:
    """Parts of a preprocessing out of keywords: lists, arrays and single numbers become tuples.

    Raises UserError for a name that no part has, and for a value of another kind than its part.
    """
    parts = dict[str, Any]()
    for name, value in overrides.items():
        if name not in FLAGS:
            close = records.nearest(name, FLAGS) or f"; known: {', '.join(FLAGS)}"
            raise UserError(f"{function}({name}={value!r}): there is no such setting{close}")
        parts[name] = _part(name, value, function)
    return cast(Overrides, parts)


def _part(name: str, value: Any, function: str) -> Any:
    if value is None:
        return None
    value = value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) else value
    one, wrong = not isinstance(value, list | tuple), f"{function}({name}={value!r}): must be "
    numbers = (value,) if one else tuple(value)
    if name in ("image_size", "resize"):
        if len(numbers) != (1 if one else 2) or not all(_is_number(number, whole=True) for number in numbers):
            raise UserError(f"{wrong}a side in pixels, or (width, height)")
        return value if one else numbers
    if name in ("mean", "std", "fill"):
        if not numbers or not all(_is_number(number, whole=name == "fill") for number in numbers):
            raise UserError(f"{wrong}one number, or one for each channel")
        return numbers
    if name in ("crop_ratio", "divisor", "stored_bits"):
        if not _is_number(value, whole=name == "stored_bits"):
            raise UserError(f"{wrong}a number")
    elif not isinstance(value, str):
        raise UserError(f"{wrong}a word, as of {FLAGS[name]}")
    return value


def _is_number(value: object, *, whole: bool) -> bool:
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool)


def declared_of(
    function: str, *, output_kinds: Any, submodule: Any, classes: Any, dynamic_size: Any, static_batch: Any
) -> Declared:
    """What these keywords of `faqd.capture` and `faqd.load_network` say of a network; `classes`: names, or their file.

    Raises UserError unless they are of their kinds.
    """
    words = isinstance(output_kinds, Sequence) and all(isinstance(pair, str) for pair in output_kinds)
    if not words or isinstance(output_kinds, str):
        raise UserError(f'{function}(output_kinds={output_kinds!r}): must be a list, such as ["boxes=values"]')
    if submodule is not None and not isinstance(submodule, str):
        raise UserError(f"{function}(submodule={submodule!r}): must be the dotted path of a part, such as 'backbone'")
    if not isinstance(dynamic_size, bool):
        raise UserError(f"{function}(dynamic_size={dynamic_size!r}): must be True or False")
    if static_batch is not None and (isinstance(static_batch, bool) or static_batch != 1):
        raise UserError(
            f"{function}(static_batch={static_batch!r}): 1, for a network whose code is for one image at a time, or"
            " nothing; the batch size that a file fixes is said to faqd.prepare"
        )
    names, said_by = _class_names(classes)
    return Declared(
        output_kinds=tuple(output_kinds),
        submodule=submodule,
        class_names=names,
        classes_said_by=said_by,
        dynamic_size=dynamic_size,
        static_batch=static_batch,
    )


def _class_names(classes: Any) -> tuple[tuple[str, ...], str]:
    """Names of classes, of a file or at hand, and who says so."""
    if classes is None:
        return (), ""
    if isinstance(classes, str | Path):
        return read_class_names(Path(classes)), f"--classes {classes}"
    if not isinstance(classes, Sequence) or not all(isinstance(each, str) for each in classes):
        raise UserError(f"classes={classes!r:.60}: must be names in the order of the outputs, or a file of them")
    return tuple(classes), f"classes={shortened(tuple(classes))}"


def path_of(value: object, function: str, expected: str) -> Path:
    """A path at hand. Raises UserError for what is none; `expected` says in words what the function takes."""
    if not isinstance(value, str | PathLike):
        raise UserError(f"{function} takes {expected}, not a {type(value).__name__}")
    return Path(value)


def key_file(value: object, function: str) -> Path | None:
    """The file of a signature's key. Raises UserError for what is no path."""
    return None if value is None else path_of(value, f"{function}(key=...)", "the path of a file")


def check_bundle_place(folder: Path, float_file: Path, float_model: Serialised, *, overwrite: bool) -> None:
    """Raise UserError, before anything is measured, where no bundle may be written, or other files would be lost."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"write_bundle: {folder} is no folder: name another place")
    taken = folder.is_dir() and any(folder.iterdir())
    if taken and not overwrite:
        raise UserError(f"write_bundle: {folder} exists already: overwrite=True replaces it, or name another folder")
    if taken and not (folder / MANIFEST).is_file():
        raise UserError(f"write_bundle: {folder} is no bundle (it has no {MANIFEST}) and is not replaced: name another")
    for name, content in files_of(float_model, float_file.name).items():
        file = float_file.with_name(name)
        if file.exists() and not overwrite and (not file.is_file() or file.read_bytes() != content):
            raise UserError(
                f"write_bundle: {file} is another file than the float network that lies beside the bundle:"
                " overwrite=True replaces it, or write the bundle in a folder of its own"
            )
    check_place(float_file, flag="write_bundle:")


def configured(config: Configuration | None, kind: type[Configuration]) -> Configuration:
    """The configuration of a command, its defaults where none is given; UserError where it is something else."""
    if config is not None and not isinstance(config, kind):
        raise UserError(f"{config!r} is no configuration of this command: give a {kind.__name__}, faqd.{kind.__name__}")
    return kind() if config is None else config


def check_kind(value: object, kind: type, function: str, expected: str) -> None:
    """Raise UserError unless a value is of a kind; `expected` says in words what the function takes."""
    if not isinstance(value, kind):
        raise UserError(f"{function} takes {expected}, not a {type(value).__name__}")


def check_images(images: Any, network: Network, function: str) -> None:
    """Raise UserError unless these are images that were opened for a network's preprocessing."""
    check_kind(images, Images, function, "images as faqd.open_images(images, network) opens them")
    if images.preprocessing != network.preprocessing:
        raise UserError(
            f"{function}: the images were opened for another preprocessing than that of {network.source}: open them"
            " with faqd.open_images(images, network)"
        )


def progress_of(progress: Progress | bool | None) -> Progress:
    """Who hears of the progress: nobody, somebody, or with True a bar or lines on standard error."""
    if isinstance(progress, bool) or progress is None:
        return progress_on(console(stderr=True)) if progress else SILENT
    return progress


def execution_of(images: Images, *, seed: int | None, device: str, precision: str) -> ExecutionConfig:
    """Where and by which seed a student learns; that of the images where none is said."""
    check_kind(images, Images, "distil", "images as faqd.open_images(images, network) opens them")
    settings: dict[str, Any] = {"device": device, "precision": precision}
    return ExecutionConfig(seed=images.seed if seed is None else seed, **settings)
