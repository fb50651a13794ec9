"""The files of a bundle: those that its manifest lists, each to the byte, and no other."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from .stored import DamagedError, digest_of_file

#: Without these there is nothing to run, or nothing to hold it against.
NEEDED = ("model.onnx", "golden.npz")
# Names that mean the same file on every system, and no other: none is absolute, hidden, or leads out of the bundle.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,120}){0,4}")
_HASH = re.compile(r"[0-9a-f]{64}")
_MOST_NAMED = 3


def check_listed(bundle: Path, files: Mapping[str, str], sizes: Mapping[str, int], *, vouching: str) -> None:
    """Raise DamagedError where files are missing, more, or not what is said of them, by name -> SHA-256 and bytes.

    `vouching`: the file that says so, which alone is not listed.
    """
    _check_list(bundle / vouching, files, vouching)
    _check_no_others(bundle, {*files, vouching}, vouching)
    for name, digest in files.items():
        path = bundle / name
        if digest_of_file(path, size=sizes.get(name)) != digest:
            raise DamagedError(f"{path} is not what the manifest says (SHA-256 differs)")


def _check_list(path: Path, files: Mapping[str, str], vouching: str) -> None:
    """Refuse a list of files that leads out of the folder, has one name twice, or lacks what a bundle is for."""
    for name, digest in files.items():
        if not _NAME.fullmatch(name) or name == vouching:
            raise DamagedError(f"{path}: files lists {name[:60]!r}, which is no name of a file in a bundle")
        if not _HASH.fullmatch(digest):
            raise DamagedError(f"{path}: files.{name} is {digest[:70]!r}: must be a SHA-256, 64 hexadecimal digits")
    folded = [name.casefold() for name in (*files, vouching)]
    if twice := sorted({name for name in files if folded.count(name.casefold()) > 1}):
        raise DamagedError(f"{path}: files lists {' and '.join(twice)}, which many systems take for one file")
    if lacking := [name for name in NEEDED if name not in files]:
        raise DamagedError(f"{path} vouches for no {' and no '.join(lacking)}")


def _check_no_others(bundle: Path, listed: set[str], vouching: str) -> None:
    """Refuse what nobody vouches for: a file that Python, or a runtime, would load in place of its own."""
    folders = {parent.as_posix() for name in listed for parent in Path(name).parents}
    others = list[str]()

    def stop(error: OSError) -> None:
        raise DamagedError(f"{error.filename} cannot be listed: {error.strerror}") from error

    for folder, subfolders, names in os.walk(bundle, onerror=stop):
        below = os.path.relpath(folder, bundle).replace(os.sep, "/")
        below = "" if below == "." else f"{below}/"
        linked = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
        others += [f"{below}{name}" for name in subfolders if f"{below}{name}" not in folders or name in linked]
        others += [f"{below}{name}" for name in names if f"{below}{name}" not in listed]
        subfolders[:] = [name for name in subfolders if f"{below}{name}" not in others]
    if others:
        named, more = ", ".join(sorted(others)[:_MOST_NAMED]), len(others) - _MOST_NAMED
        rest = f" and {more} more" if more > 0 else ""
        raise DamagedError(
            f"{bundle} holds {named}{rest}, which {vouching} does not list (files of your own belong elsewhere)"
        )
