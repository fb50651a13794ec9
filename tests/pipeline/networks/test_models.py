"""Teacher sources: real networks and checkpoints, their preprocessing, every wrong input."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from calibration.errors import UserError
from pipeline.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, image_to_tensor, normalise
from pipeline.networks.architectures.cifar_resnet import CifarResNet
from pipeline.networks.models import LoadedModel, load_model
from pipeline.networks.sources.table import MODEL_SOURCES

WriteModule = Callable[[str], str]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteModule:
    """Write a Python module into the working directory; returns its name, which no other test uses."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])

    def write(text: str) -> str:
        name = f"user_model_{abs(hash((str(tmp_path), text))):x}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def _message(source: str, weights: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_model(source, weights=weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _check(loaded: LoadedModel) -> None:
    assert not any(module.training for module in loaded.module.modules())
    tensors = loaded.module.state_dict().values()
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float32}


def _save(network: nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


def test_unknown_sources_are_told_so() -> None:
    assert f"one of {', '.join(sorted(MODEL_SOURCES))}" in _message("tensorflow:resnet18")
    assert "must be cifar:rest" in _message("cifar:")
    assert "must be torchvision:rest" in _message("torchvision")


@pytest.mark.parametrize("kind", MODEL_SOURCES)
def test_every_source_answers_nonsense_and_missing_weights_in_one_line(kind: str, tmp_path: Path) -> None:
    """A new one is tested the moment it is listed."""
    line = _message(f"{kind}:no such network")
    assert "no such network" in line
    assert _message(f"{kind}:no such network", tmp_path / "absent.pth")


def test_embedded_teacher(tmp_path: Path) -> None:
    loaded = load_model("digits")
    _check(loaded)
    assert (loaded.source, loaded.preprocessing.channels, loaded.notes) == ("digits", 1, ())
    zeros = {key: torch.zeros_like(tensor) for key, tensor in loaded.module.state_dict().items()}
    torch.save(zeros, tmp_path / "w.pt")
    again = load_model("digits", weights=tmp_path / "w.pt")
    assert not any(parameter.any() for parameter in again.module.parameters())
    assert "no variants" in _message("digits:small")


@pytest.mark.parametrize(("depth", "correct"), [(20, 932), pytest.param(56, 943, marks=pytest.mark.benchmark)])
def test_cifar_checkpoints_reach_their_published_accuracy(shared_folder: Path, depth: int, correct: int) -> None:
    checkpoint = shared_folder / "models" / f"resnet{depth}_cifar10.safetensors"
    loaded = load_model(f"cifar:resnet{depth}", weights=checkpoint)
    _check(loaded)
    assert loaded.notes == ()
    with np.load(shared_folder / "data" / "cifar10_sample.npz", allow_pickle=False) as archive:
        images, labels = torch.from_numpy(archive["test_images"]), torch.from_numpy(archive["test_labels"])
    with torch.inference_mode():
        logits = loaded.module(normalise(images, loaded.preprocessing))
    assert int((logits.argmax(1) == labels).sum()) == correct  # of 1,017: 91.64 and 92.72 %


def test_cifar_preprocessing_and_classes(tmp_path: Path) -> None:
    weights = _save(CifarResNet(3, classes=100), tmp_path / "c100.pth")
    loaded = load_model("cifar:resnet20", weights=weights)
    assert loaded.module(torch.zeros(1, 3, 32, 32)).shape == (1, 100)
    assert loaded.notes == ("100 classes, as in c100.pth",)
    preprocessing = loaded.preprocessing
    assert (preprocessing.height, preprocessing.width, preprocessing.resize) == (32, 32, None)
    assert (preprocessing.mean, preprocessing.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_random_weights_are_asked_for_and_repeatable() -> None:
    state = torch.get_rng_state()
    first, second = (load_model("cifar:resnet20?weights=none&num_classes=5") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.module.get_parameter("conv1.weight"), second.module.get_parameter("conv1.weight"))
    assert first.module(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    assert "random" in first.notes[0]


def test_cifar_mistakes(tmp_path: Path) -> None:
    assert "known: resnet20, resnet32" in _message("cifar:resnet21?weights=none")
    assert "add --weights FILE" in _message("cifar:resnet20")
    assert "unknown option 'width'" in _message("cifar:resnet20?width=2")
    assert "key=value" in _message("cifar:resnet20?weights")
    assert "whole number" in _message("cifar:resnet20?weights=none&num_classes=0")
    weights = _save(CifarResNet(5), tmp_path / "resnet32.pth")
    message = _message("cifar:resnet20", weights)
    assert f"{weights} for cifar:resnet20 do not fit: 60 keys unexpected" in message
    assert "no such file" in _message("cifar:resnet20", tmp_path / "absent.pth")


def test_torchvision_takes_the_preprocessing_of_its_weights() -> None:
    loaded = load_model("torchvision:resnet18?weights=none")
    _check(loaded)
    preprocessing = loaded.preprocessing
    assert (preprocessing.height, preprocessing.width, preprocessing.resize) == (224, 224, 256)
    assert (preprocessing.interpolation, preprocessing.mean) == ("bilinear", IMAGENET_MEAN)
    assert loaded.notes == ("random weights",)
    other = load_model("torchvision:efficientnet_b3?weights=none").preprocessing
    assert (other.height, other.resize, other.interpolation) == (300, 320, "bicubic")


def test_torchvision_with_a_users_checkpoint(tmp_path: Path) -> None:
    from torchvision import models

    network = models.mobilenet_v3_small(num_classes=12)
    loaded = load_model("torchvision:mobilenet_v3_small", weights=_save(network, tmp_path / "w.pth"))
    assert torch.equal(loaded.module.get_parameter("classifier.3.bias"), network.get_parameter("classifier.3.bias"))
    assert loaded.preprocessing.resize == 256
    assert loaded.notes == ("12 classes, as in w.pth",)
    # Two published sets of weights were evaluated differently: the user is told which is assumed.
    weights = _save(models.mobilenet_v2(num_classes=2), tmp_path / "v2.pth")
    assumed = load_model("torchvision:mobilenet_v2", weights=weights)
    assert assumed.preprocessing.resize == 232
    assert "preprocessing of IMAGENET1K_V2 assumed" in assumed.notes[1]
    chosen = load_model("torchvision:mobilenet_v2?weights=IMAGENET1K_V1", weights=weights)
    assert chosen.preprocessing.resize == 256
    assert len(chosen.notes) == 1


def test_torchvision_segmentation_is_prepared_at_one_size() -> None:
    loaded = load_model("torchvision:lraspp_mobilenet_v3_large?weights=none&num_classes=2")
    assert (loaded.preprocessing.height, loaded.preprocessing.resize) == (520, 520)
    assert "centre crop of 520 px" in loaded.notes[0]


def test_torchvision_mistakes(tmp_path: Path) -> None:
    assert "did you mean resnet18" in _message("torchvision:resnet81")
    assert "known: none, IMAGENET1K_V1, DEFAULT" in _message("torchvision:resnet18?weights=V9")
    assert "num_classes needs --weights" in _message("torchvision:resnet18?num_classes=3")
    assert "did you mean resnet18" in _message("torchvision:quantized_resnet18")


def test_timm_takes_its_own_preprocessing(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    loaded = load_model("timm:mobilenetv3_small_050.lamb_in1k?pretrained=false&num_classes=6")
    _check(loaded)
    preprocessing = loaded.preprocessing
    assert (preprocessing.height, preprocessing.resize, preprocessing.interpolation) == (224, 256, "bicubic")
    weights = _save(timm.create_model("mobilenetv3_small_050", num_classes=4), tmp_path / "w.pth")
    mine = load_model("timm:mobilenetv3_small_050", weights=weights)
    assert mine.module(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    assert mine.notes == ("4 classes, as in w.pth",)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18.a1_in1k", (224, 235, ())),  # crop_pct 0.95: floor(224 / 0.95)
        ("convnext_tiny.fb_in22k_ft_in1k_384", (384, None, ())),  # squash: straight to the size
    ],
)
def test_timm_crop_modes(name: str, expected: tuple[int, int | None, tuple[str, ...]]) -> None:
    pytest.importorskip("timm")
    from timm.models import get_pretrained_cfg

    from pipeline.networks.sources.timm_models import _preprocessing

    published = get_pretrained_cfg(name)
    assert published is not None
    config = published.to_dict()  # type: ignore[no-untyped-call]
    preprocessing, notes = _preprocessing(config, name)
    assert (preprocessing.height, preprocessing.resize, notes) == expected


def test_timm_crops_that_cannot_be_expressed_are_said_aloud() -> None:
    from pipeline.networks.sources.timm_models import _preprocessing

    config = {
        "input_size": (3, 224, 224), "interpolation": "bicubic", "mean": IMAGENET_MEAN, "std": IMAGENET_STD,
        "crop_pct": 0.9, "crop_mode": "border",
    }  # fmt: skip
    assert "'border' at 0.9 is approximated" in _preprocessing(config, "x")[1][0]
    preprocessing, notes = _preprocessing(config | {"input_size": (3, 256, 128)}, "x")
    assert (preprocessing.height, preprocessing.width, preprocessing.resize) == (256, 128, None)
    assert "128x256 px" in notes[0]
    with pytest.raises(UserError, match="takes 4 channels"):
        _preprocessing(config | {"input_size": (4, 224, 224)}, "x")


@pytest.mark.parametrize(
    ("size", "mode", "ratio"),
    [((3, 96, 96), "squash", 0.9), ((3, 64, 96), "squash", 0.95), ((3, 96, 96), "center", 0.9)],
)
def test_images_for_timm_are_prepared_as_timm_does(
    size: tuple[int, int, int], mode: str, ratio: float, shared_folder: Path
) -> None:
    transforms_factory = pytest.importorskip("timm.data.transforms_factory")
    from pipeline.networks.sources.timm_models import _preprocessing

    config = {
        "input_size": size, "interpolation": "bicubic", "mean": IMAGENET_MEAN, "std": IMAGENET_STD,
        "crop_pct": ratio, "crop_mode": mode,
    }  # fmt: skip
    preprocessing, notes = _preprocessing(config, "x")
    assert notes == ()
    theirs = transforms_factory.transforms_imagenet_eval(
        img_size=size[1:], crop_pct=ratio, crop_mode=mode, interpolation="bicubic", use_prefetcher=True
    )
    for path in sorted((shared_folder / "data" / "photos").iterdir())[::12]:
        with Image.open(path) as image:
            expected = torch.as_tensor(theirs(image.convert("RGB")))
            assert torch.equal(image_to_tensor(image, preprocessing), expected), path.name


def test_timm_mistakes(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    assert "did you mean" in _message("timm:mobilnetv3_small_050")
    assert "exclude each other" in _message("timm:resnet18?pretrained=true", tmp_path / "w.pth")
    assert "true or false" in _message("timm:resnet18?pretrained=no")
    assert "has no published weights" in _message("timm:lcnet_035")


def test_a_hub_out_of_reach_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the port of the discard service: nobody listens
    start = time.perf_counter()
    for name in ("mobilenetv3_small_050.lamb_in1k", "hf_hub:timm/mobilenetv3_small_050.lamb_in1k"):
        message = _message(f"timm:{name}")
        assert "cannot download from the Hugging Face hub" in message and "--weights FILE" in message
    assert time.perf_counter() - start < 5  # the hub's own client takes most of a minute


def test_a_users_builder_without_preprocessing_gets_imagenets_said_aloud(write_module: WriteModule) -> None:
    name = write_module("from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 2, 3)).half()\n")
    loaded = load_model(f"python:{name}:build")
    _check(loaded)
    assert (loaded.preprocessing.height, loaded.preprocessing.resize) == (224, 256)
    assert loaded.notes[0] == "converted to float32 from torch.float16"
    assert "shorter side to 256 px and a crop of 224x224 px" in loaded.notes[1]
    assert "set --image-size, --mean, --std" in loaded.notes[1]
    told = load_model(f"python:{name}:build", image_size=48, mean=(0.5,), std=(0.2, 0.3, 0.4))
    assert (told.preprocessing.height, told.preprocessing.resize) == (48, None)
    assert (told.preprocessing.mean, told.preprocessing.std) == ((0.5, 0.5, 0.5), (0.2, 0.3, 0.4))
    assert len(told.notes) == 1


def test_a_users_greyscale_builder_gets_one_channel(write_module: WriteModule) -> None:
    name = write_module("from torch import nn\ndef build():\n    return nn.Conv2d(1, 2, 3)\n")
    preprocessing = load_model(f"python:{name}:build", image_size=28).preprocessing
    assert (preprocessing.channels, preprocessing.channel_order, preprocessing.mean) == (1, "L", (0.449,))
    assert "mean has 3 values" in _mean_message(f"python:{name}:build")


def _mean_message(source: str) -> str:
    with pytest.raises(UserError) as caught:
        load_model(source, mean=(0.1, 0.2, 0.3), std=(0.1, 0.2, 0.3))
    return str(caught.value)


def test_a_users_builder_with_preprocessing(write_module: WriteModule, tmp_path: Path) -> None:
    name = write_module(
        "from torch import nn\n"
        "from pipeline.images.preprocessing import preprocessing_from_fields\n"
        "def fields():\n"
        "    return nn.Conv2d(3, 2, 3), {'height': 40, 'channel_order': 'BGR', 'mean': [0.1, 0.2, 0.3]}\n"
        "def whole():\n"
        "    return nn.Conv2d(3, 2, 3), preprocessing_from_fields({'width': 50}, where='x')\n"
    )
    fields = load_model(f"python:{name}:fields")
    assert (fields.preprocessing.width, fields.preprocessing.channel_order) == (40, "BGR")
    assert (fields.preprocessing.mean, fields.notes) == ((0.1, 0.2, 0.3), ())
    whole = load_model(f"python:{name}:whole", image_size=100)
    assert whole.preprocessing.width == 100
    assert "100x100 px" in whole.notes[0] and "50x50 px" in whole.notes[0]
    state = {"weight": torch.ones(2, 3, 3, 3), "bias": torch.zeros(2)}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    loaded = load_model(f"python:{name}:whole", weights=tmp_path / "w.safetensors")
    assert loaded.module.get_parameter("weight").eq(1).all()
    torch.save({"kernel": torch.ones(1)}, tmp_path / "w.pt")
    assert "2 keys missing (weight, bias), 1 keys unexpected (kernel)" in _message(
        f"python:{name}:whole", tmp_path / "w.pt"
    )


def test_exceptions_in_a_users_builder_name_the_users_line(write_module: WriteModule) -> None:
    name = write_module(
        "import torch\n"
        "table = {}\n"
        "def own():\n"
        "    return table['width']\n"
        "def library():\n"
        "    return torch.nn.Conv2d(3, 4, 3, groups=2)\n"
        "def needs(argument):\n"
        "    return argument\n"
        "def nothing():\n"
        "    pass\n"
        "def pair():\n"
        "    return torch.nn.ReLU(), 224\n"
        "def wrong():\n"
        "    return torch.nn.ReLU(), {'size': 224}\n"
        "def broken():\n"
        "    nan = float('nan')\n"
        "    return torch.nn.Linear(2, 2).requires_grad_(False).apply(lambda m: m.weight.fill_(nan))\n"
    )
    assert f"raised KeyError: 'width' ({Path.cwd() / name}.py, line 4)" in _message(f"python:{name}:own")
    library = _message(f"python:{name}:library")
    assert "raised ValueError: in_channels must be divisible by groups" in library
    assert f"{name}.py, line 6)" in library
    assert "must be callable without arguments" in _message(f"python:{name}:needs")
    assert "returned None: does the function end with return?" in _message(f"python:{name}:nothing")
    assert "returned a int beside the module" in _message(f"python:{name}:pair")
    assert "unknown preprocessing fields size" in _message(f"python:{name}:wrong")
    assert "NaN or infinity in 1 parameters (weight)" in _message(f"python:{name}:broken")
    assert "has no 'librari'; did you mean library?" in _message(f"python:{name}:librari")
    assert "table is a dict, not a function" in _message(f"python:{name}:table")


def test_modules_that_cannot_be_imported(write_module: WriteModule) -> None:
    assert "no module 'absent_package' in" in _message("python:absent_package.nets:build")
    assert "no module 'torch.absent' in" in _message("python:torch.absent:build")
    syntax = write_module("def build(:\n")
    assert f"raised SyntaxError: invalid syntax ({syntax}.py, line 1)" in _message(f"python:{syntax}:build") or (
        f"{syntax}.py, line 1)" in _message(f"python:{syntax}:build")
    )
    inner = write_module("import absent_dependency\n")
    message = _message(f"python:{inner}:build")
    assert "ModuleNotFoundError: No module named 'absent_dependency'" in message
    assert f"{inner}.py, line 1)" in message
    assert "no such file; write python:package.module:function" in _message("python:folder/file.py:build")
    assert "must be python:package.module:function" in _message("python:module")
