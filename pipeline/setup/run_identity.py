"""Which run something belongs to: a hash of all that decides it, written into everything that a run keeps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from calibration.errors import UserError
from pipeline.setup.decisive import BUNDLE, IDENTIFIED, PARTS, decides
from pipeline.setup.settings_of_run import Settings
from pipeline.tools.kept import RUN


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What a run and the parts that it keeps are known by: SHA-256 in hexadecimal."""

    run: str
    """Of all that decides bundle and report."""
    parts: Mapping[str, str]
    """Each of `pipeline.setup.decisive.PARTS` -> of all that decides it."""

    def to_json(self) -> dict[str, Any]:
        """As `settings.json` holds it."""
        return {RUN: self.run, "parts": dict(self.parts)}

    @classmethod
    def from_json(cls, tree: object, *, where: str) -> RunIdentity:
        """What `to_json` gave.

        Raises:
            UserError: it is something else, such as nothing, where an older version began the run.
        """
        parts = tree.get("parts") if isinstance(tree, dict) else None
        if not isinstance(tree, dict) or not isinstance(parts, dict) or not isinstance(tree.get(RUN), str):
            raise UserError(f"{where} does not say which run it belongs to: start anew with --overwrite")
        return cls(run=tree[RUN], parts={name: str(parts.get(name)) for name in PARTS})


def identity_of(
    settings: Settings,
    inputs: Mapping[str, str],
    contents: Collection[str],
    circumstances: Mapping[str, Any],
    *,
    kept: Mapping[str, str],
) -> RunIdentity:
    """The identity of a run.

    Args:
        settings: as typed and as they come out.
        inputs: what each of `pipeline.setup.decisive.INPUTS` holds.
        contents: hashes of all files that it reads, those that it is scored on among them.
        circumstances: versions and whatever else of the machine decides the bits of a result.
        kept: part -> identity of those that were made before, with settings that come to the same.
    """
    values = {**settings.typed, **settings.settled}
    parts = dict(kept)
    for name in PARTS:
        if name in kept:
            continue
        deciding = _deciding(values, name)
        made_from = {key: content for key, content in inputs.items() if decides(key, name)}
        parts[name] = _hashed(deciding, made_from, circumstances)
    everything = _deciding(values, BUNDLE) | {"parts": parts, "contents": sorted(contents)}
    return RunIdentity(run=_hashed(everything, inputs, circumstances), parts=parts)


def _deciding(values: Mapping[str, Any], made: str) -> dict[str, Any]:
    """The settings that decide something that is made; sources are known by what they hold instead."""
    return {key: value for key, value in values.items() if key not in IDENTIFIED and decides(key, made)}


def _hashed(values: Mapping[str, Any], inputs: Mapping[str, str], circumstances: Mapping[str, Any]) -> str:
    known = {"values": values, "inputs": inputs, "circumstances": circumstances}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
