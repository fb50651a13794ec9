"""The failure that the device's user can mend."""

from __future__ import annotations

from .stored import printable


class DeviceError(Exception):
    """A mistake or a lack that the user can mend: one line saying what, where and how; exit status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))
