"""Networks with random weights as teachers of the command line: --teacher python:tests.zoo_teachers:NAME.

NAME is a network of the list, or one of torchvision's segmentation networks and detectors. No download.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.networks.sources.torchvision_detection import dense_part, is_detector
from tests.zoo import ZOO, lived_in


@dataclass(frozen=True, kw_only=True)
class DenseNetwork:
    """A segmentation network or a detector, of which backbone and heads are the graph, or the `part` alone."""

    name: str
    pixels: int
    part: str | None = None
    detector: str | None = None
    """Its class in torchvision, where that is a one-stage detector's."""

    def images(self) -> Tensor:
        """Images float32 [2, 3, pixels, pixels]."""
        return torch.randn(2, 3, self.pixels, self.pixels, generator=torch.Generator().manual_seed(0))

    def build(self) -> nn.Module:
        """The builder's network with sane random weights."""
        from torchvision import models

        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own
            torch.manual_seed(0)
            module: Any = models.get_model(self.name, weights=None, weights_backbone=None).eval()
            if is_detector(module):
                module = dense_part(module, self.name, notes=()).module
            lived_in(module if self.part is None else getattr(module, self.part), self.images(), 0)
            network: nn.Module = module
            return network


_LISTED = (
    DenseNetwork(name="lraspp_mobilenet_v3_large", pixels=64),
    DenseNetwork(name="deeplabv3_mobilenet_v3_large", pixels=64),
    DenseNetwork(name="deeplabv3_resnet50", pixels=64),
    DenseNetwork(name="fcn_resnet50", pixels=64),
    DenseNetwork(name="ssdlite320_mobilenet_v3_large", pixels=128, detector="SSD"),
    DenseNetwork(name="ssd300_vgg16", pixels=300, detector="SSD"),
    DenseNetwork(name="retinanet_resnet50_fpn", pixels=128, detector="RetinaNet"),
    DenseNetwork(name="fcos_resnet50_fpn", pixels=128, detector="FCOS"),
    DenseNetwork(name="fasterrcnn_mobilenet_v3_large_fpn", pixels=128, part="backbone"),
    DenseNetwork(name="fasterrcnn_resnet50_fpn", pixels=128, part="backbone"),
)

#: Every one of them by its name.
DENSE = {network.name: network for network in _LISTED}


def __getattr__(name: str) -> Callable[[], tuple[nn.Module, dict[str, int]]]:
    listed = ZOO.get(name) or DENSE.get(name)
    if listed is None:
        raise AttributeError(name)
    return lambda: (listed.build(), {"height": listed.pixels})
