"""Import a vendor's package without what it does beside its work."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


def without_telemetry(package: str) -> ModuleType:
    """A package of OpenVINO's, imported so that it neither sends events nor keeps an identifier of the user.

    Importing `openvino` or `nncf` already sends one, through the package openvino_telemetry, unless that is missing:
    then both do without. Raises ImportError when the package itself is missing.
    """
    name = "openvino_telemetry"
    if package in sys.modules or name in sys.modules:
        return importlib.import_module(package)
    sys.modules[name] = None  # type: ignore[assignment]  # what makes an import fail, by the import system's rules
    try:
        return importlib.import_module(package)
    finally:
        del sys.modules[name]
