"""A model as bytes: in one piece, or where that is too large for a file, its weights in a second file beside it."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # its stubs are a package apart
from onnx import TensorProto, helper

from backends.facts.limits import LARGEST_MODEL
from backends.onnx_file.scratch import scratch_folder
from calibration.errors import UserError

#: What the second file's name ends with.
DATA_SUFFIX = ".data"
# Smaller constants (shapes, scales, zero points) stay in the graph, where shape inference reads them; onnx's own limit.
_SMALLEST_OUTSIDE = 1024
# Where a tensor begins is a multiple of this, so that runtimes can map it; what ONNX asks for.
_PAGE = 4096


@dataclass(frozen=True, kw_only=True)
class SplitModel:
    """A serialised graph, and the weights that it looks for in a file called `location` beside its own."""

    graph: bytes
    data: bytes
    location: str


#: What runtimes are given.
Serialised = bytes | SplitModel


def size_of(model: Serialised) -> int:
    """Bytes of all files of a model."""
    return len(model) if isinstance(model, bytes) else len(model.graph) + len(model.data)


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of a model's constants."""
    return sum(_bytes(tensor) for tensor in model.graph.initializer)


def serialise(model: onnx.ModelProto, *, name: str, most: int = LARGEST_MODEL) -> Serialised:
    """A model as bytes; with more than `most` bytes of constants, the large ones for a file NAME.data beside NAME.

    These leave `model` on the way: there is no room for all of them twice.
    """
    if weight_bytes(model) <= most:
        whole: bytes = model.SerializeToString()
        return whole
    graph, data = _without_large(model), io.BytesIO()
    for tensor in model.graph.initializer:
        if not _is_large(tensor):
            continue
        stored = tensor.raw_data
        outside = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        outside.data_location = TensorProto.EXTERNAL
        for key, value in (("location", name + DATA_SUFFIX), ("offset", data.tell()), ("length", len(stored))):
            outside.external_data.add(key=key, value=str(value))
        graph.graph.initializer.append(outside)
        tensor.ClearField("raw_data")
        data.write(stored)
        data.write(bytes(-len(stored) % _PAGE))
    return SplitModel(graph=graph.SerializeToString(), data=data.getvalue(), location=name + DATA_SUFFIX)


def parsed(model: Serialised) -> onnx.ModelProto:
    """The model with all of its constants. Raises UserError for bytes that are no ONNX file, or one without a graph."""
    try:
        whole = onnx.load_model_from_string(model if isinstance(model, bytes) else model.graph)
    except DecodeError as error:
        raise UserError(f"the model is no ONNX file: {error}") from error
    if not whole.graph.node or not whole.graph.input:
        raise UserError("the model is no ONNX file: it holds no graph")
    if isinstance(model, bytes):
        return whole
    for tensor in whole.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            start = int(place["offset"])
            tensor.raw_data = model.data[start : start + int(place["length"])]
            tensor.ClearField("data_location")
            tensor.ClearField("external_data")
    return whole


def in_one_piece(model: Serialised, reader: str) -> bytes:
    """The bytes of a model for a runtime that takes no second file. Raises UserError for one that has one."""
    if isinstance(model, SplitModel):
        raise UserError(
            f"{reader} reads models in one file alone, and this one has {len(model.data) / 1e9:.3g} GB of weights"
            " beside it (--external-data-above)"
        )
    return model


def files_of(model: Serialised, name: str) -> dict[str, bytes]:
    """A model's files by name, the one with the weights first: what is there then is never a graph without them."""
    if isinstance(model, bytes):
        return {name: model}
    return {model.location: model.data, name: model.graph}


def read_model(path: Path) -> Serialised:
    """The model of a file, with what lies beside it."""
    beside = path.with_name(path.name + DATA_SUFFIX)
    if not beside.is_file():
        return path.read_bytes()
    return SplitModel(graph=path.read_bytes(), data=beside.read_bytes(), location=beside.name)


@contextmanager
def on_disk(model: SplitModel) -> Iterator[Path]:
    """The path of a split model's graph in a temporary folder. Raises UserError where there is no room for it."""
    with scratch_folder("model", needed=size_of(model)) as folder:
        (folder / model.location).write_bytes(model.data)
        path = folder / model.location.removesuffix(DATA_SUFFIX)
        path.write_bytes(model.graph)
        yield path


def check_model(model: onnx.ModelProto) -> None:
    """Hold a model against ONNX's definition; of one that is too large for that, all but its large constants."""
    onnx.checker.check_model(model if weight_bytes(model) <= LARGEST_MODEL else _with_large_as_inputs(model))


def _bytes(tensor: TensorProto) -> int:
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    count: int = math.prod(tensor.dims)
    return count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _is_large(tensor: TensorProto) -> bool:
    return tensor.HasField("raw_data") and len(tensor.raw_data) >= _SMALLEST_OUTSIDE


def _without_large(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without its large constants; copying the whole would pass protobuf's limit on the way."""
    graph = model.graph
    copy = onnx.ModelProto(
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        opset_import=model.opset_import,
        functions=model.functions,
        metadata_props=model.metadata_props,
    )
    copy.graph.name = graph.name
    copy.graph.node.extend(graph.node)
    copy.graph.input.extend(graph.input)
    copy.graph.output.extend(graph.output)
    copy.graph.value_info.extend(graph.value_info)
    copy.graph.initializer.extend(tensor for tensor in graph.initializer if not _is_large(tensor))
    return copy


def _with_large_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = _without_large(model)
    copy.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in model.graph.initializer
        if _is_large(tensor)
    )
    return copy
