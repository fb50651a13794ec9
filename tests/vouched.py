"""Manifests that vouch for whatever a test has put into a bundle: as a run writes them, and as a forger would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from backends.device.bundle_check.manifest import FORMAT, MANIFEST, Manifest
from backends.device.bundle_check.records import from_json
from backends.device.bundle_check.stored import digest_of_file, sealed, text_as_written

#: What every manifest says, of the smallest network there is.
LEAST: dict[str, Any] = {
    "format": FORMAT,
    "backend": "onnxruntime",
    "inputs": [{"name": "x", "type": "float", "shape": ["batch", 1, 2, 2]}],
    "outputs": [{"name": "y", "holds": "classes", "class_axis": 1}],
    "preprocessing": {"channels": 1, "height": 2, "width": 2, "channel_order": "L", "mean": [0.5], "std": [0.5]},
    "plan": {"weights": [], "float_nodes": {}, "kinds": {}},
    "bits": {"weights": 8, "activations": 8},
    "teacher": "digits",
    "student": "digits",
    "seed": 0,
    "versions": {},
    "files": {},
    "sizes": {},
}


def manifest_with(**changes: Any) -> Manifest:
    """A manifest in memory."""
    return from_json(Manifest, LEAST | changes, where="manifest")


def vouch(bundle: Path, **changes: Any) -> dict[str, Any]:
    """Make a manifest anew: what it said, or what every one says, with changes; with the hashes of what is there.

    A change to None takes a key away.
    """
    path = bundle / MANIFEST
    tree = json.loads(path.read_bytes()) if path.is_file() else LEAST | {"format": FORMAT}
    tree = {key: value for key, value in (tree | changes).items() if value is not None}
    there = sorted(file for file in bundle.rglob("*") if file.is_file() and file != path)
    names = {file.relative_to(bundle).as_posix(): file for file in there}
    tree["files"] = {name: digest_of_file(file) for name, file in names.items()}
    if tree.get("format") == FORMAT:
        tree["sizes"] = {name: file.stat().st_size for name, file in names.items()}
    return seal(path, tree)


def seal(path: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """Write an object so that it vouches for itself."""
    vouching = sealed(tree)
    path.unlink(missing_ok=True)  # the file may be one with that of the bundle which it was copied from
    path.write_bytes(text_as_written(vouching))
    return vouching
