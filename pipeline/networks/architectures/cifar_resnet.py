"""Residual networks for 32x32 images, as in the paper that introduced them, with option-A shortcuts."""

from __future__ import annotations

from typing import cast, final

from torch import Tensor, nn
from torch.nn import functional

WIDTHS = (16, 32, 64)
"""Channels of the three stages, at full, half and quarter resolution."""

BLOCKS: dict[str, int] = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}
"""Architecture -> residual blocks per stage: depth = 6 blocks + 2."""


@final
class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, added to their input.

    Input [B, in_channels, H, W], output [B, out_channels, H / stride, W / stride]. Where the shape changes,
    the shortcut takes every second pixel and fills the new channels with zeros: it has no weights (option A).

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, sections 3.3 and 4.2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.stride = stride
        self.padding = out_channels - in_channels

    def forward(self, features: Tensor) -> Tensor:
        """Return the block's output for features [B, in_channels, H, W]."""
        residual = self.relu1(self.bn1(self.conv1(features)))
        residual = self.bn2(self.conv2(residual))
        shortcut = features
        if self.stride != 1:
            shortcut = shortcut[:, :, :: self.stride, :: self.stride]
        if self.padding:
            # Half of the zeros before and half after the old channels: the order the checkpoints were trained
            # with.
            before = self.padding // 2
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, before, self.padding - before))
        return cast(Tensor, self.relu2(residual + shortcut))


@final
class CifarResNet(nn.Module):
    """Classify normalised images [B, 3, 32, 32] into logits [B, classes].

    State-dict keys: conv1, bn1, layer{1,2,3}.{i}.{conv1,bn1,conv2,bn2}, linear.

    Source: He et al. 2016, section 4.2; keys as in Y. Idelbayev, Proper ResNet Implementation for
    CIFAR10/100.
    """

    def __init__(self, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu = nn.ReLU()
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], blocks, stride=1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], blocks, stride=2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], blocks, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(WIDTHS[2], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, classes] of normalised images [B, 3, H, W]."""
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return cast(Tensor, self.linear(self.flatten(self.pool(features))))


def _stage(in_channels: int, out_channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))
