"""The standard streams of a process, whatever its caller did with them: closed, full, or read by nobody any more.

What is printed is never the work: messages that nobody can be told are left out, and a result that cannot be printed
ends the process with its own status once the work is done.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, Final, TextIO, final

PIPE_CLOSED: Final = 141
"""Exit status when who read the results wants no more of them: 128 + SIGPIPE, as shells count it."""


def open_closed_streams() -> None:
    """Give descriptors 0 to 2 that are closed a place that takes anything, and the streams on them.

    Otherwise the next file that is opened is the process's standard error, into which libraries print.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = _nowhere()
    if sys.stderr is None:
        sys.stderr = _nowhere()


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")


@final
class _Messages:
    """A stream that goes on when what it writes to takes nothing: there is nobody left to be told."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand on what can be handed on."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def messages_may_fail() -> Iterator[None]:
    """Let standard error be full or closed inside the block without ending what is being done."""
    before = sys.stderr
    sys.stderr = _Messages(before)
    try:
        yield
    finally:
        sys.stderr.flush()
        sys.stderr = before
        _let_go(before)


def flush_results() -> None:
    """Hand on all that was printed as results.

    Raises OSError where it finds no place, BrokenPipeError where nobody reads it.
    """
    sys.stdout.flush()


def give_up_results() -> None:
    """Let what is left of the results go nowhere: Python would fail once more where it flushes them at the end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _let_go(stream: TextIO) -> None:
    """Messages that a full or closed stream still holds would be Python's own failure at its end."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
