"""What depends on no image is computed once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from calibration.capture.graph_from_module import capture
from calibration.graph.operators import kind
from calibration.rewrites.fold import difference_of_graphs, fold

if TYPE_CHECKING:
    from tests.calibration.conftest import BuildChain, MakeNet, Noise


class Standardised(nn.Conv2d):
    """A convolution that standardises its weight in every forward pass (Qiao et al., arXiv 1903.10520)."""

    def forward(self, input: Tensor) -> Tensor:
        mean, deviation = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(input, (self.weight - mean) / (deviation + 1e-5), self.bias, padding=1)


def test_standardised_weights_become_plain_ones_and_are_quantised(
    net: MakeNet, noise: Noise, chain: BuildChain
) -> None:
    module = net(lambda n, x: torch.relu(n.bn(n.a(x))), a=Standardised(3, 8, 3), bn=nn.BatchNorm2d(8))
    built = chain(module, noise(8, 3, 9, 9))
    assert [kind(node) for node in built.folded.graph.nodes if node.op == "call_function"] == ["conv", "relu"]
    assert [placement.layer for placement in built.plan.weights] == ["a_conv2d"]
    assert [name for name, _ in built.folded.named_parameters()] == ["a_conv2d_folded.weight", "a_conv2d_folded.bias"]


def test_reparametrised_weights_become_plain_ones(net: MakeNet, noise: Noise) -> None:
    module = net(lambda n, x: n.a(x), a=parametrizations.weight_norm(nn.Conv2d(3, 8, 3))).eval()
    captured = capture(module, noise(2, 3, 9, 9), source="test")
    folded = fold(captured)
    assert [kind(node) for node in folded.graph.nodes if node.op == "call_function"] == ["conv"]
    assert difference_of_graphs(captured, folded, noise(3, 3, 9, 9)) == 0.0


def test_tables_are_stored_and_the_batch_stays_free(net: MakeNet, noise: Noise) -> None:
    def compute(n: Any, x: Tensor) -> Tensor:
        y = n.a(x) * torch.tensor([1.0, 2.0, 4.0, 8.0]).view(1, 4, 1, 1) + torch.arange(4).view(1, 4, 1, 1)
        y = y + torch.zeros(x.shape[0], 4, 1, 1)
        result: Tensor = y + torch.arange(x.shape[0]).view(-1, 1, 1, 1)
        return result

    captured = capture(net(compute, a=nn.Conv2d(3, 4, 1)), noise(2, 3, 9, 9), source="test")
    folded = fold(captured)
    names = [str(node.target) for node in folded.graph.nodes if node.op == "call_function"]
    # What differs from image to image is computed with every batch, what repeats is a table for one.
    expected = ["sym_size.int", "conv2d.default", "add.Tensor", "add.Tensor", "arange.default", "reshape.default"]
    assert [name.removeprefix("aten.") for name in names] == [*expected, "add.Tensor"]
    assert difference_of_graphs(captured, folded, noise(3, 3, 9, 9)) == 0.0
    # Floating-point tables are trained, positions are not; factors of channels belong to the layer's weight.
    assert {name for name, _ in folded.named_buffers()} == {"view_1_constant.value"}
    trained = {"a_folded.weight", "a_folded.bias", "zeros_constant.value"}
    assert {name for name, _ in folded.named_parameters()} == trained


@pytest.mark.parametrize("name", ["a_constant", "a_folded"])
def test_a_name_that_is_taken_is_not_overwritten(name: str, net: MakeNet, noise: Noise) -> None:
    module = net(lambda n, x: n.bn(n.a(getattr(n, name)(x))), a=nn.Conv2d(3, 3, 1), bn=nn.BatchNorm2d(3))
    module.add_module(name, nn.Conv2d(3, 3, 1))
    captured = capture(module.eval(), noise(2, 3, 9, 9), source="test")
    assert difference_of_graphs(captured, fold(captured), noise(3, 3, 9, 9)) <= 1e-5
