"""The SDK's Python package: which one is here, whether it is new enough, and what it says while it works."""

from __future__ import annotations

import importlib
import re
from typing import Any

from .errors import DeviceError, TooOldError

#: The first version whose strongly typed networks, names and inspector are those of 11 (but for rows that say so).
OLDEST = (10, 0)
#: Severities as the SDK numbers them: 0 internal error, 1 error, 2 warning, 3 information, 4 verbose.
_ERROR, _WARNING = 1, 2
#: The compilers' own lists of kernels, which they write as one verbose message.
_LISTINGS = ("Layers:", "Engine Layer Information:")


def load_sdk(name: str = "tensorrt") -> Any:
    """The package `tensorrt` (enterprise, 10.0 or newer) or `tensorrt_rtx`.

    Raises DeviceError when it is missing or cannot load its libraries, TooOldError when it is too old.
    """
    try:
        sdk = importlib.import_module(name)
    except (ImportError, OSError) as error:  # a wheel without its libraries raises either
        raise DeviceError(
            f"the Python package {name} cannot be imported here ({error}): JetPack installs it as"
            " python3-libnvinfer, elsewhere pip install tensorrt"
        ) from error
    if name == "tensorrt" and version_of(sdk)[:2] < OLDEST:
        raise TooOldError(
            f"TensorRT {sdk.__version__} is here, 10.0 is the oldest that builds strongly typed networks:"
            " install JetPack 6.1 or newer, or pip install 'tensorrt>=10'"
        )
    return sdk


def version_of(sdk: Any) -> tuple[int, ...]:
    """The SDK's version as numbers; what is no number (a post-release) ends it."""
    return tuple(int(part) for part in re.findall(r"\d+", str(sdk.__version__))[:4])


def product(sdk: Any) -> str:
    """What to call the SDK in a message."""
    return f"{'TensorRT-RTX' if sdk.__name__.startswith('tensorrt_rtx') else 'TensorRT'} {sdk.__version__}"


def message_log(sdk: Any) -> Any:
    """A logger for the SDK's objects that keeps warnings, errors and the list of kernels, and prints nothing."""

    class MessageLog(sdk.ILogger):  # type: ignore[misc]  # the package has no types
        """`errors`, `warnings` and `listing`, in the order in which they came."""

        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.listing: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Hear one message; called by the SDK, from any of its threads."""
            level = int(severity)
            if level <= _ERROR:
                self.errors.append(message)
            elif level == _WARNING:
                self.warnings.append(message)
            elif message.startswith(_LISTINGS):
                self.listing.append(message)

    return MessageLog()
