"""What a user names as a file: read only where it is one, since a pipe is waited for and a device has no end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

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
