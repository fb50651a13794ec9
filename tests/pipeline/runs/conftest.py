"""One finished run for all tests that only read it, and a folder for runs that cost next to nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.command_line import QUICK, command

_NETWORK = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 13 * 13, 10)).eval()
"""


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run of the embedded default at 8 bits, to be read and never written to."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    done = command("run", "--backend", "onnxruntime", "--bits", "8", *QUICK, "--output", str(folder))
    assert done.status == 0, done.err
    assert all(len(line) <= 100 for line in done.out.splitlines())
    return folder


@pytest.fixture(scope="session")
def tiny_desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network and images, as small as they may be, for runs of `TINY` (tests/command_line.py)."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "tiny_network.py").write_text(_NETWORK)
    images = np.random.default_rng(0).integers(0, 256, (64, 1, 28, 28), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images)
    return folder
