"""Taps: the ends of stages are found, names are understood, and a prepared network gives the same directions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from backends.facts.onnxruntime_rules import X64
from backends.facts.widths import Widths
from backends.placement.place import place
from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from calibration.ranges.observation import choose_ranges, observe
from calibration.rewrites.fold import fold
from calibration.simulation.insert import insert
from pipeline.distillation.taps import match_taps, named_taps, stage_ends, tap_float, tap_prepared, write_in_place
from pipeline.networks.architectures.cifar_resnet import CifarResNet
from pipeline.stages.teacher import load_network


@pytest.fixture(scope="module")
def resnet20() -> GraphModule:
    """Folded, to be read."""
    return fold(capture(CifarResNet(3), torch.zeros(2, 3, 32, 32), source="resnet20"))


def test_a_cifar_resnet_has_three_stage_ends(resnet20: GraphModule) -> None:
    assert stage_ends(resnet20) == ("layer1_2_relu2", "layer2_2_relu2", "layer3_2_relu2")


def test_imagenet_networks_keep_their_last_four_stages() -> None:
    torchvision = pytest.importorskip("torchvision")
    folded = fold(capture(torchvision.models.resnet18(), torch.zeros(2, 3, 64, 64), source="resnet18"))

    assert stage_ends(folded) == ("layer1_1_relu_1", "layer2_1_relu_1", "layer3_1_relu_1", "layer4_1_relu_1")


def test_named_taps_take_module_paths_and_list_the_known_ones() -> None:
    folded = load_network("digits").folded

    assert named_taps(folded, ["stage1.relu2"], source="digits") == ("stage1_relu2",)
    with pytest.raises(UserError, match=r"--taps head: digits has no feature map of that name; it has .*stage1_relu2"):
        named_taps(folded, ["head"], source="digits")


def test_networks_of_other_depth_are_paired_from_the_coarsest_map(resnet20: GraphModule) -> None:
    small = fold(capture(CifarResNet(1), torch.zeros(2, 3, 32, 32), source="cifar"))

    assert match_taps(small, resnet20, None) == {
        "layer1_0_relu2": "layer1_2_relu2",
        "layer2_0_relu2": "layer2_2_relu2",
        "layer3_0_relu2": "layer3_2_relu2",
    }


def test_a_network_without_maps_is_named() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    folded = fold(capture(flat, torch.zeros(2, 3, 2, 2), source="flat"))

    with pytest.raises(UserError, match="--affinity fa compares feature maps, and the student has none"):
        match_taps(folded, folded, None, asked="--affinity fa")


def test_maps_of_a_prepared_network_point_where_the_float_ones_do() -> None:
    network = load_network("digits")
    images = torch.randn((8, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    plan = place(network.folded, X64, Widths())
    prepared = insert(network.folded, plan, choose_ranges(observe(network.folded, plan, [images]), plan, "auto")).eval()
    taps = stage_ends(network.folded)
    with torch.no_grad():
        outputs, maps = tap_float(network.folded, taps)(images)
        rounded_outputs, rounded = tap_prepared(prepared, taps)(images)

    assert list(maps) == list(rounded) == list(taps)
    for tap in taps:
        cosine = torch.cosine_similarity(maps[tap].flatten(), rounded[tap].flatten(), 0)
        assert cosine > 0.999
    assert torch.equal(rounded_outputs[0], prepared(images)[0])
    assert torch.equal(outputs[0], network.folded(images)[0])


class _Overlapping(nn.Module):
    """Every reason not to write over a tensor: an input, a second reader, a view, a tap, two uses in one sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.first(torch.relu(images))
        y = torch.relu(x) + x
        y = torch.relu(self.second(y) + images)
        z = self.second(y)
        half = z[:, :, ::2]
        total: torch.Tensor = (torch.relu(z) + (z + z)).flatten(1).sum(1, keepdim=True) + half.flatten(1)
        return total


@pytest.mark.parametrize("network", ["resnet20", "overlapping"])
def test_writing_in_place_changes_no_value(network: str, resnet20: GraphModule) -> None:
    example = torch.zeros(2, 3, 32, 32)
    folded = resnet20 if network == "resnet20" else fold(capture(_Overlapping(), example, source=network))
    images = torch.randn((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    taps, before = stage_ends(folded), images.clone()
    with torch.no_grad():
        plain, in_place = tap_float(folded, taps), write_in_place(tap_float(folded, taps))
        (outputs, maps), (same_outputs, same_maps) = plain(images), in_place(images)

    names = [str(node.target) for node in in_place.graph_module.graph.nodes]
    assert {"aten.relu_.default", "aten.add_.Tensor"} <= set(names)
    assert torch.equal(images, before)
    assert torch.equal(outputs[0], same_outputs[0])
    assert all(torch.equal(maps[tap], same_maps[tap]) for tap in taps)
