"""The golden file's budget: a few images, as many as their count and their bytes allow, and one at the least."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.bundle.golden import MOST_BYTES, MOST_IMAGES, Golden, golden_of
from pipeline.networks.outputs.meaning import Output


def made(images: int, numbers: int, *, shape: tuple[int, ...] | None = None) -> Golden:
    """Golden images of a network that gives so many float32 numbers for each; `shape` as its file describes them."""
    output = Output(name="map", holds="values", axis=1, shape=shape or (numbers,))
    asked = list[int]()

    def run(shown: Tensor) -> list[Tensor]:
        asked.append(len(shown))
        return [shown.reshape(len(shown), 4)[:, :1].expand(-1, numbers)]

    golden = golden_of(torch.arange(4.0 * images).reshape(images, 1, 2, 2), [output], run, run)
    assert max(asked) <= MOST_IMAGES, "no more is computed than is kept"
    return golden


# An image takes 16 bytes, and twice its outputs: the oracle's and the teacher's.
@pytest.mark.parametrize(
    ("images", "numbers", "kept"),
    [
        (32, 10, MOST_IMAGES),
        (3, 10, 3),
        (32, MOST_BYTES // (8 * MOST_IMAGES) - 2, MOST_IMAGES),
        (32, MOST_BYTES // (8 * MOST_IMAGES), MOST_IMAGES - 1),
        (32, MOST_BYTES // 16 - 2, 2),
        (32, MOST_BYTES // 16, 1),
        (32, MOST_BYTES, 1),
    ],
)
def test_bytes_and_count_are_limits_and_one_image_is_kept(images: int, numbers: int, kept: int) -> None:
    golden = made(images, numbers)
    assert len(golden.inputs) == len(golden.outputs["map"]) == len(golden.teacher["map"]) == kept
    np.testing.assert_array_equal(golden.inputs[:, 0, 0, 0], 4 * np.arange(kept))
    size = golden.inputs.nbytes + golden.outputs["map"].nbytes + golden.teacher["map"].nbytes
    assert size <= MOST_BYTES or kept == 1


def test_sizes_that_the_file_leaves_open_are_counted_as_they_come() -> None:
    assert len(made(32, MOST_BYTES // 16, shape=(-1,)).inputs) == 1
    assert len(made(4, 10).to_bytes()) < 4 * 1000
