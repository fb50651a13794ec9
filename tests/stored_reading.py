"""What becomes of a command on files that were changed: how it ends, in how much time, and what it says."""

from __future__ import annotations

import contextlib
import io
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

#: A command that has not ended by then hangs, seconds.
PATIENCE = 10


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a command ended: its status, the name of an exception that got through, or "hang"; and its error lines."""

    ended: int | str
    err: str
    seconds: float

    @property
    def refused(self) -> bool:
        """Whether it was refused as every mistake is: status 2 and one line, which no terminal obeys."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return self.ended == 2 and len(lines) == 1 and lines[0].isprintable()


class _Hangs(BaseException):
    pass


def read_by(command: Callable[[], int], *, patience: int = PATIENCE) -> Reading:
    """Run a command in this process, for so long as patience lasts."""
    out, err, begun = io.StringIO(), io.StringIO(), time.monotonic()
    ended: int | str
    try:
        with _patience(patience), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            ended = command()
    except _Hangs:
        ended = "hang"
    except SystemExit as leaving:
        ended = f"SystemExit {leaving.code}"
    except Exception as error:  # that is what is looked for
        ended = f"{type(error).__name__}: {str(error)[:100]}"
    return Reading(ended=ended, err=err.getvalue(), seconds=time.monotonic() - begun)


@contextlib.contextmanager
def _patience(seconds: int) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise _Hangs

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def same_files(one: Path, other: Path) -> bool:
    """Whether two folders hold the same: a change may have changed nothing."""
    held = [{path.relative_to(root): _held(path) for path in root.rglob("*")} for root in (one, other)]
    return held[0] == held[1]


def _held(path: Path) -> object:
    if path.is_symlink():
        return path.readlink()
    if path.is_file() and path.stat().st_size < 1 << 30:
        return path.read_bytes()
    return path.stat().st_mode
