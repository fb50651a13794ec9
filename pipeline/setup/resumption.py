"""What a resumed run may change: no setting that decides what is finished, and no input that it was made from."""

from __future__ import annotations

import filecmp
import os
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.errors import UserError
from pipeline.config import flags
from pipeline.setup.decisive import DATA, FREE, IDENTIFIED, INPUTS, decides
from pipeline.setup.identity import path_identity
from pipeline.setup.settings_of_run import Settings


def changed_keys(before: Settings, now: Settings) -> list[str]:
    """The settings that differ and are not free, in the order of the flags."""
    keys = (*now.typed, *(before.typed.keys() - now.typed.keys()))
    return [key for key in keys if key not in FREE and before.differs(now, key)]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A part of a run that is kept, or training of which a part is."""

    name: str
    """One of `pipeline.setup.decisive.PARTS`."""
    what: str
    """In words, and where: "the calibration in FOLDER", "140 steps of training in FOLDER"."""
    several: bool = False
    """Whether these words are a plural."""
    trained: bool = False
    """Whether --restart-training makes it again, and nothing else."""

    @property
    def made(self) -> str:
        """Half a sentence, such as "the calibration in FOLDER was made"."""
        return f"{self.what} {'were' if self.several else 'was'} made"

    @property
    def way_out(self) -> str:
        """What to do where another setting is meant all the same."""
        if self.trained:
            return "add --restart-training, which trains anew from the first step on and keeps the rest"
        return "start anew with --overwrite"


def check_left_out(before: Settings, now: Settings, defaults: Mapping[str, Any], refused: Collection[str]) -> None:
    """Check that several flags which a run was started with are not left out: `refused` would be told one at a time.

    Raises:
        UserError: they are; the line has all of them, as they are typed.
    """
    absent = [key for key in refused if now.typed.get(key) == defaults.get(key) and before.typed.get(key) is not None]
    if len(absent) > 1:
        raise UserError(
            "--resume goes on with the flags that the run was started with, which are not given now: add"
            f" {' '.join(typed for key in absent for typed in _flag(key, before.typed[key]))}"
        )


def _flag(key: str, value: Any) -> Iterator[str]:
    """A flag with its value as on a command line; texts of a list each have a flag of their own."""
    if value is True:
        yield f"--{key}"
    elif isinstance(value, list) and any(isinstance(one, str) for one in value):
        for one in value:
            yield f"--{key} {shlex.quote(one)}"
    else:
        yield f"--{key} {shlex.quote(flags.as_typed(value))}"


def check_changes(
    before: Settings, now: Settings, finished: Collection[Finished], *, later: Collection[str] = ()
) -> None:
    """Check that no setting has changed which decides what is finished, but for those whose value is settled `later`.

    A source may be named otherwise: what it holds is compared when it has been read (see `check_same_inputs`).

    Raises:
        UserError: one has; the line names the flag, both values and what they decide.
    """
    for key in changed_keys(before, now):
        if key in IDENTIFIED or key in later:
            continue
        for part in finished:
            if decides(key, part.name):
                was, is_now = typed_or_not(before.typed.get(key)), typed_or_not(now.typed.get(key))
                raise UserError(
                    f"--resume: --{key} was {was} and is {is_now} now, and {part.made} with the former: give that"
                    f" again, or {part.way_out}"
                )


def check_same_inputs(
    before: Mapping[str, str],
    now: Mapping[str, str],
    changed: Collection[str],
    typed: Mapping[str, Any],
    finished: Collection[Finished],
) -> None:
    """Check that networks and images are those that the finished parts were made from, whatever they are called now.

    `before` and `now`: the identity of each of `INPUTS`; `changed`: the settings that are others now, `typed`: all.

    Raises:
        UserError: one is another; the line names the flag.
    """
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) == now.get(name):
            continue
        for part in finished:
            if decides(name, part.name):
                key = next((key for key in INPUTS[name] if key in changed), name)
                what = f"{_another(key, name, typed.get(key))} that {part.made} from"
                raise UserError(f"--resume: {what}: give those again, or {part.way_out}")


def same_files(before: Any, now: Any, contents: Mapping[str, str]) -> bool:
    """Whether two values of a flag of `INPUTS` name the same files, by other paths or as copies.

    A source's kind and what follows a # must be the same. `contents`: path -> hash of what a file held that the run
    read (see `hashes_of_inputs`), by which one is known that is not there any more.
    """
    if isinstance(before, list) and isinstance(now, list):
        return len(before) == len(now) and all(same_files(*pair, contents) for pair in zip(before, now, strict=True))
    if before == now or not isinstance(before, str) or not isinstance(now, str):
        return bool(before == now)
    (kind, old, part), (other_kind, new, other_part) = map(_place, (before, now))
    if (kind, part) != (other_kind, other_part) or not os.path.exists(new):
        return False
    if os.path.exists(old) and os.path.samefile(old, new):
        return True
    if os.path.isfile(old):
        return os.path.isfile(new) and filecmp.cmp(old, new, shallow=False)
    held = path_identity(Path(old)) if os.path.exists(old) else contents.get(old)
    return held is not None and held == path_identity(Path(new))


def hashes_of_inputs(typed: Mapping[str, Any]) -> dict[str, str]:
    """Path -> hash of every file or folder that a flag names as a source, or as weights."""
    values = (typed.get(key) for key in ("teacher", "weights", "student", "student-weights", DATA, "eval-data"))
    named = [one for value in values for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]
    paths = {_place(one)[1] for one in named}
    return {path: content for path in sorted(paths) if (content := path_identity(Path(path))) is not None}


def _place(value: str) -> tuple[str, str, str]:
    """A source or a file as its kind, its path, and what is named in it."""
    kind, colon, rest = ("", "", value) if os.path.exists(value) else value.partition(":")
    path, _, part = (rest, "", "") if os.path.exists(rest) else (rest if colon else value).partition("#")
    return (kind if colon else ""), path, part


def _another(key: str, name: str, value: Any) -> str:
    """What a flag has made of an input, words that go on with "that ... was made from"."""
    if key == DATA:
        return f"--data {typed_or_not(value)} does not hold the images"
    if key in ("teacher", "weights", "student", "student-weights"):
        return f"--{key} {typed_or_not(value)} is not the network, weights and all,"
    typed = f"without --{key}" if value in (None, []) else f"with --{key} {typed_or_not(value)}"
    return f"{typed} {'labels are not those' if name == DATA else f'the {name} is not the network'}"


def typed_or_not(value: Any) -> str:
    """A value as its user typed it, or that it was not typed."""
    return "not given" if value in (None, []) else flags.as_typed(value)
