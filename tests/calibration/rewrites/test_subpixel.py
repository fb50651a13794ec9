"""Transposed convolutions written as convolutions: the same function, for every setting that torch has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from calibration.capture.graph_from_module import capture
from calibration.graph.interface import interface_of
from calibration.graph.operators import kind
from calibration.rewrites.fold import fold
from calibration.rewrites.rewrite import rewritten
from calibration.rewrites.subpixel import TRANSPOSED_AS_CONVOLUTIONS, subpixel_weight

SETTINGS: dict[str, dict[str, Any]] = {
    "2x2 stride 2": {"kernel_size": 2, "stride": 2},
    "4x4 stride 2": {"kernel_size": 4, "stride": 2, "padding": 1},
    "3x3 stride 2, longer": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "stride 1": {"kernel_size": 3, "stride": 1, "padding": 1},
    "groups": {"kernel_size": 3, "stride": 3, "groups": 2},
    "depthwise": {"kernel_size": 4, "stride": 2, "padding": 1, "groups": 8},
    "no square, no bias": {"kernel_size": (2, 4), "stride": 2, "padding": (0, 1), "bias": False},
    "kernel within the stride": {"kernel_size": 2, "stride": 3},
}
LEFT: dict[str, dict[str, Any]] = {
    "dilated": {"kernel_size": 3, "stride": 2, "dilation": 2},
    "strides differ": {"kernel_size": 2, "stride": (2, 1)},
    "bias alone at the end": {"kernel_size": 2, "stride": 2, "output_padding": 1},
}


def _graph(settings: dict[str, Any], activation: nn.Module) -> Any:
    torch.manual_seed(0)  # of the layers' weights
    up = nn.ConvTranspose2d(8, 16, **settings)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), up, nn.BatchNorm2d(16), activation, nn.Conv2d(16, 4, 1)).eval()
    return fold(capture(module, torch.randn(2, 3, 9, 7), source="test"))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.SiLU()], ids=lambda module: type(module).__name__)
@pytest.mark.parametrize("name", SETTINGS)
def test_the_function_stays(name: str, activation: nn.Module) -> None:
    graph = _graph(SETTINGS[name], activation)
    changed = rewritten(graph, (TRANSPOSED_AS_CONVOLUTIONS,))
    kinds = [kind(node) for node in changed.graph.nodes]
    assert "conv_transpose" not in kinds and "conv_transpose" in [kind(node) for node in graph.graph.nodes]
    images = torch.randn((3, 3, 9, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(changed(images)[0], graph(images)[0], rtol=1e-4, atol=1e-5)
    assert interface_of(changed) == interface_of(graph)
    (conv,) = [node for node in changed.graph.nodes if node.name.endswith("conv2d")]
    if not isinstance(activation, nn.SiLU):  # the kernel that multiplies also clips
        activations = [kind(node) for node in graph.graph.nodes if node.name == "_3"]
        assert [kind(reader) for reader in conv.users] == activations


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_written_so_is_left_alone(name: str) -> None:
    changed = rewritten(_graph(LEFT[name], nn.ReLU()), (TRANSPOSED_AS_CONVOLUTIONS,))
    assert "conv_transpose" in [kind(node) for node in changed.graph.nodes]


def test_a_graph_without_any_is_handed_back() -> None:
    graph = fold(capture(nn.Conv2d(3, 4, 3).eval(), torch.randn(2, 3, 5, 5), source="test"))
    assert rewritten(graph, (TRANSPOSED_AS_CONVOLUTIONS,)) is graph


def test_the_weight_by_hand() -> None:
    # One channel, a kernel of three taps at stride 2 along the width: even positions see taps 0 and 2, odd ones tap 1.
    weight = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    merged = subpixel_weight(weight, stride=2, groups=1)
    assert merged.shape == (4, 1, 1, 2)
    assert merged[:, 0, 0].tolist() == [[3.0, 1.0], [0.0, 2.0], [0.0, 0.0], [0.0, 0.0]]
