"""The CIFAR networks: sizes of the paper, shapes, shortcuts without weights, capture."""

from __future__ import annotations

import pytest
import torch

from pipeline.networks.architectures.cifar_resnet import BLOCKS, BasicBlock, CifarResNet


# Millions of parameters: He et al. 2016, table 6.
@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_depth_and_size_are_the_papers(name: str, millions: float) -> None:
    network = CifarResNet(BLOCKS[name])
    weighted = [key for key in network.state_dict() if ".conv" in key or key.startswith(("conv", "linear.w"))]
    assert len(weighted) == int(name.removeprefix("resnet"))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert parameters / 1e6 == pytest.approx(millions, rel=0.03)


def test_shapes() -> None:
    network = CifarResNet(1, classes=7).eval()
    sizes: list[torch.Size] = []
    for stage in (network.layer1, network.layer2, network.layer3):
        stage.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape))
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert sizes == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]


def test_the_shortcut_takes_every_second_pixel_between_zero_channels() -> None:
    block = BasicBlock(2, 4, stride=2).eval()
    torch.nn.init.zeros_(block.bn2.weight)  # the residual is then zero
    features = torch.rand(1, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    output = block(features)
    assert torch.equal(output[:, 1:3], features[:, :, ::2, ::2])
    assert not output[:, [0, 3]].any()


def test_capture_with_a_dynamic_batch_sees_slices_and_a_pad() -> None:
    network = CifarResNet(1).eval()
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(network, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert sum(call.startswith("aten.slice") for call in calls) >= 4
    assert sum(call.startswith(("aten.pad", "aten.constant_pad_nd")) for call in calls) == 2
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(program.module()(images), network(images))
