"""The one failure that the device's user can mend."""

from __future__ import annotations


class DeviceError(Exception):
    """A mistake or a lack that the user can mend: one line saying what, where and how; exit status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class TooOldError(DeviceError):
    """The SDK is here, and its version is too old to build what we need."""
