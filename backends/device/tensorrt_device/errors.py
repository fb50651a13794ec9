"""The failures that the device's user can mend."""

from __future__ import annotations

from ..bundle_check.errors import DeviceError

__all__ = ["DeviceError", "TooOldError"]


class TooOldError(DeviceError):
    """The SDK is here, and its version is too old to build what we need."""
