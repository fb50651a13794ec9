"""Graphs and float files are held against the user's own module on the run's images, before and after training."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from backends.onnx_file.serialised import parsed, serialise
from calibration.errors import UserError
from calibration.rewrites.rewrite import RewriteChangedOutputs
from pipeline.artifacts import FLOAT_MODEL, Network
from pipeline.cli import main
from pipeline.config import QuantisationConfig
from pipeline.images.data import open_images, split_held_out
from pipeline.images.split_images import SplitImages
from pipeline.stages.convert import float_counterpart
from pipeline.stages.first_link import check_float_file, check_on_images, some_images
from pipeline.stages.teacher import load_network
from tests.faulty_row import PLANTED


@pytest.fixture(scope="module")
def teacher() -> Network:
    return load_network("digits")


@pytest.fixture(scope="module")
def images(teacher: Network) -> Tensor:
    source = open_images("digits", teacher.preprocessing)
    training, held_out = split_held_out(len(source), 0)
    unlabelled = SplitImages(source=source, training=training, held_out=held_out, workers=0, augmentation="none")
    return some_images(unlabelled, teacher.preprocessing, seed=0)


@pytest.mark.parametrize("batch", [None, 3])
def test_the_float_file_gives_what_the_module_does(batch: int | None, teacher: Network, images: Tensor) -> None:
    assert len(images) == 4
    check_on_images(teacher, images)
    check_float_file(float_counterpart(teacher, QuantisationConfig(static_batch=batch)), teacher, images, batch=batch)


def test_a_float_file_that_computes_otherwise_names_its_first_node(teacher: Network, images: Tensor) -> None:
    model = parsed(float_counterpart(teacher, QuantisationConfig()))
    relus = [node for node in model.graph.node if node.op_type == "Relu"]
    relus[1].op_type = "Abs"
    with pytest.raises(UserError) as raised:
        check_float_file(serialise(model, name=FLOAT_MODEL), teacher, images, batch=None)
    message = str(raised.value)
    assert "float.onnx does not compute what the network does" in message and "\n" not in message
    assert f"the first node that differs is {relus[1].output[0]} (aten.relu.default)" in message


def test_a_graph_that_computes_otherwise_is_refused(teacher: Network, images: Tensor) -> None:
    class Doubled(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Any:
            return self.inner(x) * 2

    with pytest.raises(UserError, match=r"images of --data, output output differs by 0\.5 of its largest value"):
        check_on_images(replace(teacher, module=Doubled(teacher.module)), images)


def test_a_row_that_changes_what_real_images_give_is_named(
    teacher: Network, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random images, on which a network is folded when it is loaded, may not show what a row does to real ones."""
    monkeypatch.setattr("calibration.rewrites.fold.FOLDING", (PLANTED,))
    with pytest.raises(RewriteChangedOutputs, match=r"the rewrite 'planted' changed the output output by 0\.01"):
        check_on_images(teacher, images)


def test_a_runtime_that_cannot_run_the_float_file_says_so_before_training(teacher: Network, images: Tensor) -> None:
    model = parsed(float_counterpart(teacher, QuantisationConfig()))
    for tensor in model.graph.initializer:
        if tensor.name.endswith("bias") and tensor.dims:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tensor.dims[0] + 1, np.float32), tensor.name))
            break
    with pytest.raises(UserError, match=r"ONNX Runtime"):
        check_float_file(serialise(model, name=FLOAT_MODEL), teacher, images, batch=None)
    assert isinstance(model, onnx.ModelProto)


TAILS = """
import torch
from torch import nn

class Tail(nn.Module):
    def __init__(self, end):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.end = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), end
    def forward(self, x):
        return self.end(self.fc(self.conv(x).relu().mean((2, 3))))

def rare(): return Tail(lambda y: torch.sigmoid(y - 18))
def moved(): return Tail(lambda y: (torch.sigmoid(y - 15) * torch.softmax(y, 1))[:, 1:])
def small(): return Tail(lambda y: y * 1e-8)
"""


@pytest.mark.parametrize("builder", ["rare", "moved", "small"])
def test_probabilities_that_are_all_next_to_nothing_are_held_to_what_is_something(
    builder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's Sigmoid is 0 from -18 on, where torch's is 1.5e-8: no fault of the file, unlike other numbers."""
    (tmp_path / "tails.py").write_text(TAILS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tails", raising=False)
    network, images = load_network(f"python:tails:{builder}", image_size=(16, 16)), torch.randn(4, 3, 16, 16)
    model = parsed(float_counterpart(network, QuantisationConfig()))
    check_float_file(serialise(model, name=FLOAT_MODEL), network, images, batch=None)
    # Logits of 8 more make probabilities of 4e-5 and more; of other numbers 8e-8 is a fault where all are that small.
    for tensor in model.graph.initializer:
        if tensor.name == "fc_folded_bias" or tensor.name == "fc_bias":
            larger = numpy_helper.to_array(tensor) + np.float32(8e-8 if builder == "small" else 8)
            tensor.CopyFrom(numpy_helper.from_array(larger, tensor.name))
    with pytest.raises(UserError, match="does not compute what the network does"):
        check_float_file(serialise(model, name=FLOAT_MODEL), network, images, batch=None)


BUILDERS = """
import torch, torch.nn.functional as F
from torch import nn

class Net(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.line = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5), forward
    def forward(self, x):
        return self.b(self.line(self.a(x)).mean((2, 3)))

def mixing(): return Net(lambda y: y - y.mean(0))
def normalised(): return Net(lambda y: F.leaky_relu((y * 255 - 127.5) / 1.0, 0.2) / 1.0)
"""


# Random weights give one class for all images, of which agreement says nothing: undecided.
@pytest.mark.parametrize(("builder", "status"), [("mixing", 2), ("normalised", 4)])
def test_the_command_refuses_what_mixes_and_takes_what_was_captured_wrongly(
    builder: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "linked_builders.py").write_text(BUILDERS)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "images.npz", images=rng.integers(0, 255, (64, 3, 16, 16), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    command = f"run --teacher python:linked_builders:{builder} --image-size 16 --mean 0.5,0.5,0.5 --std 0.25,0.25,0.25"
    command += " --data npz:images.npz#images --bits 8 --steps 0 --max-drop 100 --output out --backend reference"
    assert main(command.split()) == status
    if status == 2:
        assert "mixes the images of a batch" in capsys.readouterr().err
        assert not (tmp_path / "out" / "bundle").exists()
    else:
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert report["accuracy"]["teacher"] is not None
