"""The embedded default's network: a small residual network for 8x8 greyscale digits."""

from __future__ import annotations

from typing import cast, final

from torch import Tensor, nn

# Widths of the stages at 8x8, 4x4 and 2x2 pixels: 256,090 parameters; wide enough that integers pay.
_STAGE_CHANNELS = (48, 64, 96)


@final
class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation, added to their input (He et al. 2016).

    Input [B, in_channels, H, W], output [B, out_channels, H / stride, W / stride]. Where the shapes differ
    the shortcut is a 1x1 convolution with batch normalisation (the paper's option B), elsewhere the identity.

    Source: He et al., Deep Residual Learning for Image Recognition, 2016, section 3.3.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        self.relu2 = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """Return the block's output for features [B, in_channels, H, W]."""
        residual = self.relu1(self.bn1(self.conv1(features)))
        residual = self.bn2(self.conv2(residual))
        return cast(Tensor, self.relu2(residual + self.shortcut(features)))


@final
class DigitsNetwork(nn.Module):
    """Classify normalised digits [B, 1, 8, 8] into ten logits [B, 10].

    A stem and three residual blocks at 8x8, 4x4 and 2x2 pixels: small enough to distil in seconds on two CPU
    cores, yet with every pattern that a quantiser has to place (stem, identity and convolution shortcuts,
    residual adds, stride 2, global average pooling, a linear layer).
    """

    def __init__(self) -> None:
        super().__init__()
        first, second, third = _STAGE_CHANNELS
        self.stem = nn.Sequential(nn.Conv2d(1, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        self.stage1 = ResidualBlock(first, first, stride=1)
        self.stage2 = ResidualBlock(first, second, stride=2)
        self.stage3 = ResidualBlock(second, third, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(third, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, 10] of normalised images [B, 1, 8, 8]."""
        features = self.stage3(self.stage2(self.stage1(self.stem(images))))
        return cast(Tensor, self.classifier(self.flatten(self.pool(features))))
