"""Data named without its kind: a folder or an .npz has one meaning; to all else the answer is what to type."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from calibration.errors import UserError
from pipeline.images.device_preprocess import image_suffixes
from pipeline.tools.regular_file import irregular
from pipeline.tools.source_text import close_matches

_ARCHIVES = {
    ".zip": "unzip {file} -d {stem}",
    ".tar": "mkdir {stem} && tar -xf {file} -C {stem}",
    ".tgz": "mkdir {stem} && tar -xf {file} -C {stem}",
    ".gz": "mkdir {stem} && tar -xf {file} -C {stem}",
    ".bz2": "mkdir {stem} && tar -xf {file} -C {stem}",
    ".xz": "mkdir {stem} && tar -xf {file} -C {stem}",
    ".7z": "7z x {file} -o{stem}",
    ".rar": "unrar x {file} {stem}/",
}
_VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".mts", ".h264")


def with_kind(source: str, kinds: Iterable[str]) -> str:
    """Return data named as `kind:rest`, or by a path alone, as `kind:rest`.

    Raises:
        UserError: it is neither of a known kind nor a folder or an .npz file; the line says what to type.
    """
    known = sorted(kinds)
    kind = source.partition(":")[0]
    if kind in known:
        return source
    folder, file = source.partition("?")[0], source.rpartition("#")[0] or source
    for name in (source, folder):
        if Path(name).expanduser().is_dir():
            return f"images:{source}"
    for name in (source, file):
        path = Path(name).expanduser()
        if path.is_file():
            if path.suffix.lower() == ".npz":
                return f"npz:{source}"
            raise UserError(f"data {source!r} {answer_to_file(path)}")
        if (wrong := irregular(path)) is not None:
            raise UserError(f"data {source!r} {wrong}")
    raise UserError(f"unknown data {source!r}: {_answer_to_name(source, known)}")


def answer_to_file(path: Path) -> str:
    """Say what a file is that is no folder of images, and what to type for it."""
    suffix = path.suffix.lower()
    stem = path.name.partition(".")[0] or "images"
    if suffix == ".npz":
        return f"is an archive of arrays: type npz:{path}"
    if suffix == ".npy":
        return f"is a single array: store it with numpy.savez('{stem}.npz', images=array), then type npz:{stem}.npz"
    if suffix in _ARCHIVES:
        command = _ARCHIVES[suffix].format(file=path, stem=stem)
        return f"is an archive: unpack it ({command}), then type images:{stem}"
    if suffix in _VIDEOS:
        command = f"mkdir {stem} && ffmpeg -i {path} -vf fps=1 {stem}/%05d.png"
        return f"is a video: take pictures out of it ({command}), then type images:{stem}"
    if suffix in image_suffixes():
        folder = path.parent if str(path.parent) != "." else "FOLDER"
        return f"is one image: several are needed; type the folder that holds them, images:{folder}"
    return (
        "is a file, no folder of images: type images:FOLDER, or write a function that reads it and returns images, and"
        " type python:package.module:function"
    )


def _answer_to_name(source: str, known: list[str]) -> str:
    kinds = f"it must be kind:rest with one of {', '.join(known)}, or a folder or .npz file that exists"
    words = source.split(":")
    if len(words) == 2 and all(word.isidentifier() for word in words[0].split(".") + words[1:]):
        return f"{kinds}; did you mean python:{source}?"
    if source.isidentifier() and (source.isupper() or any(letter.isupper() for letter in source)):
        from torchvision import datasets  # here: the import takes a second, and most errors need it not

        if hasattr(datasets, source):
            return f"{kinds}; did you mean torchvision:{source}?root=DIR?"
    path = Path(source).expanduser()
    parent = path.parent
    names = [entry.name for entry in parent.iterdir()] if parent.is_dir() and os.access(parent, os.R_OK) else []
    near = close_matches(path.name, names)
    if near.startswith("did you mean"):
        return f"{kinds}; {parent / path.name} does not exist, {near}"
    return kinds
