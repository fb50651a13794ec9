"""NNCF's file on both runtimes: all layers on integers, and what the oracle says is what runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backends import backend_named
from backends.base import Array
from backends.facts.onnxruntime_rules import X64, X64_WITHOUT_VNNI
from backends.facts.openvino_rules import PROFILE as OPENVINO
from backends.lint.rule import lint_rules
from backends.lint.table import lint
from backends.nncf.adapt import adapted
from backends.nncf.plan_of_file import plan_of_file
from backends.nncf.quantiser import quantise
from backends.onnx_file.emit import emit
from backends.onnx_file.view import OnnxView
from backends.onnxruntime.emulation import EmulatedOnnxRuntime
from backends.oracle.backend import IntegerOracle
from calibration.errors import MissingExtra, UserError
from tests.one_line_net import Net

# Looked for, not imported: that takes every test process seconds before its first test.
pytestmark = pytest.mark.skipif(find_spec("nncf") is None, reason="NNCF is not installed: pip install 'faqd[nncf]'")

Build = Callable[..., Any]
COUNT = 16


def source(built: Any) -> tuple[bytes, Callable[[], Iterable[Array]]]:
    """A float file and single images to calibrate on."""
    images = torch.randn(COUNT, 3, 12, 12, generator=torch.Generator().manual_seed(11)).numpy()
    return emit(built.folded, opset=20).SerializeToString(), lambda: iter(images[:, None])


@pytest.mark.parametrize("network", ["residual", "shortcut_a"])  # they end in a linear layer and in a convolution
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_every_layer_runs_on_integers_as_the_oracle_says(name: str, network: str, build: Build) -> None:
    try:
        backend = backend_named(name)
    except MissingExtra as missing:
        pytest.skip(str(missing))
    built = build(network)
    float_file, images = source(built)
    model = quantise(float_file, images, COUNT, backend.profile)
    layers = [placement.layer for placement in plan_of_file(model, backend=name, left="").weights]
    assert layers == [placement.layer for placement in built.plan.weights]
    assert backend.census(model.SerializeToString(), layers).integer == tuple(layers)
    (mine,), _ = IntegerOracle(model).run(built.images)
    with (
        backend.runner(model.SerializeToString(), threads=1) as runner,
        backend.runner(float_file, threads=1) as plain,
    ):
        (theirs,), (reals,) = runner.run(built.images.numpy()), plain.run(built.images.numpy())
    largest = np.abs(reals).max()
    if backend.profile.inexact:
        assert np.abs(theirs - mine.numpy()).max() < 0.05 * largest
    else:
        # The last layer's output stays float in NNCF's file, which a kernel may add up in another order.
        np.testing.assert_allclose(theirs, mine.numpy(), atol=1e-5 * largest)
    assert 0 < np.abs(theirs - reals).max() < 0.5 * largest


def test_the_same_images_give_the_same_bytes(build: Build) -> None:
    float_file, images = source(build("residual"))
    first, again = (quantise(float_file, images, COUNT, X64).SerializeToString() for _ in range(2))
    assert first == again


def stored_weights(model: onnx.ModelProto) -> list[Any]:
    """The int8 weights of a file, not their zero points."""
    view = OnnxView(model)
    stored = [view.value(name) for name, tensor in view.initialisers.items() if tensor.data_type == 3]
    return [values for values in stored if values is not None and values.ndim > 1]


@pytest.mark.parametrize("network", ["residual", "shortcut_a"])
def test_no_sum_saturates_where_two_products_are_added_in_16_bits(network: str, build: Build) -> None:
    built = build(network)
    float_file, images = source(built)
    limited, free = (
        stored_weights(quantise(float_file, images, COUNT, profile)) for profile in (X64_WITHOUT_VNNI, X64)
    )
    assert len(limited) == len(free) == len(built.plan.weights)
    # VPMADDUBSW adds products of neighbours, and which they are is up to the kernel: the largest that any two can be.
    assert max(2 * 255 * int(np.abs(values.astype(int)).max()) for values in limited) < 2**15
    assert max(2 * 255 * int(np.abs(values.astype(int)).max()) for values in free) > 2**15


@pytest.mark.emulation
@pytest.mark.parametrize("network", ["residual", "shortcut_a"])
def test_a_file_without_saturation_is_the_oracles_on_a_haswell(network: str, build: Build) -> None:
    built = build(network)
    float_file, images = source(built)
    model = quantise(float_file, images, COUNT, X64_WITHOUT_VNNI)
    (mine,), _ = IntegerOracle(model).run(built.images)
    with EmulatedOnnxRuntime(X64_WITHOUT_VNNI).runner(model.SerializeToString(), threads=1) as runner:
        (theirs,) = runner.run(built.images.numpy())
    np.testing.assert_allclose(theirs, mine.numpy(), atol=1e-5 * np.abs(theirs).max())


def test_a_network_without_layers_is_the_users_mistake() -> None:
    shape = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 4, 4])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "none",
        [shape],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3, 4, 4])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 12)])
    images = [np.zeros((1, 3, 4, 4), np.float32)]
    with pytest.raises(UserError, match=r"^NNCF quantises nothing in this network"):
        quantise(model.SerializeToString(), lambda: images, 1, X64)


def layers() -> dict[str, nn.Module]:
    """A convolution before and one behind, a group normalisation that turns some channels round, slopes."""
    norm, slopes = nn.GroupNorm(4, 16), nn.PReLU(16)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(16.0) / 4 - 2)
    return {
        "a": nn.Conv2d(3, 16, 3, padding=1),
        "b": nn.Conv2d(16, 8, 1),
        "c": nn.Conv2d(16, 16, 1),
        "norm": norm,
        "slopes": slopes,
    }


#: Networks of one line for what no table has, and the rule that they would break.
LINES: dict[str, tuple[int, Callable[[Any, torch.Tensor], torch.Tensor]]] = {
    "falling_behind_maxima": (42, lambda n, x: n.b(F.max_pool2d(n.a(x), 2).abs())),
    "shares": (45, lambda n, x: n.b(F.adaptive_avg_pool2d(n.a(x), (5, 12)))),
    "slopes_behind_shares": (43, lambda n, x: n.b(n.slopes(F.adaptive_avg_pool2d(n.a(x), (5, 16))))),
    "negative_factors": (44, lambda n, x: n.b(n.norm(n.a(x)))),
    "normalised_number": (48, lambda n, x: n.b(F.instance_norm(F.gelu(n.a(x)) / 10, eps=0.1))),
}
FORMS = {"sum_without_bias": 32, "tokens_without_bias": 32, "bordered_average": 34, "largest": 35}


def network_named(name: str) -> str | nn.Module:
    """What to build of a name: a table's network by its own, else one line."""
    return Net(LINES[name][1], **layers()) if name in LINES else name


@pytest.mark.parametrize("network", [*FORMS, *LINES])
def test_forms_that_openvino_would_compute_wrongly_are_written_otherwise(network: str, build: Build) -> None:
    try:
        backend = backend_named("openvino")
    except MissingExtra as missing:
        pytest.skip(str(missing))
    built = build(network_named(network))
    float_file, images = source(built)
    model = quantise(float_file, images, COUNT, backend.profile)
    rules = {*FORMS.values(), *(rule for rule, _ in LINES.values())}
    assert not [violation for violation in lint(model, lint_rules(backend.profile)) if violation.rule in rules]
    outputs, _ = IntegerOracle(model).run(built.images)
    with backend.runner(model.SerializeToString(), threads=1) as runner:
        theirs = runner.run(built.images.numpy())
    for mine, runtime in zip(outputs, theirs, strict=True):
        # Wrong forms are off by a sixth and more.
        assert np.abs(runtime - mine.numpy()).max() < 0.05 * np.abs(mine.numpy()).max()


@pytest.mark.parametrize(("network", "rule"), [*FORMS.items(), *((name, rule) for name, (rule, _) in LINES.items())])
def test_forms_that_would_be_computed_wrongly_are_refused_where_nothing_writes_them_otherwise(
    network: str, rule: int, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.nncf.quantiser.adapted", lambda model, _: adapted(model, X64))
    built = build(network_named(network))
    float_file, images = source(built)
    with pytest.raises(UserError, match=rf"rule {rule}\b"):
        quantise(float_file, images, COUNT, OPENVINO)
