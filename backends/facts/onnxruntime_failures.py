"""What ONNX Runtime raises when it cannot make a session."""

from __future__ import annotations


def session_failures() -> tuple[type[Exception], ...]:
    """The library's own exceptions, which share no base of their own, for a model or a provider that does not load."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented")
    return tuple(getattr(state, name) for name in (*names, "RuntimeException") if hasattr(state, name))
