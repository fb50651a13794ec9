"""A user's folder with a module of networks and a file of images, in which commands are run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def blocks_of_four(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Images [count, 16, 16, 3] of random squares four pixels wide: a convolution sees edges in them."""
    squares = np.random.default_rng(seed).integers(0, 255, (count, 4, 4, 3), np.uint8)
    return squares.repeat(4, 1).repeat(4, 2)


@contextlib.contextmanager
def at_a_desk(folder: Path, module: str, source: str, pixels: NDArray[np.uint8]) -> Iterator[Path]:
    """Work in a folder that holds `module`.py and, as `images`, photos.npz; the path is as before afterwards."""
    (folder / f"{module}.py").write_text(source)
    np.savez(folder / "photos.npz", images=pixels)
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        with contextlib.chdir(folder):
            yield folder
    finally:
        sys.path[:] = before
