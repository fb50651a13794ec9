"""Networks with batch 1 in their code, from the command line on: refused, or taken with --static-batch 1."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from pipeline.cli import main
from pipeline.images.preprocessing import normalise
from pipeline.networks.declared import Declared
from pipeline.report.schema import read_report
from pipeline.stages.teacher import load_network
from tests.refused import refused

BUILDERS = """
import torch
from torch import nn

IMAGES = {"height": 16, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


class Viewed(nn.Module):
    def __init__(self, drops=False):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3, 2, 1))
        self.fc, self.drops = nn.Linear(128, 10), drops

    def forward(self, x):
        y = self.body(x).relu()
        return self.fc(y[0].flatten()) if self.drops else self.fc(y.view(1, -1))


class Transformer(nn.Module):
    '''Tokens with a class token and positions, attention within windows of them, and among all.'''

    def __init__(self, width=16):
        super().__init__()
        self.patch, self.width = nn.Conv2d(3, width, 4, 4), width
        self.position = nn.Parameter(torch.randn(1, 17, width) * 0.1)
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.table, self.head = nn.Parameter(torch.randn(1, 2, 4, 4) * 0.1), nn.Linear(width, 10)

    def attend(self, x, table=0.0):
        n, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, length, 3, 2, self.width // 2).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * 0.3 + table).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).reshape(n, length, self.width))

    def forward(self, x):
        y = self.patch(x).permute(0, 2, 3, 1)
        windows = y.view(1, 2, 2, 2, 2, self.width).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 4, self.width)
        windows = self.attend(windows, self.table)
        y = windows.view(1, 2, 2, 2, 2, self.width).permute(0, 1, 3, 2, 4, 5).reshape(1, 4, 4, self.width)
        y = y.permute(0, 3, 1, 2).reshape(1, self.width, 16).permute(0, 2, 1)
        y = self.attend(torch.cat([torch.zeros(1, 1, self.width), y], dim=1) + self.position)
        return self.head(y[:, 0])


def viewed():
    return Viewed(), IMAGES


def dropped():
    return Viewed(drops=True), IMAGES


def transformer():
    return Transformer(), IMAGES
"""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Images of the builders' networks, which are importable from the folder that the test runs in."""
    (tmp_path / "nets_of_one_image.py").write_text(BUILDERS)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 200, (48, 3, 4, 4), dtype=np.uint8).repeat(4, 2).repeat(4, 3)
    np.savez(tmp_path / "images.npz", images=pixels + generator.integers(0, 50, (48, 3, 16, 16), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    yield "npz:images.npz#images"
    sys.modules.pop("nets_of_one_image", None)


def _command(builder: str, data: str, *more: str) -> list[str]:
    source = f"python:nets_of_one_image:{builder}"
    command = ["run", "--teacher", source, "--data", data, "--max-drop", "100", "--output", "out", *more]
    return [*command, "--backend", "onnxruntime", "--bits", "8"]


# The transformer's random weights give one class for all of its few images, of which agreement says nothing.
@pytest.mark.parametrize(("builder", "steps", "status"), [("viewed", "0", 0), ("transformer", "3", 4)])
def test_a_network_for_one_image_is_trained_with_batches_and_deployed_with_one(
    builder: str, steps: str, status: int, data: str, tmp_path: Path
) -> None:
    command = _command(builder, data, "--static-batch", "1", "--steps", steps)
    assert main([*command, "--quiet"]) == status
    report, bundle = read_report(tmp_path / "out" / "report.json"), tmp_path / "out" / "bundle"
    assert any("its code is for one image at a time" in note for note in report.notes)
    assert report.parity.exact_fraction is not None and report.latency.batch == 1
    assert report.distillation is None or report.distillation.steps == int(steps)
    for name in (bundle / "model.onnx", tmp_path / "out" / "float.onnx"):
        graph = onnx.load(name).graph
        assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [1, 3, 16, 16]
        read = {value for node in graph.node for value in node.input}
        assert {tensor.name for tensor in graph.initializer} <= read  # ONNX Runtime warns of others at every load
    done = subprocess.run([sys.executable, str(bundle / "check.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    torch.manual_seed(0)
    network = load_network(f"python:nets_of_one_image:{builder}", Declared(static_batch=1))
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "float.onnx"), providers=["CPUExecutionProvider"])
    with np.load("images.npz") as arrays:
        images = normalise(torch.from_numpy(arrays["images"][:5]), network.preprocessing)
    with torch.no_grad():
        together = network.folded(images)[0]
        for index, image in enumerate(images):
            (ours,) = session.run(None, {session.get_inputs()[0].name: image[None].numpy()})
            torch.testing.assert_close(torch.from_numpy(ours), together[index][None], rtol=1e-3, atol=1e-4)


def test_without_the_flag_the_line_names_it_where_it_would_help(
    data: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    line = refused(capsys, *_command("viewed", data, "--steps", "0"))
    assert "module body" in line or "module fc" in line
    assert line.endswith("One image at a time it can be taken: --static-batch 1 makes a model of batch 1 alone")
    assert refused(capsys, *_command("viewed", data, "--steps", "0", "--static-batch", "2")) == line
    assert "--static-batch" not in refused(capsys, *_command("dropped", data, "--steps", "0"))
    line = refused(capsys, *_command("dropped", data, "--steps", "0", "--static-batch", "1"))
    assert "output output has the shape [10] for one image" in line and "select" in line
    assert "nets_of_one_image.py:16" in line and not (tmp_path / "out" / "bundle").exists()
