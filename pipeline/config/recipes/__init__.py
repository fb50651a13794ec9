"""Recipes: the settings of a paper's method by name, as TOML files beside this one.

A recipe says `title`, `source`, `ours` (what of it is our own choice), `needs` (flags that the user must add, as
often as they are named) and `[settings]`, whose keys are flags without their dashes. Flags and `--config` win over it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.device.bundle_check import records
from calibration.errors import UserError
from pipeline.config import RunConfig, flags

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One method with its settings."""

    name: str
    title: str
    source: str
    ours: str
    needs: tuple[str, ...]
    settings: Mapping[str, Any]

    def missing(self, typed: Mapping[str, Any]) -> str:
        """The flags that must be added to those given, by key and with a list where it may be given several times."""
        counts = {key: len(value) if isinstance(value, list | tuple) else 1 for key, value in typed.items()}
        needed = {flag: self.needs.count(flag) for flag in self.needs}
        lacking = [flag for flag, count in needed.items() if counts.get(flag, 0) < count]
        return " and ".join(f"--{flag}" + (f" {needed[flag]} times" if needed[flag] > 1 else "") for flag in lacking)


def all_recipes() -> list[Recipe]:
    """All recipes, by name."""
    return [_read(_FOLDER / f"{name}.toml") for name in _names()]


def recipe_named(name: str) -> Recipe:
    """The recipe of that name. Raises UserError listing the known ones."""
    known = _names()
    if name not in known:
        raise UserError(f"--recipe {name}: unknown{records.nearest(name, known)}; known are {', '.join(known)}")
    return _read(_FOLDER / f"{name}.toml")


def _names() -> list[str]:
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def _read(path: Path) -> Recipe:
    tree = tomllib.loads(path.read_text(encoding="utf-8"))
    flags.check_keys(RunConfig, tree["settings"], where=str(path))
    return Recipe(
        name=path.stem,
        title=tree["title"],
        source=tree["source"],
        ours=tree["ours"],
        needs=tuple(tree.get("needs", ())),
        settings=tree["settings"],
    )
