"""A bundle's manifest, and whether the files and itself are what it says."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from .errors import DeviceError
from .same_answer import WITH_FLOAT

#: The first format whose manifests hold their own hash, and the last that is known here.
HASHED_FORMAT = 3


def read_manifest(bundle: Path, backends: tuple[str, ...]) -> dict[str, Any]:
    """The manifest of a bundle for one of these backends. Raises DeviceError where anything is not what it says."""
    path = bundle / "manifest.json"
    if not path.is_file():
        raise DeviceError(f"{bundle} is no bundle: it has no manifest.json")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        files = dict(manifest["files"])
        _look_up(manifest, planned="tensorrt" in backends)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeviceError(f"{path} is damaged ({error}): copy the bundle anew") from error
    if manifest.get("format", 0) >= HASHED_FORMAT and manifest.get("sha256") != manifest_digest(manifest):
        raise DeviceError(f"{path} was changed after the run (its own SHA-256 differs): copy the bundle anew")
    damaged = [name for name, expected in files.items() if digest(bundle / name) != expected]
    if damaged:
        raise DeviceError(f"{bundle} is damaged: {', '.join(damaged)}; copy the bundle anew")
    if manifest.get("backend") not in backends:
        raise DeviceError(f"{bundle} is a bundle for {manifest.get('backend')}: make one with --backend {backends[0]}")
    return manifest


def _look_up(manifest: dict[str, Any], *, planned: bool) -> None:
    """Raise KeyError, TypeError or AttributeError where a manifest lacks what checks read; `planned`: its plan too."""
    for entry in manifest["outputs"]:
        str(entry["name"]), str(entry["holds"])
    if planned:
        for entry in manifest["plan"]["weights"]:
            str(entry["layer"]), bool(entry.get("weight_only"))
        manifest["plan"]["activations"]


def least_parity(manifest: dict[str, Any]) -> float:
    """The share of answers, 0 to 1, that must be the golden ones; manifests of the first formats do not say it."""
    return float(manifest.get("least_parity", WITH_FLOAT))


def remark(manifest: dict[str, Any]) -> str | None:
    """What to say of a manifest that does not vouch for itself."""
    if manifest.get("format", 0) >= HASHED_FORMAT:
        return None
    return (
        f"the bundle is of format {manifest.get('format')}, made before manifests were hashed: an edited manifest.json"
        " would not show"
    )


def manifest_digest(manifest: dict[str, Any]) -> str:
    """The hash of all that a manifest says but its own hash, as the run wrote it."""
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def digest(path: Path) -> str | None:
    """The hash of a file, read in pieces; None where there is none."""
    if not path.is_file():
        return None
    total = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            total.update(piece)
    return total.hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, its folders included. Raises DeviceError where it cannot be written."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise DeviceError(f"cannot write {path}: {error.strerror or error}") from error
