"""Every network of the list, from capture to the runtime: shallow copies, with every kind of block.

A few small ones, with every sort of operator, run with the tests; all of them with

    python3 -m pytest -m benchmark tests/backends/zoo/test_every_network.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from backends.lint.rule import lint_rules
from backends.lint.table import lint
from backends.onnx_file.view import OPSETS
from backends.onnxruntime.backend import OnnxRuntime
from backends.oracle.backend import IntegerOracle
from calibration.graph.operators import WEIGHTED, kind
from tests.backends.test_exactness import runtime_tensors
from tests.chain import shallow_folded
from tests.opsets import runs
from tests.zoo import ZOO

#: Operators that only networks with attention or layer norms may compute in float, and these also a convolutional one.
FLOAT_IN_CNNS = {"gelu", "adaptive_average_pool"}


#: What the tests have time for: gates and squeeze-and-excite, merged branches, attention of two sorts.
QUICK = ("mobilenet_v3_small", "repvgg_a0", "fastvit_t8", "vit_b_32", "edgenext_xx_small")


@pytest.mark.parametrize("name", QUICK)
def test_small_networks_run_as_the_oracle_computes(name: str, build: Callable[..., Any]) -> None:
    check(name, build)


@pytest.mark.parametrize("name", ["squeezenet1_1", "fastvit_t8"])
def test_every_opset_computes_the_same(name: str, build: Callable[..., Any]) -> None:
    sweep(name, build)


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ZOO)
def test_every_opset_computes_the_same_for_every_network(name: str, build: Callable[..., Any]) -> None:
    sweep(name, build)


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ZOO)
def test_networks_run_as_the_oracle_computes(name: str, build: Callable[..., Any]) -> None:
    check(name, build)


def check(name: str, build: Callable[..., Any]) -> None:
    """From capture to the runtime: every layer on integers, every integer equal where nothing is computed in float."""
    network = ZOO[name]
    images = network.images(2)
    built = build(shallow_folded(network), inputs=images)
    _train_a_step(built)
    model = built.refrozen().model()
    assert lint(model, lint_rules(built.profile, built.plan)) == []

    layers = [node.name for node in built.folded.graph.nodes if kind(node) in WEIGHTED]
    assert OnnxRuntime().census(model.SerializeToString(), layers).floating == ()

    outputs, rounded = IntegerOracle(model).run(images, trace=True)
    theirs, their_rounded = runtime_tensors(model, images.numpy(), list(rounded))
    differing = {
        tensor for tensor, values in rounded.items() if not np.array_equal(values.numpy(), their_rounded[tensor])
    }
    float_kinds = {built.plan.kinds[node] for node in built.plan.float_nodes}
    if not float_kinds:
        assert differing == set()
        np.testing.assert_array_equal(outputs[0].numpy(), theirs[0])
    else:
        # Libraries differ in the last bits of float operators, which decides ties of roundings, and what follows.
        assert network.style == "transformer" or float_kinds <= FLOAT_IN_CNNS
        scale = float(outputs[0].std())
        assert float((outputs[0] - torch.from_numpy(theirs[0])).abs().mean()) < 0.1 * scale
    with torch.no_grad():
        torch.testing.assert_close(built.prepared(images)[0], outputs[0], rtol=1e-4, atol=1e-4)


def sweep(name: str, build: Callable[..., Any]) -> None:
    """Calibrated, written in every opset and run: the same outputs, all layers on integers."""
    network = ZOO[name]
    images = network.images(2)
    built = build(shallow_folded(network), inputs=images)
    expected = None
    for opset in filter(runs, OPSETS):
        model = OnnxRuntime(built.profile).emit(built.frozen, opset=opset).SerializeToString()
        with OnnxRuntime().runner(model, threads=1) as runner:
            (outputs,) = runner.run(images.numpy())
        expected = outputs if expected is None else expected
        if not built.plan.float_nodes:
            np.testing.assert_array_equal(outputs, expected)
        # Opsets say some float operators in other ways, which decides ties of roundings.
        assert np.abs(outputs - expected).mean() < 0.1 * expected.std()
    layers = [node.name for node in built.folded.graph.nodes if kind(node) in WEIGHTED]
    assert OnnxRuntime().census(model, layers).floating == ()


def _train_a_step(built: Any) -> None:
    """One step towards the float network's outputs."""
    built.prepared.train()
    optimiser = torch.optim.SGD(built.prepared.parameters(), 1e-6)
    with torch.no_grad():
        target = built.folded(built.images)[0]
    loss = (built.prepared(built.images)[0] - target).square().mean()
    torch.autograd.backward(loss)
    optimiser.step()
    built.prepared.eval()
