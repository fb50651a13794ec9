"""Ctrl-C while libraries are imported: the process ends there, in one line.

Nothing has begun then. An exception would end up in the middle of a library's own start, where C code turns it into
another one or forgets it: numpy and torch take a second or two.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

STATUS = 130
"""128 + SIGINT, as shells count it."""

_end = os._exit  # Python's own: while a user's code may run, `os._exit` says that it was called
_lines: list[str] = []
"""What is said; empty where Ctrl-C is Python's own KeyboardInterrupt."""


def leave_at_once(line: str) -> None:
    """From now on let Ctrl-C end the process with this line on standard error, until `work_begins`.

    A caller that handles the signal itself, or ignores it as a shell's background job does, keeps its own way.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    if not _lines and signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    _lines[:] = [line]
    signal.signal(signal.SIGINT, _leave)


def work_begins() -> None:
    """From now on let Ctrl-C raise KeyboardInterrupt: what is being done has an end of its own."""
    if _lines and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _lines.clear()


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{_lines[0]}\n".encode(errors="replace"))
    _end(STATUS)
