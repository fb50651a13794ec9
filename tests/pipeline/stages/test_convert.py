"""What the conversion refuses before anything is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from backends import backend_named
from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from pipeline.config import QuantisationConfig
from pipeline.stages.convert import check_convertible


def test_weights_that_a_target_reads_in_one_file_alone_are_refused_in_one_line() -> None:
    graph = capture(nn.Conv2d(3, 4, 3, bias=False), torch.randn(2, 3, 8, 8), source="test")
    size = 4 * 3 * 9 * 4
    tensorrt = backend_named("tensorrt")
    check_convertible(graph, tensorrt, QuantisationConfig(external_data_above=size))
    with pytest.raises(
        UserError,
        match=r"^the network has 4.32e-07 GB of weights.* --backend tensorrt reads no weights beside it.*--submodule",
    ):
        check_convertible(graph, tensorrt, QuantisationConfig(external_data_above=size - 1))
    check_convertible(graph, backend_named("onnxruntime"), QuantisationConfig(external_data_above=size - 1))


def test_a_tensor_that_is_too_large_for_onnx_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = capture(nn.Conv2d(3, 4, 3, bias=False), torch.randn(2, 3, 8, 8), source="test")
    monkeypatch.setattr("pipeline.stages.convert.LARGEST_MODEL", 400)
    with pytest.raises(UserError, match=r"^weight alone has 4.32e-07 GB, and one ONNX tensor holds 4e-07 GB: split"):
        check_convertible(graph, backend_named("onnxruntime"), QuantisationConfig(external_data_above=10**9))
