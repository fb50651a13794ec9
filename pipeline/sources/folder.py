"""`images:FOLDER`: image files at any depth."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration.errors import UserError
from pipeline.source_text import shortened, split_options
from pipeline.sources.decoding import decode_image
from pipeline.sources.image_source import EvaluationSet, Unreadable

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
"""File names taken for images, in any case of letters."""

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
        found = "is a file" if root.exists() else "does not exist"
        raise UserError(f"{where}: {root} {found}; give a folder of images")
    files = tuple(sorted(_image_files(root, where), key=_natural_key))
    if not files:
        raise UserError(f"{where}: no images in {root}; looked at any depth for {', '.join(SUFFIXES)}")
    labels = _labels(root, files, options.get("classes"), where) if labelled else None
    return EvaluationSet(images=FolderSource(root, files), labels=labels)


def _image_files(root: Path, where: str) -> list[str]:
    def stop(error: OSError) -> None:
        raise UserError(f"{where}: cannot list {error.filename}: {error.strerror}") from None

    files: list[str] = []
    seen: set[tuple[int, int]] = set()
    # Links are followed, because data sets are often assembled from them; a loop of links ends at `seen`.
    for folder, subfolders, names in os.walk(root, onerror=stop, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = os.path.relpath(folder, root)
        files += [
            os.path.normpath(os.path.join(relative, name))
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return files


def _natural_key(file: str) -> tuple[list[list[str | int]], str]:
    # Splitting at digits puts text at even and numbers at odd places, so that like compares with like.
    parts = [re.split(r"([0-9]+)", part.casefold()) for part in file.split(os.sep)]
    return [[int(text) if place % 2 else text for place, text in enumerate(part)] for part in parts], file


def _labels(root: Path, files: tuple[str, ...], classes: str | None, where: str) -> NDArray[np.int64] | None:
    tops = [file.split(os.sep)[0] if os.sep in file else None for file in files]
    used = sorted({top for top in tops if top is not None})
    if classes is not None:
        names = _class_names(Path(classes).expanduser(), where)
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
    return np.array([names[top] for top in tops if top is not None], dtype=np.int64)


def _class_names(path: Path, where: str) -> dict[str, int]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot read the class names of {path}: {error}") from None
    while lines and not lines[-1]:
        lines.pop()
    if not lines or not all(lines) or len(set(lines)) != len(lines):
        raise UserError(f"{where}: {path} must hold one class name per line, each once, without empty lines")
    return {name: index for index, name in enumerate(lines)}
