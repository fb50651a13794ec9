"""The failure that the device's user can mend."""

from __future__ import annotations


class DeviceError(Exception):
    """A mistake or a lack that the user can mend: one line saying what, where and how; exit status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
