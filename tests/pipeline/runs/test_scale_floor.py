"""A network whose numbers are too small for any grid: the whole run says which, in the table and in the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import main
from pipeline.report.schema import read_report

NETWORK = """
import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 8, 3, 2, 1), nn.Linear(8, 5)
        with torch.no_grad():
            self.first.weight.mul_(factor)
            self.first.bias.mul_(factor)

    def forward(self, x):
        return self.head(self.first(x).relu().mean((2, 3)))


def build(factor=1.0):
    torch.manual_seed(0)
    return Tiny(factor), {"height": 16, "resize": None, "channels": 1, "mean": (0.5,), "std": (0.25,)}


def tiny():
    return build(1e-7)
"""


@pytest.mark.parametrize(("network", "warned"), [("tiny", True), ("build", False)])
def test_a_whole_run_names_scales_at_their_floor(
    network: str, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "tiny_nets.py").write_text(NETWORK)
    np.savez(tmp_path / "images.npz", images=np.random.default_rng(0).integers(0, 255, (40, 1, 16, 16), np.uint8))
    flags = ("--data", "npz:images.npz#images", "--steps", "0", "--backend", "reference", "--output", "out")
    main(["run", "--quiet", "--teacher", f"python:tiny_nets:{network}", *flags])
    lines = [note for note in read_report(Path("out/report.json")).notes if "is at its floor, 5.96e-08" in note]
    shown = " ".join(capsys.readouterr().out.split())
    assert bool(lines) == warned == ("WARNING: the scale of" in shown)
    assert not warned or ("first.weight" in lines[0] and "first.weight is at its floor" in shown)
