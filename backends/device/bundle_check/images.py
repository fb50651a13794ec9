"""A user's images on the device: read, prepared as the manifest says, and scored by labels where there are any."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import types
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .compare import answers_of
from .errors import DeviceError
from .manifest import InputPixels, Manifest, OutputEntry
from .room import lack_of_room, unpacked
from .stored import DamagedError, printable, read_whole

AT_ONCE = 64
"""Images prepared and run at a time."""
PREPROCESS = "preprocess.py"
_MOST_SOURCE = 1 << 20
# What zipfile, zlib and numpy raise over archives that are damaged, encrypted, packed otherwise or too large.
_NPZ_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)
MOST_SHOWN = 10
"""Images whose answers are printed at most."""

Run = Callable[[NDArray[np.float32]], dict[str, NDArray[Any]]]
"""A runtime: normalised images float32 [B, C, H, W] to every output by name."""


@dataclass(frozen=True)
class ScoredFiles:
    """What --images named: names [N], labels int64 [N] or maps [N, H, W] or none, and the images, a few at a time.

    `unreadable` grows while the images are read: index of one that is left out -> why.
    """

    names: list[str]
    labels: NDArray[np.int64] | None
    batches: Iterator[NDArray[np.float32]]
    unreadable: dict[int, str] = field(default_factory=dict)


def open_images(source: str, bundle: Path, manifest: Manifest) -> ScoredFiles:
    """Open FILE.npz#IMAGES[,LABELS] or a folder. Raises DeviceError for what cannot be read or does not fit."""
    path, hash_sign, keys = source.partition("#")
    if hash_sign or Path(path).suffix == ".npz":
        return _of_arrays(source, path, keys.split(","), manifest.pixels)
    if not Path(path).is_dir():
        raise DeviceError(f"--images {source}: is no folder of images and no FILE.npz#IMAGES or FILE.npz#IMAGES,LABELS")
    return _of_folder(Path(path), bundle, manifest)


def normalised(images: NDArray[Any], pixels: InputPixels) -> NDArray[np.float32]:
    """uint8 images [B, C, H, W] as a network's input: x / 255, minus the mean, over the deviation, per channel."""
    centre, spread = (np.array(values, np.float32).reshape(-1, 1, 1) for values in (pixels.mean, pixels.std))
    divisor = np.float32(pixels.divisor)
    return np.asarray((images.astype(np.float32) / divisor - centre) / spread, np.float32)


def _of_arrays(source: str, path: str, names: list[str], pixels: InputPixels) -> ScoredFiles:
    if not names[0] or len(names) > 2:
        raise DeviceError(f"--images {source}: must be FILE.npz#IMAGES or FILE.npz#IMAGES,LABELS")
    if Path(path).exists() and not Path(path).is_file():
        raise DeviceError(f"--images {source}: {path} is no regular file")
    try:
        with open(path, "rb") as file:  # numpy would leave a damaged one open
            arrays = np.load(file, allow_pickle=False)
            if not isinstance(arrays, np.lib.npyio.NpzFile):
                raise ValueError(f"{path} is a single array: store it with numpy.savez(FILE, images=array)")
            with arrays:
                if (wrong := lack_of_room(unpacked(arrays, names))) is not None:
                    raise DeviceError(f"--images {source}: {path} {wrong}: store images as files and name their folder")
                images, labels = arrays[names[0]], arrays[names[1]] if len(names) == 2 else None
    except _NPZ_ERRORS as error:
        raise DeviceError(f"--images {source}: cannot be read ({error})") from error
    sizes = (pixels.channels, pixels.height, pixels.width)
    if images.ndim == 4 and images.shape[1:] != sizes and images.shape[1:] == (*sizes[1:], sizes[0]):
        images = images.transpose(0, 3, 1, 2)
    if images.dtype != np.uint8 or images.shape[1:] != sizes or not len(images):
        raise DeviceError(
            f"--images {source}: images {images.dtype} {images.shape}; the network takes uint8"
            f" [N, {', '.join(map(str, sizes))}] in the order {pixels.channel_order}; a folder of images of"
            " any size is possible too"
        )
    if labels is not None and (len(labels) != len(images) or labels.dtype.kind not in "iu"):
        raise DeviceError(f"--images {source}: {len(images)} images with {len(labels)} labels {labels.dtype}")
    batches = (normalised(images[i : i + AT_ONCE], pixels) for i in range(0, len(images), AT_ONCE))
    return ScoredFiles(
        names=[str(index) for index in range(len(images))],
        labels=None if labels is None else labels.astype(np.int64),
        batches=batches,
    )


def _of_folder(folder: Path, bundle: Path, manifest: Manifest) -> ScoredFiles:
    """Images at any depth, prepared by the bundle's own preprocess.py; labels where folders are named as classes."""
    preprocess = _preprocess(bundle, manifest)
    try:
        names = list(preprocess.image_files(folder)[0])
    except OSError as error:
        raise DeviceError(f"--images {folder}: {error.strerror or error}") from error
    if not names:
        raise DeviceError(f"--images {folder}: holds no images")
    classes = next((entry.class_names for entry in manifest.outputs if entry.class_names), ())
    folders = [Path(name).parts[0] for name in names]
    known = bool(classes) and all(name in classes for name in folders)
    unreadable: dict[int, str] = {}

    def batches() -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(names), AT_ONCE):
            several = []
            for index in range(start, min(start + AT_ONCE, len(names))):
                try:
                    several.append(preprocess.load(folder / names[index], bundle))
                except preprocess.READ_ERRORS as error:  # left out and named, as a run does
                    unreadable[index] = str(error)
            if several:
                yield np.concatenate(several)

    labels = np.array([classes.index(name) for name in folders], np.int64) if known else None
    return ScoredFiles(names=names, labels=labels, batches=batches(), unreadable=unreadable)


def _preprocess(bundle: Path, manifest: Manifest) -> Any:
    """The bundle's preprocess.py as a module, made of the very bytes that the manifest vouches for."""
    path = bundle / PREPROCESS
    if PREPROCESS not in manifest.files:
        raise DeviceError(
            f"{bundle} has no preprocess.py to prepare images by: give FILE.npz#IMAGES, or a newer bundle"
        )
    if importlib.util.find_spec("PIL") is None:
        raise DeviceError("--images with a folder needs Pillow to decode images: pip install pillow")
    try:
        source = read_whole(path, most=_MOST_SOURCE)
    except DamagedError as error:
        raise DeviceError(str(error)) from error
    if hashlib.sha256(source).hexdigest() != manifest.files[PREPROCESS]:
        raise DeviceError(f"{path} was changed since the check began")
    module = types.ModuleType("preprocess")
    module.__file__ = str(path)
    sys.modules["preprocess"] = module
    exec(compile(source, str(path), "exec"), vars(module))
    return module


def scored(images: ScoredFiles, run: Run, entries: Sequence[OutputEntry], say: Callable[[str], None]) -> dict[str, Any]:
    """Run the images, say what came out, and return it for the report; with "outputs", every output of every image."""
    parts = [run(batch) for batch in images.batches]
    if not parts:
        raise DeviceError(f"--images: none can be decoded: {printable(next(iter(images.unreadable.values())))}")
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    read = [index for index in range(len(images.names)) if index not in images.unreadable]
    names, labels = [images.names[index] for index in read], images.labels
    figures: dict[str, Any] = {"images": len(names)}
    if images.unreadable:
        left = [images.names[index] for index in images.unreadable]
        figures["unreadable"] = left
        more = f" and {len(left) - MOST_SHOWN} more" if len(left) > MOST_SHOWN else ""
        named = ", ".join(map(printable, left[:MOST_SHOWN]))
        say(f"left out           {len(left)} that cannot be decoded: {named}{more}")
    if labels is not None:
        labels = labels[read] if images.unreadable else labels
        figures |= _accuracy(outputs, labels, entries)
        unit = "images" if labels.ndim == 1 else "decisions"
        more = f", mean IoU {100 * figures['mean_iou']:.2f} %" if "mean_iou" in figures else ""
        say(f"accuracy           {100 * figures['top1']:.2f} % of {figures['scored']} {unit}{more}")
    else:
        for entry in entries:
            for line in _lines(outputs[entry.name], entry, names):
                say(line)
    return figures | {"outputs": outputs}


def _accuracy(
    outputs: dict[str, NDArray[Any]], labels: NDArray[np.int64], entries: Sequence[OutputEntry]
) -> dict[str, Any]:
    """Top-1 by the first output of classes; of maps per position, labels that are no class (255) left out."""
    entry = next((entry for entry in entries if entry.holds == "classes"), None)
    if entry is None:
        raise DeviceError("--images: no output of this network holds classes: leave the labels out to see what it says")
    values = outputs[entry.name]
    answers, classes = answers_of(values, entry), values.shape[entry.class_axis]
    if answers.shape != labels.shape:
        raise DeviceError(
            f"--images: labels {list(labels.shape)} for the decisions {list(answers.shape)} of output {entry.name}:"
            " give as many, or leave them out to see what the network says"
        )
    known = (labels >= 0) & (labels < classes)
    if not known.any() or (labels.ndim == 1 and not known.all()):
        raise DeviceError(f"--images: labels {labels.min()} to {labels.max()}, but there are {classes} classes")
    mine, right = answers[known], labels[known]
    figures: dict[str, Any] = {
        "output": entry.name,
        "scored": int(known.sum()),
        "top1": float((mine == right).mean()),
    }
    if labels.ndim > 1:
        pairs = np.bincount(right * classes + mine, minlength=classes * classes).reshape(classes, classes)
        both, either = pairs.diagonal(), pairs.sum(0) + pairs.sum(1) - pairs.diagonal()
        figures["mean_iou"] = float((both[either > 0] / either[either > 0]).mean())
    return figures


def _lines(values: NDArray[Any], entry: OutputEntry, names: list[str]) -> Iterator[str]:
    """What an output says of the first images: classes by their names, of maps the commonest, of values the range."""
    for index, name in enumerate(names[:MOST_SHOWN]):
        yield f"{entry.name:<18} {printable(name)}: {_answer(values[index : index + 1], entry)}"
    if len(names) > MOST_SHOWN:
        yield f"{'':<18} and {len(names) - MOST_SHOWN} more images"


def _answer(values: NDArray[Any], entry: OutputEntry) -> str:
    classes = entry.class_names
    if entry.holds == "values":
        return f"values {values.min():.4g} to {values.max():.4g}"
    answers = answers_of(values, entry)
    if entry.holds == "labels":
        yes = sorted({int(place) for place in np.nonzero(answers)[1]}) if answers.ndim == 2 else []
        shown = ", ".join(_class(classes, place) for place in yes[:5])
        return f"{int(answers.sum())} of {answers.size} yes" + (f": {shown}" if shown else "")
    if answers.size == 1:
        return _class(classes, int(answers.reshape(-1)[0]))
    numbers, counts = np.unique(answers, return_counts=True)
    order = np.argsort(-counts)[:5]
    return ", ".join(f"{_class(classes, int(numbers[k]))} {100 * counts[k] / answers.size:.1f} %" for k in order)


def _class(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else f"class {index}"
