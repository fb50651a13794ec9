"""A network is another one as soon as any number that it computes with is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.setup.identity import network_identity
from pipeline.stages.teacher import load_network

BUILDERS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, **values):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.register_buffer("kept", torch.full((4, 1, 1), values.get("kept", 1.0)))
        self.register_buffer("lost", torch.full((4, 1, 1), values.get("lost", 1.0)), persistent=False)
        self.plain = torch.full((4, 1, 1), values.get("plain", 1.0))
        self.number = values.get("number", 1.0)

    def forward(self, x):
        inner = torch.tensor([INNER]).reshape(1, 1, 1)
        return self.fc((self.conv(x) * self.kept * self.lost * self.plain * self.number * inner).mean((2, 3)))

INNER = 1.0
def same(): return Net()
def kept(): return Net(kept=2.0)
def lost(): return Net(lost=2.0)
def plain(): return Net(plain=2.0)
def number(): return Net(number=2.0)
"""


def test_every_number_that_a_network_computes_with_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers that no state holds, tensors that are plain attributes or written in forward, numbers in the code."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "identified.py").write_text(BUILDERS)
    (tmp_path / "identified_inner.py").write_text(BUILDERS.replace("INNER = 1.0", "INNER = 2.0"))

    def identity(source: str) -> str:
        return network_identity([load_network(f"python:{source}", image_size=(16, 16))])

    try:
        plain = identity("identified:same")
        assert identity("identified:same") == plain
        others = [f"identified:{name}" for name in ("kept", "lost", "plain", "number")]
        identities = [identity(source) for source in (*others, "identified_inner:same")]
        assert len({plain, *identities}) == 6
    finally:
        for name in ("identified", "identified_inner"):
            sys.modules.pop(name, None)
