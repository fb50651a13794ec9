"""Deployment targets: where each executes integers, how its artifact is written, checked and run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from calibration.errors import UserError

if TYPE_CHECKING:
    from backends.base import Backend


def _onnxruntime() -> Backend:
    from backends.onnxruntime import OnnxRuntime

    return OnnxRuntime()


def _tensorrt() -> Backend:
    from backends.tensorrt import TensorRT

    return TensorRT()


def _reference() -> Backend:
    from backends.reference import Reference

    return Reference()


#: Name on the command line -> how to make the backend. Importing this table imports no backend.
BACKENDS: dict[str, Callable[[], Backend]] = {
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
    "reference": _reference,
}


def backend_named(name: str) -> Backend:
    """The backend of that name. Raises UserError listing the known ones."""
    if name not in BACKENDS:
        raise UserError(f"--backend {name}: unknown; known are {', '.join(BACKENDS)}")
    return BACKENDS[name]()
