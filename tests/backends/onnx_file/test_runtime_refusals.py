"""What a runtime says when it refuses a file, on one line that names the node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch.nn.functional as F
from onnx import TensorProto, helper

from backends import backend_named
from backends.onnx_file.runtime_refusals import nodes_named_in, one_line
from calibration.errors import UserError
from tests.one_line_net import Net, c3

if TYPE_CHECKING:
    from tests.backends.conftest import Build


def _model(**operators: str) -> object:
    nodes = [helper.make_node(word, ["x"], [name], name=name) for name, word in operators.items()]
    names = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", *operators)]
    return helper.make_model(helper.make_graph(nodes, "g", names[:1], names[1:]))


def test_a_node_is_found_by_its_name_else_by_its_operator() -> None:
    model = _model(neck_up="Resize", head="Conv")
    assert nodes_named_in("In node 3 with name: neck_up and operator: Conv", model) == ["neck_up (Resize)"]  # type: ignore[arg-type]
    assert nodes_named_in("in the Resize operator", model) == ["neck_up (Resize)"]  # type: ignore[arg-type]
    assert nodes_named_in("out of memory", model) == []  # type: ignore[arg-type]


def test_a_message_is_without_the_library_s_files_and_functions() -> None:
    message = (
        "[ONNXRuntimeError] : 1 : FAIL : /src/core/providers/upsamplebase.h:314 a::Up::Up(const K&) [with K = a::B]"
        " [ONNXRuntimeError] : 1 : FAIL : upsamplebase.h:579 Validation 'Cubic' mode only\n supports 2-D inputs"
    )
    assert one_line(message) == "'Cubic' mode only supports 2-D inputs"


def test_a_bicubic_resize_down_between_convolutions_is_named(build: Build) -> None:
    network = Net(lambda n, x: n.b(F.interpolate(n.a(x), size=(5, 11), mode="bicubic")), a=c3(3, 16), b=c3(16, 16))
    backend = backend_named("onnxruntime")
    model = backend.emit(build(network.eval()).frozen, opset=None, batch=None)
    with pytest.raises(UserError, match="Cubic") as caught:
        backend.census(model.SerializeToString(), [])
    assert nodes_named_in(str(caught.value), model) == ["upsample_bicubic2d (Resize)"]
