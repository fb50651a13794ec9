"""Outputs that have no row for each image, and parameters that no artifact holds, are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from tests.one_line_net import Net, c3


def _capture(compute: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
    capture(Net(compute, **({"a": c3(3, 16)} | layers)), torch.randn(2, 3, 8, 8), source="net")


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        (lambda n, x: (n.a(x), torch.arange(64.0).reshape(64, 1)), "output_1 is the same for every image"),
        (lambda n, x: (n.a(x), torch.ones(2, 4)), "output_1 is the same for every image"),  # as many rows as images
        (lambda n, x: (n.a(x), n.a.weight), "output_1 is the same for every image"),
        (lambda n, x: (n.a(x), torch.tensor(3.0)), "output_1 is the same for every image"),
        (lambda n, x: n.a(x).transpose(0, 1), r"first axis of the network's output output \[16, batch, 8, 8\]"),
        (lambda n, x: n.a(x).flatten(2).permute(2, 0, 1), r"output \[64, batch, 16\] is not the image's"),
        (lambda n, x: n.a(x).mean(0), r"output \[16, 8, 8\] is not the image's"),
        (lambda n, x: n.a(x).flatten(0, 1), r"output \[16\*batch, 8, 8\] is not the image's"),
    ],
)
def test_an_output_without_a_row_per_image_is_named(compute: Callable[[Any, Tensor], Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        _capture(compute)


def test_lazy_and_sparse_parameters_are_named() -> None:
    with pytest.raises(UserError, match=r"b\.weight has no shape yet.*lazy"):
        _capture(lambda n, x: n.b(n.a(x)), b=nn.LazyConv2d(8, 3))
    sparse = c3(3, 16)
    sparse.register_buffer("table", torch.eye(3).to_sparse())
    with pytest.raises(UserError, match=r"a\.table is stored as sparse_coo.*to_dense"):
        _capture(lambda n, x: n.a(x), a=sparse)


def test_masks_that_are_applied_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    layer = c3(3, 16)
    prune.l1_unstructured(layer, "weight", 0.5)  # type: ignore[no-untyped-call]  # torch's
    _capture(lambda n, x: n.a(x), a=layer)
    assert "net: masks of prune are applied to a" in caplog.text


class Remembering(nn.Module):
    """Keeps the shape of its last map, as detection heads keep anchors for it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.shape = c3(3, 16), torch.Size()

    def forward(self, x: Tensor) -> Tensor:
        """Images to their map, and a table of its places."""
        y: Tensor = self.layer(x)
        if self.shape != y.shape:
            self.shape, self.places = y.shape, torch.arange(8.0).type_as(y)
        return y + self.places


def test_what_a_network_keeps_of_its_last_images_does_not_fix_the_batch() -> None:
    graph = capture(Remembering(), torch.randn(2, 3, 8, 8), source="net")
    assert graph(torch.randn(5, 3, 8, 8))[0].shape == (5, 16, 8, 8)
