"""Networks named as users name them: taken where that means one thing, else answered with what to type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from calibration.errors import UserError
from pipeline.networks.models import load_model
from pipeline.networks.sources.loose_names import full_source
from pipeline.networks.sources.table import MODEL_SOURCES


@pytest.fixture(autouse=True)
def at_the_desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    desk = tmp_path / "desk"
    (desk / "nets").mkdir(parents=True)
    (desk / "nets" / "one.py").write_text(
        "def build(width=1):\n    pass\ndef _own():\n    pass\ndef needs(x):\n    pass\n"
    )
    (desk / "two.py").write_text("raise SystemExit\ndef first():\n    pass\ndef second(*, seed=0):\n    pass\n")
    (desk / "my-net.py").write_text("def build():\n    pass\n")
    (desk / "broken.py").write_text("def build(:\n")
    (desk / "vit").mkdir()
    (desk / "vit" / "config.json").write_text(json.dumps({"architectures": ["ViTForImageClassification"]}))
    (tmp_path / "outside.py").write_text("def build():\n    pass\n")
    torch.save({"model": nn.Linear(2, 2)}, desk / "yolo.pt")
    torch.save(nn.Linear(2, 2).state_dict(), desk / "w.safetensors.pth")
    (desk / "page.pth").write_text("<html>not found</html>")
    monkeypatch.chdir(desk)
    return desk


def test_every_kind_is_known() -> None:
    assert [full_source(f"{kind}:x") for kind in MODEL_SOURCES] == [(f"{kind}:x", ()) for kind in MODEL_SOURCES]


@pytest.mark.parametrize(
    ("source", "full"),
    [
        ("resnet20", "cifar:resnet20"),
        ("resnet20?weights=none", "cifar:resnet20?weights=none"),
        ("vit_b_16", "torchvision:vit_b_16"),
        ("torchvision.models.resnet18", "torchvision:resnet18"),
        ("torchvision/resnet18", "torchvision:resnet18"),
        ("nets/one.py", "python:nets.one:build"),
        ("two.py:second", "python:two:second"),
        ("python:nets/one.py:build", "python:nets.one:build"),
    ],
)
def test_what_means_one_thing_is_taken_and_said(source: str, full: str) -> None:
    taken, notes = full_source(source)
    assert taken == full
    assert full in notes[0] and notes[0].startswith(f"{source}: ")


def test_names_of_timm_are_known_where_it_is_installed() -> None:
    pytest.importorskip("timm")
    assert full_source("timm/resnet18.a1_in1k")[0] == "timm:resnet18.a1_in1k"
    assert full_source("resnet18d")[0] == "timm:resnet18d"
    with pytest.raises(UserError, match="torchvision and timm have one of this name: write torchvision:resnet18 or"):
        full_source("resnet18")


def test_what_was_taken_is_the_networks_name() -> None:
    loaded = load_model("resnet20?weights=none")
    assert loaded.source == "cifar:resnet20?weights=none"
    assert loaded.notes[0] == f"resnet20?weights=none: {loaded.source} is taken, the only network of this name"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("resnet2O", "cifar:resnet20"),
        ("digit", "did you mean digits?"),
        ("qwertyuiop", "it must be kind:rest with one of cifar, digits"),
        ("torchvison:resnet18", "did you mean torchvision:resnet18?"),
        ("nets.one:build", "did you mean python:nets.one:build?"),
        ("tensorflow:resnet18", "it must be kind:rest with one of"),
        ("hf:microsoft/resnet-50", "write timm:hf_hub:microsoft/resnet-50 for a network of timm's"),
        ("microsoft/resnet-50", "from_pretrained('microsoft/resnet-50')"),
        ("https://huggingface.co/microsoft/resnet-50", "write timm:hf_hub:microsoft/resnet-50"),
        ("https://example.com/w.pth", "is an address: download the file"),
        ("two.py", "write python:two:FUNCTION with a function that returns the network (in it: first, second)"),
        ("../outside.py:build", "and write python:outside:build"),
        ("my-net.py", "rename it, as in my_net.py"),
        ("broken.py", "cannot be read as Python"),
        ("absent.py", "there is no such file"),
        ("net.onnx", "onnx2torch.convert('net.onnx')"),
        ("net.pt2", "an exported program"),
        ("net.tflite", "a TensorFlow Lite model"),
        ("yolo.pt", "holds weights (those of a pickled torch.nn.modules.linear.Linear), not the network"),
        ("w.safetensors.pth", "write --teacher KIND:REST --weights w.safetensors.pth"),
        ("page.pth", "are a web page (HTML)"),
        ("absent.safetensors", "there is no such file"),
        ("vit", "let a function return ViTForImageClassification.from_pretrained('vit')"),
        ("../desk", "is a folder"),
    ],
)
def test_what_cannot_be_taken_is_answered_with_what_to_type(source: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        full_source(source)
    assert words in str(caught.value) and repr(source) in str(caught.value)
