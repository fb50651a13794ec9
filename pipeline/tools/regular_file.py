"""What a user names as a file: read only where it is one, since a pipe is waited for and a device has no end.

A pipe may be the file of settings, as a shell makes one of `--config <(command)`: within a size and a time.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import time
from pathlib import Path

from calibration.errors import UserError

PATIENCE = 10.0
"""Seconds that a pipe may take to come to its end."""

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def irregular(path: Path) -> str | None:
    """What is wrong with a path that names neither a regular file nor a folder, in words behind it.

    None where it names one of them or nothing at all; links are followed.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # what opens it will say why
        return None
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), None)
    return None if kind is None else f"is {kind}, no regular file: save what it holds as a file"


def is_pipe(path: Path) -> bool:
    """Whether a path, its links followed, names a pipe that can be waited for here."""
    try:
        return stat.S_ISFIFO(os.stat(path).st_mode) and hasattr(select, "poll")
    except (OSError, ValueError):  # what opens it will say why
        return False


def read_pipe(path: Path, *, most: int, where: str, seconds: float = PATIENCE) -> bytes:
    """Return what is written into a pipe until its end, no more than `most` bytes.

    Raises:
        UserError: nobody writes, or the end does not come, within so many seconds.
        OSError: it cannot be opened.
    """
    content, end = b"", time.monotonic() + seconds
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # without the flag the opening waits for who writes
    try:
        events = select.poll()
        events.register(descriptor, select.POLLIN)
        left = False
        while len(content) < most:
            with contextlib.suppress(BlockingIOError):  # who writes has not come to an end
                part = os.read(descriptor, most - len(content))
                if not part and (content or left):
                    return content
                content += part
                if part:
                    continue
            # No bytes and no end: somebody still writes, or nobody has begun to.
            told = events.poll(max(0.0, end - time.monotonic()) * 1000)
            if not told:
                raise UserError(
                    f"{where} is a pipe that has not come to its end within {seconds:g} s: save what it holds as a file"
                )
            left = bool(told[0][1] & select.POLLHUP)
    finally:
        os.close(descriptor)
    return content
