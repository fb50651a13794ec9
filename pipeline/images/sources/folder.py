"""`images:FOLDER`: image files at any depth."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL import __version__ as PIL_VERSION

from calibration.errors import UserError
from pipeline.images.data_names import answer_to_file
from pipeline.images.device_preprocess import image_files, image_suffixes
from pipeline.images.sources.decoding import decode_image, frame_count
from pipeline.images.sources.image_source import EvaluationSet, Unreadable
from pipeline.tools.regular_file import irregular
from pipeline.tools.source_text import shortened, split_options

_COMPANIONS = (
    ".txt",
    ".json",
    ".csv",
    ".tsv",
    ".xml",
    ".yaml",
    ".yml",
    ".md",
    ".rst",
    ".names",
    ".html",
    ".db",
    ".ini",
)
"""Endings of class lists, annotations and notes that customarily lie beside images; the last two are Windows's own."""
_COMPANION_NAMES = ("readme", "license", "licence", "copying", "makefile")

_LARGEST_LIST = 1 << 24
"""Bytes of a file of class names; a hundred thousand names fit."""

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


@final
class FolderSource:
    """The image files below a folder, in natural order (img2 before img10), decoded when asked for."""

    def __init__(self, root: Path, files: tuple[str, ...]) -> None:
        self.name = f"images:{root}"
        self.notes: tuple[str, ...] = ()
        self.unreadable = Unreadable()
        self.root = root
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int, *, at_least: int | None = None) -> Image.Image:
        """Decode one file; see `ImageSource.image`."""
        file = self.files[index]
        return decode_image(self.root / file, file, at_least=at_least)

    def frames(self, index: int) -> int:
        """Return how many frames or pages a file has; 1 where it cannot be read."""
        return frame_count(self.root / self.files[index])


def open_folder(rest: str, *, labelled: bool) -> EvaluationSet:
    """Open `FOLDER[?classes=FILE]`.

    Labelled, the label of an image is the index of its top-level folder among the sorted names of all
    top-level folders, as in torchvision's ImageFolder; or its line (from 0) in the file of class names.
    Without class folders (images at the top, or fewer than two folders and no file) there are no labels.
    Names that begin with a dot are skipped.

    Raises:
        UserError: no such folder, no image in it, or class folders that cannot be labelled.
    """
    where = f"images:{rest}"
    # A folder may have a question mark in its name.
    name, options = (rest, {}) if os.path.isdir(rest) else split_options(rest, ("classes",), where)
    root = Path(name).expanduser()
    if not root.is_dir():
        answer = answer_to_file(root) if root.exists() else "does not exist; give a folder of images"
        raise UserError(f"{where}: {root} {answer}")
    files, others = _listed(root, where)
    if not files:
        seen = f"; there are {_counted(others)}" if others else ""
        raise UserError(f"{where}: no images in {root}; looked at any depth for {', '.join(image_suffixes())}{seen}")
    classes = _labels(root, files, options.get("classes"), where) if labelled else None
    source = FolderSource(root, files)
    if strangers := [name for name in others if not _is_companion(name)]:
        source.notes += (
            f"{source.name}: {_counted(strangers)} left aside, which Pillow {PIL_VERSION} does not decode as pictures",
        )
    if classes is None:
        return EvaluationSet(images=source, labels=None)
    labels, folders = classes
    return EvaluationSet(images=source, labels=labels, folders=folders, ordered="classes" in options)


def _listed(root: Path, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    try:
        return image_files(root)
    except OSError as error:
        raise UserError(f"{where}: cannot list {error.filename}: {error.strerror}") from None


def _is_companion(name: str) -> bool:
    base = os.path.basename(name).lower()
    return base.endswith(_COMPANIONS) or base.split(".")[0] in _COMPANION_NAMES


def _counted(names: Sequence[str]) -> str:
    """Say how many files there are, of which endings, and name some."""
    endings = Counter(os.path.splitext(name)[1].lower() or "no ending" for name in names)
    kinds = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(5))
    more = f" and {len(endings) - 5} more endings" if len(endings) > 5 else ""
    plural = "files" if len(names) > 1 else "file"
    return f"{len(names)} other {plural} ({kinds}{more}: {shortened(names)})"


def _labels(
    root: Path, files: tuple[str, ...], classes: str | None, where: str
) -> tuple[NDArray[np.int64], tuple[str, ...]] | None:
    """The labels and the names that they are places of; None without class folders."""
    tops = [file.split(os.sep)[0] if os.sep in file else None for file in files]
    used = sorted({top for top in tops if top is not None})
    if classes is not None:
        lines = class_lines(Path(classes).expanduser(), where)
        names = {name: index for index, name in enumerate(lines)}
        unknown = [name for name in used if name not in names]
        if None in tops or unknown:
            what = (
                f"class folders {shortened(unknown)} are not in it" if unknown else "images lie outside class folders"
            )
            raise UserError(f"{where}: with classes={classes} every image needs a class folder named there; {what}")
    else:
        if None in tops or len(used) < 2:
            return None
        if {name.lower() for name in used} <= _SPLITS:
            raise UserError(f"{where}: {', '.join(used)} are splits, not classes; give one, such as {root / used[0]}")
        # Folders without images count, as they did when the teacher was trained.
        folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        names = {name: index for index, name in enumerate(folders)}
    return np.array([names[top] for top in tops if top is not None], dtype=np.int64), tuple(names)


def class_lines(path: Path, where: str) -> tuple[str, ...]:
    """The names in a file of class names, in order. Raises UserError unless it holds one a line, each once."""
    if (wrong := irregular(path)) is not None:
        raise UserError(f"{where}: {path} {wrong}")
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_LIST + 1)
        if len(content) > _LARGEST_LIST:
            raise UserError(f"{where}: {path} has more than {_LARGEST_LIST} bytes: is it a file of class names?")
        lines = [line.strip() for line in content.decode("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{where}: cannot read the class names of {path}: {getattr(error, 'strerror', None) or error}"
        ) from None
    while lines and not lines[-1]:
        lines.pop()
    if not lines or not all(lines) or len(set(lines)) != len(lines):
        raise UserError(f"{where}: {path} must hold one class name per line, each once, without empty lines")
    return tuple(lines)
