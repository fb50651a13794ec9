"""Models in two files: what lies where, and that they run as the one file does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from backends import backend_named
from backends.onnx_file import serialised
from backends.onnx_file.serialised import (
    SplitModel,
    check_model,
    files_of,
    in_one_piece,
    parsed,
    read_model,
    serialise,
    size_of,
)
from backends.onnxruntime.backend import OnnxRuntime
from backends.oracle.backend import Reference
from calibration.errors import UserError


def split(model: onnx.ModelProto, most: int = 0) -> SplitModel:
    parts = serialise(model, name="net.onnx", most=most)
    assert isinstance(parts, SplitModel)
    return parts


@pytest.mark.parametrize("bits", [8, 4])
def test_a_model_in_two_files_is_the_same_model(bits: int, build: Callable[..., Any], tmp_path: Path) -> None:
    built = build("residual", bits=bits)
    backend = OnnxRuntime(built.profile)
    model = backend.emit(built.frozen)
    parts = split(backend.emit(built.frozen))
    assert parts.location == "net.onnx.data" and size_of(parts) == len(parts.graph) + len(parts.data)
    outside = [t for t in onnx.load_model_from_string(parts.graph).graph.initializer if t.external_data]
    assert outside and all(int(t.external_data[1].value) % 4096 == 0 for t in outside)
    assert {t.name for t in outside} == {t.name for t in model.graph.initializer if len(t.raw_data) >= 1024}
    for tensor, whole in zip(parsed(parts).graph.initializer, sorted_as(parts, model), strict=True):
        assert tensor == whole
    for name, content in files_of(parts, "net.onnx").items():
        (tmp_path / name).write_bytes(content)
    assert read_model(tmp_path / "net.onnx") == parts
    onnx.checker.check_model(str(tmp_path / "net.onnx"))

    expected = run(backend, model.SerializeToString(), built.images.numpy())
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(session.run(None, {session.get_inputs()[0].name: built.images.numpy()})[0], expected)
    for either in (backend, Reference(built.profile)):
        np.testing.assert_array_equal(run(either, parts, built.images.numpy()), expected)
        layers = built.plan.integer_layers()
        assert either.census(parts, layers) == either.census(model.SerializeToString(), layers)


def run(backend: Any, model: Any, images: np.ndarray) -> np.ndarray:
    with backend.runner(model, threads=1) as runner:
        (output,) = runner.run(images)
    result: np.ndarray = output
    return result


def sorted_as(parts: SplitModel, model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """A model's constants in the order that they have in the two files: the small ones first."""
    order = [tensor.name for tensor in onnx.load_model_from_string(parts.graph).graph.initializer]
    return sorted(model.graph.initializer, key=lambda tensor: order.index(tensor.name))


def test_a_model_within_the_limit_is_one_file(build: Callable[..., Any]) -> None:
    model = OnnxRuntime().emit(build("conv").frozen)
    size = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    assert serialise(model, name="net.onnx", most=size) == serialise(model, name="net.onnx")
    assert files_of(serialise(model, name="net.onnx"), "net.onnx") == {"net.onnx": model.SerializeToString()}
    split(model, size - 1)


def test_a_runtime_that_takes_one_file_refuses_two(build: Callable[..., Any]) -> None:
    parts = split(OnnxRuntime().emit(build("conv").frozen))
    with pytest.raises(UserError, match="OpenVINO reads models in one file alone"):
        run(backend_named("openvino"), parts, np.zeros((1, 3, 12, 12), np.float32))
    assert in_one_piece(b"model", "any") == b"model"


def test_a_model_beyond_the_limit_is_checked_without_its_large_constants(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = OnnxRuntime().emit(build("conv").frozen)
    monkeypatch.setattr(serialised, "LARGEST_MODEL", 0)
    check_model(model)
    model.graph.node[-1].input[0] = "nowhere"
    with pytest.raises(onnx.checker.ValidationError, match="nowhere"):
        check_model(model)
