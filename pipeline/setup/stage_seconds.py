"""How long the stages of a run took, over all interruptions: kept beside the state, and added to by a resumed run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import final

from backends.device.bundle_check.records import value_from_json
from backends.device.bundle_check.stored import DamagedError, read_sealed
from calibration.errors import UserError
from pipeline.tools.kept import Kept
from pipeline.tools.progress import Progress

KEEPING_SECONDS = 20.0
"""Least time between two writings while a stage lasts, seconds: what a killed run may forget."""


@final
class StageSeconds:
    """A progress that hands everything on and notes the seconds of each stage.

    A stage's time counts whether it ends well, is interrupted (so far) or is begun again by a resumed run.
    """

    def __init__(self, progress: Progress, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress, self._clock = progress, clock
        self._file: Path | None = None
        self._ended = dict[str, float]()
        self._stage, self._begun, self._kept = "", 0.0, 0.0

    def keep_in(self, file: Path, *, resumed: bool) -> None:
        """Keep the seconds in a file from now on, added to those of the run that it goes on with.

        Raises UserError when it cannot be written.
        """
        if resumed:
            # Stages in the order in which they were first begun.
            before, now = self._read(file), self._ended
            self._ended = {name: before.get(name, 0.0) + now.get(name, 0.0) for name in {**before, **now}}
        self._file = file
        self._keep()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Enclose one stage of the run."""
        self._stage, self._begun = name, self._clock()
        self._kept = self._begun
        try:
            with self._progress.stage(name):
                yield
        except BaseException:
            self._end()
            with contextlib.suppress(UserError):  # what ended the stage is what its user should hear of
                self._keep()
            raise
        self._end()
        self._keep()

    def step(self, done: int, total: int, **figures: float) -> None:
        """Hand a step on; now and then keep the stage's time so far."""
        self._progress.step(done, total, **figures)
        if self._clock() - self._kept >= KEEPING_SECONDS:
            self._kept = self._clock()
            self._keep()

    def say(self, line: str) -> None:
        """Hand a line on."""
        self._progress.say(line)

    def seconds(self) -> dict[str, float]:
        """Seconds by stage, in the order in which stages were first begun; the present one's so far."""
        seconds = dict(self._ended)
        if self._stage:
            seconds[self._stage] = seconds.get(self._stage, 0.0) + self._clock() - self._begun
        return seconds

    def _end(self) -> None:
        self._ended, self._stage = self.seconds(), ""

    def _read(self, file: Path) -> dict[str, float]:
        """What an interrupted run has kept; nothing but its report's times hangs on a file that was changed."""
        if not file.exists():
            return {}
        try:
            kept = value_from_json(read_sealed(file), dict[str, float], where=f"{file}:")
            if min(kept.values(), default=0.0) < 0:
                raise DamagedError(f"{file} is damaged: it says {min(kept.values())} seconds")
        except ValueError as error:
            self.say(f"times of the interrupted run are not counted: {error}")
            return {}
        return {name: float(seconds) for name, seconds in kept.items()}

    def _keep(self) -> None:
        if self._file is not None:
            Kept(self._file).save_json(self.seconds())
