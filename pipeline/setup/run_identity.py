"""Which run something belongs to: a hash of all that decides it, written into everything that a run keeps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from calibration.errors import UserError
from pipeline.setup.resumption import DECIDED_BY, FREE, IDENTIFIED, Settings, decides
from pipeline.tools.kept import RUN


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What a run and the parts that it keeps are known by: SHA-256 in hexadecimal."""

    run: str
    """Of all that decides bundle and report."""
    parts: Mapping[str, str]
    """Key of `pipeline.setup.resumption.DECIDED_BY` -> of all that decides this part."""

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
        return cls(run=tree[RUN], parts={name: str(parts.get(name)) for name in DECIDED_BY})


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
        inputs: what each of `pipeline.setup.resumption.INPUTS` holds.
        contents: hashes of all files that it reads, those that it is scored on among them.
        circumstances: versions and whatever else of the machine decides the bits of a result.
        kept: part -> identity of those that were made before, with settings that come to the same.
    """
    values = {**settings.typed, **settings.settled}
    parts = dict(kept)
    for name in DECIDED_BY.keys() - kept.keys():
        deciding = {key: value for key, value in values.items() if _counts(key, name)}
        made_from = {key: content for key, content in inputs.items() if decides(key, name)}
        parts[name] = _hashed(deciding, made_from, circumstances)
    decisive = {key: value for key, value in values.items() if key not in FREE | IDENTIFIED}
    decisive |= {"parts": parts, "contents": sorted(contents)}
    return RunIdentity(run=_hashed(decisive, inputs, circumstances), parts=parts)


def _counts(key: str, part: str) -> bool:
    """Whether a setting is of those that decide a part; sources are known by what they hold instead."""
    return key not in FREE | IDENTIFIED and decides(key, part)


def _hashed(values: Mapping[str, Any], inputs: Mapping[str, str], circumstances: Mapping[str, Any]) -> str:
    known = {"values": values, "inputs": inputs, "circumstances": circumstances}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
