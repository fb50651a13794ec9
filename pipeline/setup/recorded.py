"""What a run's folder records of the run: its settings, and what it was begun with and made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from backends.device.bundle_check.records import value_from_json
from calibration.errors import UserError
from pipeline.config.execution import MOST_THREADS
from pipeline.setup.run_identity import RunIdentity
from pipeline.setup.settings_of_run import Settings
from pipeline.tools.kept import ANEW, RUN, Kept

# Keys of the file beside those of the settings.
_BEGUN_WITH, _INPUTS, _CONTENTS = "begun-with", "inputs", "contents"
_IDENTITY, _SETTLED, _PROCESSORS = "identity", "settled", "processors"
_BESIDE: Final[Mapping[str, Any]] = {
    _BEGUN_WITH: dict[str, str],
    _INPUTS: dict[str, str],
    _CONTENTS: dict[str, str],
    _IDENTITY: dict[str, Any],
    _SETTLED: dict[str, Any],
    _PROCESSORS: tuple[str, ...],
}
# Of the settled values the one that a run that goes on takes as it stands.
_THREADS = "training-threads"
#: What a flag may hold.
_Typed = bool | int | float | str | tuple[bool | int | float | str, ...] | None


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The record of a run."""

    settings: Settings
    begun_with: Mapping[str, str]
    """Library -> version that the run was begun with."""
    inputs: Mapping[str, str]
    """What each of `pipeline.setup.decisive.INPUTS` holds."""
    contents: Mapping[str, str]
    """Path of a file or folder that was read -> hash of what it held."""
    identity: Mapping[str, Any]
    """As `RunIdentity.to_json` gave it; empty where an older version began the run."""
    processors: tuple[str, ...]
    """Instruction sets of the processors that it was computed on."""

    @classmethod
    def read(cls, file: Path) -> Recorded:
        """What `save` wrote.

        Raises:
            UserError: the file is damaged.
        """
        typed = Kept(file).load_tree()
        beside: dict[str, Any] = {key: typed.pop(key) for key in _BESIDE if key in typed}
        try:
            for key, value in beside.items():
                value_from_json(value, _BESIDE[key], where=f"{file}: {key}")
            value_from_json(typed, dict[str, _Typed], where=f"{file}:")
            _check_threads(beside.get(_SETTLED, {}), file)
        except ValueError as error:
            raise UserError(f"{error}: {ANEW}") from error
        return cls(
            settings=Settings(typed=typed, settled=beside.get(_SETTLED, {})),
            begun_with=beside.get(_BEGUN_WITH, {}),
            inputs=beside.get(_INPUTS, {}),
            contents=beside.get(_CONTENTS, {}),
            identity=beside.get(_IDENTITY, {}),
            processors=tuple(beside.get(_PROCESSORS, ())),
        )

    def save(self, file: Path) -> None:
        """Write the record. Raises UserError where the disk is full or the place cannot be written."""
        beside = {
            _BEGUN_WITH: dict(self.begun_with),
            _INPUTS: dict(self.inputs),
            _CONTENTS: dict(self.contents),
            _IDENTITY: dict(self.identity),
            _SETTLED: self.settings.settled,
            _PROCESSORS: list(self.processors),
        }
        Kept(file).save_json({**self.settings.typed, **beside})

    @property
    def run(self) -> str | None:
        """The run that this is the record of; None where it does not say."""
        run = self.identity.get(RUN)
        return run if isinstance(run, str) else None

    @property
    def threads(self) -> int:
        """Threads that calibrate and train in this run."""
        return int(self.settings.settled[_THREADS])

    def identity_in(self, file: Path) -> RunIdentity:
        """The identity of run and parts, as `file` says it.

        Raises:
            UserError: it does not.
        """
        return RunIdentity.from_json(self.identity, where=str(file))


def _check_threads(settled: Mapping[str, Any], file: Path) -> None:
    """Raise ValueError where a number of threads is none."""
    threads = value_from_json(settled.get(_THREADS, 1), int, where=f"{file}: {_SETTLED}: {_THREADS}")
    if not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"{file}: {_SETTLED}: {_THREADS} is {threads}: must be 1 to {MOST_THREADS}")
