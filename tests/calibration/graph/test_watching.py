"""What a watched graph shows, and that watching changes nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from calibration.capture.graph_from_module import capture
from calibration.graph.watching import Watching


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(torch.relu(self.a(x)))
        return result


def test_named_nodes_are_shown_in_order_with_what_they_compute() -> None:
    network, images = _Net().eval(), torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    captured, seen = capture(network, images, source="test"), list[tuple[str, Tensor]]()
    with torch.no_grad():
        outputs = Watching(captured, ["relu", "a"], lambda name, values: seen.append((name, values))).run(images)
        first = network.a(images)
    assert [name for name, _ in seen] == ["a", "relu"]
    assert torch.equal(seen[0][1], first)
    assert torch.equal(seen[1][1], first.clamp_min(0))
    assert torch.equal(outputs[0], network(images))
