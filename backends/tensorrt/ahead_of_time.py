"""An engine built without a GPU by TensorRT-RTX, which shares TensorRT's ONNX parser, and what its listing says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import onnx

from backends.device.tensorrt_device.build import EngineOptions, build_engine
from backends.device.tensorrt_device.errors import DeviceError
from backends.device.tensorrt_device.kernels import EngineKernel, parse_listing
from backends.device.tensorrt_device.sdk import load_sdk
from backends.onnx_file.view import OnnxView, node_name
from calibration.errors import MissingExtra, UserError


@dataclass(frozen=True, kw_only=True)
class AheadOfTimeEngine:
    """What an ahead-of-time build says of a model.

    `integer_layers` and `float_layers` name weighted nodes of the file by whether one of their kernels multiplies
    integers, `int4_layers` those of the latter that read int4 weights as they are; `seconds` is the time of parsing and
    building, `log` the compiler's warnings and its listing of kernels.
    """

    size_bytes: int
    seconds: float
    integer_layers: tuple[str, ...]
    float_layers: tuple[str, ...]
    int4_layers: tuple[str, ...]
    kernels: tuple[EngineKernel, ...]
    log: str


@contextmanager
def users_mistakes() -> Iterator[None]:
    """Let what the device code reports be the user's one line."""
    try:
        yield
    except DeviceError as error:
        raise UserError(str(error)) from error


def build_ahead_of_time(
    model: bytes, *, options: EngineOptions | None = None, outputs: Sequence[str] = ()
) -> AheadOfTimeEngine:
    """Parse and build a serialised model for all GPUs that TensorRT-RTX can compile for without having one.

    `outputs`: tensors that the engine writes beside its results. The listing is TensorRT-RTX's own choice of kernels,
    a signal and not what TensorRT will choose. Raises MissingExtra when the package tensorrt_rtx is absent, UserError
    naming node and rule when the parser or the builder refuses the model.
    """
    try:
        sdk = load_sdk("tensorrt_rtx")
    except DeviceError as error:
        raise MissingExtra("tensorrt_rtx", extra="tensorrt-rtx", needed_for="an ahead-of-time engine build") from error
    with users_mistakes():
        built = build_engine(sdk, model, options or EngineOptions(), outputs=outputs)
    kernels = parse_listing(built.listing)
    view = OnnxView(onnx.load_model_from_string(model))
    names = [node_name(node) for node in view.nodes if view.is_weighted(node)]
    on_int4 = {name for kernel in kernels if kernel.reads_int4 for name in kernel.nodes}
    on_integers = {name for kernel in kernels if kernel.multiplies_integers for name in kernel.nodes}
    return AheadOfTimeEngine(
        size_bytes=len(built.plan),
        seconds=built.seconds,
        integer_layers=tuple(name for name in names if name in on_integers),
        float_layers=tuple(name for name in names if name not in on_integers),
        int4_layers=tuple(name for name in names if name in on_int4),
        kernels=kernels,
        log="\n".join([*built.warnings, built.listing]),
    )
