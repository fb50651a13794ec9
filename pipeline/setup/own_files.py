"""What in an output folder is a run's own: nothing else is ever removed or replaced."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from backends.device.bundle_check.manifest import MANIFEST
from backends.device.bundle_check.records import value_from_json
from backends.device.bundle_check.stored import DamagedError, read_object
from backends.onnx_file.serialised import DATA_SUFFIX
from calibration.errors import UserError
from pipeline.artifacts import FLOAT_MODEL
from pipeline.bundle.bundle import REPORT

#: Names of the folders of what --resume needs, and of what the device gets.
STATE: Final = "state"
BUNDLE: Final = "bundle"
#: Names of the files in STATE: the one that says which run it belongs to, and what `RunFolder` says of each.
SETTINGS: Final = "settings.json"
SECONDS, PREPARED, MEASURED = "seconds.json", "prepared.json", "measured.json"
GENERATED, FLOAT_STUDENT, TRAINED = "generated.safetensors", "float.safetensors", "trained.safetensors"
RECONSTRUCTED: Final = "reconstructed.safetensors"
FLOAT_CHECKPOINT, CHECKPOINT = "float-checkpoint.safetensors", "checkpoint.safetensors"
#: Of each generation but the last, where {} is its number.
GENERATION: Final = "generation{}.safetensors"
#: Name of the report for people, beside REPORT.
PAGE: Final = "report.html"
FLOAT_FILES: Final = (FLOAT_MODEL, FLOAT_MODEL + DATA_SUFFIX)
#: What a run writes into its folder.
OF_A_RUN: Final = (STATE, BUNDLE, *FLOAT_FILES, REPORT, PAGE)
_FILES = (
    SETTINGS, SECONDS, PREPARED, MEASURED, RECONSTRUCTED, GENERATED, FLOAT_STUDENT, FLOAT_CHECKPOINT, CHECKPOINT,
    TRAINED, *FLOAT_FILES,
)  # fmt: skip
_OF_STATE = re.compile("|".join([*map(re.escape, _FILES), r"\d+".join(map(re.escape, GENERATION.split("{}")))]))
# What checks on a device leave in a bundle that they run in: bytecode, and the engines that they were told to keep.
_LEFT_IN_BUNDLES = re.compile(r"__pycache__|.+\.(engine|plan|cache|pyc)")
# What file systems put into every folder that is one of theirs.
_OF_FILE_SYSTEMS = frozenset({"lost+found", "System Volume Information", "Thumbs.db", "desktop.ini"})


def check_of_a_run(root: Path) -> None:
    """Check that a folder is a run's, or empty, or absent.

    Raises:
        UserError: it holds something and no run has written there.
    """
    entries = _visible(root)
    if entries and not _was_written_to(root):
        others = f" and {len(entries) - 1} more" if len(entries) > 1 else ""
        raise UserError(
            f"{root} is no folder of a run and holds {entries[0].name}{others}: choose an empty or a new folder with"
            " --output"
        )


def check_replaceable(root: Path) -> None:
    """Check that all that a new run would remove or replace in a folder was written by a run.

    Raises:
        UserError: something else lies there.
    """
    check_of_a_run(root)
    for path in _in_the_way(root):
        raise UserError(
            f"{path} was not written by a run, and a new one would remove it: move it elsewhere, or choose another"
            " --output"
        )


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, but for hidden files, of which none has a name of ours, and those of file systems."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name[0] != "." and path.name not in _OF_FILE_SYSTEMS)


def _was_written_to(root: Path) -> bool:
    """Whether a run has written into a folder: of its settings, its bundle and its report one is left at least."""
    marks = (root / STATE / SETTINGS, "data"), (root / BUNDLE / MANIFEST, "files"), (root / REPORT, "gates")
    return any(file.is_file() and _has_key(file, key) for file, key in marks)


def _has_key(file: Path, key: str) -> bool:
    """Whether a JSON file holds a key; one that is damaged is taken for what its name says."""
    try:
        return key in read_object(file)[0]
    except DamagedError:
        return os.access(file, os.R_OK)


def _in_the_way(root: Path) -> Iterator[Path]:
    """Files and folders that no run has written, where a run removes or replaces."""
    for name in (STATE, BUNDLE):
        if (root / name).exists() and not (root / name).is_dir():
            yield root / name
    for name in (*FLOAT_FILES, REPORT, PAGE):
        if (root / name).is_dir():
            yield root / name
    for path in _visible(root / STATE):
        if not _OF_STATE.fullmatch(path.name) or path.is_dir():
            yield path
    yield from _not_listed(root / BUNDLE)


def _not_listed(bundle: Path) -> Iterator[Path]:
    """Files in a bundle's folder of which its manifest knows nothing, and which no check on a device leaves there."""
    manifest = bundle / MANIFEST
    if not manifest.is_file():
        yield from _visible(bundle)[:1]
        return
    try:
        listed = set(value_from_json(read_object(manifest)[0].get("files"), dict[str, Any], where=str(manifest)))
    except ValueError:
        return  # damaged, which is a reason to replace it
    for path in sorted(bundle.rglob("*")):
        name = path.relative_to(bundle).as_posix()
        hidden = any(part.startswith(".") or _LEFT_IN_BUNDLES.fullmatch(part) for part in Path(name).parts)
        if path.is_file() and name != MANIFEST and name not in listed and not hidden:
            yield path
