"""What a run tells the person who waits for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichBar

from pipeline.tools.printing import plain

LINE_SECONDS = 10.0
"""Least time between two lines about the steps of one stage where there is no terminal, seconds."""


class Progress(Protocol):
    """Where a run says what it is doing."""

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Enclose one stage of the run; the steps reported inside belong to it."""

    def step(self, done: int, total: int, **figures: float) -> None:
        """Say that `done` of `total` steps of the present stage are done, with figures worth watching."""

    def say(self, line: str) -> None:
        """Say one line that stays."""


class SilentProgress:
    """Says nothing."""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Enclose one stage of the run."""
        yield

    def step(self, done: int, total: int, **figures: float) -> None:
        """Ignore a step."""

    def say(self, line: str) -> None:
        """Ignore a line."""


SILENT: Final[Progress] = SilentProgress()
"""What a function that was not told of one says its progress to."""


class LineProgress:
    """Writes one plain line per finished stage, and few in between: for logs and pipes."""

    def __init__(self, write: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._stage = ""
        self._last_line = 0.0
        self._figures = ""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Enclose one stage of the run and write its duration when it has ended well."""
        start = self._last_line = self._clock()
        self._stage, self._figures = name, ""
        yield
        self._write(finished_line(name, self._clock() - start, self._figures))

    def step(self, done: int, total: int, **figures: float) -> None:
        """Write a step if the last line is long enough ago."""
        self._figures = figures_text(figures)
        now = self._clock()
        if now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self._write(f"{self._stage} {done}/{total}  {self._figures}".rstrip())

    def say(self, line: str) -> None:
        """Write a line."""
        self._write(plain(line))


class TerminalProgress:
    """Draws a moving bar for the present stage and leaves one line per finished one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: RichBar | None = None
        self._task = TaskID(0)
        self._figures = ""

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Enclose one stage of the run."""
        start = time.monotonic()
        self._figures = ""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeRemainingColumn(),
        )
        try:
            with RichBar(*columns, console=self._console, transient=True) as bar:
                self._bar, self._task = bar, bar.add_task(name, total=None, figures="")
                yield
        finally:
            self._bar = None
        self.say(finished_line(name, time.monotonic() - start, self._figures))

    def step(self, done: int, total: int, **figures: float) -> None:
        """Move the bar."""
        self._figures = figures_text(figures)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, figures=self._figures)

    def say(self, line: str) -> None:
        """Write a line above the bar."""
        self._console.print(plain(line), markup=False, emoji=False, highlight=False, soft_wrap=True)


def progress_on(console: Console, *, quiet: bool = False) -> Progress:
    """Return the kind of progress that suits a console: a bar on a terminal, sparse lines elsewhere."""
    if quiet:
        return SilentProgress()
    if console.is_terminal:
        return TerminalProgress(console)
    return LineProgress(lambda line: console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True))


def finished_line(name: str, seconds: float, figures: str) -> str:
    """Return the line that a finished stage leaves."""
    return f"{name:<10} {seconds:6.1f} s  {figures}".rstrip()


def figures_text(figures: dict[str, float]) -> str:
    """Return named figures in four significant digits, underscores as spaces."""
    return "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in figures.items())
