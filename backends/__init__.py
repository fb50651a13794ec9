"""Deployment targets: where each executes integers, how its artifact is written, checked and run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from calibration.errors import UserError, require_package

if TYPE_CHECKING:
    from backends.base import Backend


def _onnxruntime() -> Backend:
    from backends.onnxruntime import OnnxRuntime

    return OnnxRuntime()


def _tensorrt() -> Backend:
    from backends.tensorrt import TensorRT

    return TensorRT()


def _openvino() -> Backend:
    from backends.openvino import OpenVINO

    return OpenVINO()


def _reference() -> Backend:
    from backends.reference import Reference

    return Reference()


#: Name on the command line -> how to make the backend. Importing this table imports no backend.
BACKENDS: dict[str, Callable[[], Backend]] = {
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
    "openvino": _openvino,
    "reference": _reference,
}

#: Backends whose runtime pip installs on any machine, with the package and the extra that brings it: without it a run
#: could only end unvalidated, so it does not start.
_PACKAGES = {"openvino": ("openvino", "openvino")}


def backend_named(name: str) -> Backend:
    """The backend of that name. Raises UserError listing the known ones, MissingExtra where its package is missing."""
    if name not in BACKENDS:
        raise UserError(f"--backend {name}: unknown; known are {', '.join(BACKENDS)}")
    if name in _PACKAGES:
        package, extra = _PACKAGES[name]
        require_package(package, extra=extra, needed_for=f"--backend {name}")
    return BACKENDS[name]()
