"""The runtime's logistic function, to the bit."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper

from calibration.arithmetic.logistic import logistic


def test_it_is_the_runtimes() -> None:
    generator = np.random.default_rng(0)
    values = np.concatenate([generator.standard_normal(20000) * 6, [-100, -18, -0.0, 0, 18, 100]]).astype(np.float32)
    node = helper.make_node("Sigmoid", ["x"], ["y"])
    inputs, outputs = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [len(values)]) for name in "xy")
    model = helper.make_model(helper.make_graph([node], "g", [inputs], [outputs]), ir_version=10)
    model.opset_import[0].version = 20
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"x": values})
    np.testing.assert_array_equal(logistic(torch.from_numpy(values)).numpy(), theirs)


def test_it_is_the_logistic_function() -> None:
    x = torch.linspace(-20, 20, 4001)
    torch.testing.assert_close(logistic(x), torch.sigmoid(x), rtol=1e-6, atol=3e-7)
    assert logistic(torch.zeros(1)).item() == 0.5
