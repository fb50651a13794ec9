"""Networks written in one line, and parts of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from calibration.capture.graph_from_module import capture
from calibration.rewrites.fold import fold


class Net(nn.Module):
    """Layers by name, and a forward pass over them."""

    def __init__(self, compute: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.compute = compute
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> Any:
        """Whatever the line computes from the images."""
        return self.compute(self, x)


def small_images(seed: int) -> Tensor:
    """Standard normal images [16, 3, 8, 8], others for each seed."""
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def folded_with_seed(network: Callable[[], nn.Module]) -> GraphModule:
    """The folded graph of a network for `small_images`, its weights drawn by a seed that nobody else is given."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fold(capture(network(), small_images(0)[:2], source="net"))


def c3(inputs: int, outputs: int, **options: Any) -> nn.Conv2d:
    """A convolution of 3 x 3 that keeps the size."""
    return nn.Conv2d(inputs, outputs, 3, **({"padding": 1} | options))


def residual(n: Any, x: Tensor) -> Tensor:
    """A residual block of the layers b and c, between a and d."""
    y = torch.relu(n.a(x))
    result: Tensor = n.d(torch.relu(y + n.c(torch.relu(n.b(y)))))
    return result


def shared_layer(n: Any, x: Tensor) -> Tensor:
    """The layer b twice in a row, between a and d."""
    result: Tensor = n.d(torch.relu(n.b(torch.relu(n.b(torch.relu(n.a(x)))))))
    return result


def values_of(graph_module: GraphModule, images: Tensor) -> dict[str, Tensor]:
    """What every node of a graph gives, by its name."""
    values: dict[str, Tensor] = {}

    class Keeping(Interpreter):
        def run_node(self, n: Node) -> Any:
            values[n.name] = super().run_node(n)
            return values[n.name]

    with torch.no_grad():
        Keeping(graph_module).run(images)
    return values
