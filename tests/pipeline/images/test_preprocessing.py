"""Preprocessing: exactly torchvision's for photographs, every mode of Pillow, one normalisation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from calibration.errors import UserError
from pipeline.images.preprocessing import (
    Preprocessing,
    image_to_tensor,
    normalise,
    preprocessing_from_fields,
)
from pipeline.images.preprocessing_overrides import with_overrides

IMAGENET = preprocessing_from_fields({}, where="test")


def _noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    generator = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


def _torchvision(image: Image.Image, preprocessing: Preprocessing) -> torch.Tensor:
    mode = transforms.InterpolationMode(preprocessing.interpolation)
    size = (preprocessing.height, preprocessing.width)
    steps = [
        transforms.Resize(preprocessing.resize or size, interpolation=mode, antialias=True),
        transforms.CenterCrop(size),
        transforms.PILToTensor(),
    ]
    result: torch.Tensor = transforms.Compose(steps)(image.convert("RGB"))
    return result


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"interpolation": "bicubic", "resize": 235},
        {"resize": None},
        {"resize": 232, "height": 192, "width": 224},
        {"resize": 100, "height": 131, "width": 128},  # a crop larger than the image: black around it
    ],
)
def test_photographs_are_prepared_as_torchvision_does(shared_folder: Path, changes: dict[str, Any]) -> None:
    preprocessing = replace(IMAGENET, **changes)
    photographs = sorted((shared_folder / "data" / "photos").iterdir())
    assert len(photographs) > 50
    for path in photographs[:: 1 if not changes else 6]:
        with Image.open(path) as image:
            prepared = image_to_tensor(image, preprocessing)
            expected = _torchvision(image, preprocessing)
        assert prepared.dtype == torch.uint8
        assert torch.equal(prepared, expected), path.name


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
@pytest.mark.parametrize("size", [(1, 1), (3, 50), (37, 29), (224, 224), (400, 5)])
def test_odd_sizes_are_prepared_as_torchvision_does(interpolation: str, size: tuple[int, int]) -> None:
    preprocessing = replace(IMAGENET, height=30, width=30, resize=33, interpolation=interpolation)
    image = _noise(*size)
    assert torch.equal(image_to_tensor(image, preprocessing), _torchvision(image, preprocessing))


def test_very_long_strips_are_prepared_without_making_them_whole() -> None:
    strip = _noise(20_000, 1)
    prepared = image_to_tensor(strip, replace(IMAGENET, height=64, width=64, resize=64))
    assert prepared.shape == (3, 64, 64)
    # Enlarged 64-fold, the crop's columns are the strip's middle pixels.
    middle = np.asarray(strip)[0, 9_999:10_001].astype(int)
    assert abs(prepared[:, 0, 0].numpy().astype(int) - middle[0]).max() < 128
    larger = image_to_tensor(_noise(200_000, 1), IMAGENET)
    assert larger.shape == (3, 224, 224)


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "RGBa", "La"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_usual_mode_becomes_the_networks_channels(mode: str, channels: int) -> None:
    order = "RGB" if channels == 3 else "L"
    preprocessing = preprocessing_from_fields({"height": 8, "channels": channels}, where="test")
    assert preprocessing.channel_order == order
    image = _noise(8, 8)
    if mode in ("RGBa", "PA", "La"):
        image = image.convert({"RGBa": "RGBA", "PA": "P", "La": "LA"}[mode])
    prepared = image_to_tensor(image.convert(mode), preprocessing)
    assert prepared.shape == (channels, 8, 8)


def test_transparent_palettes_lose_their_transparency_without_a_warning() -> None:
    image = _noise(8, 8).quantize(8)
    image.info["transparency"] = bytes([0] * 8)
    expected = image.copy()
    del expected.info["transparency"]
    preprocessing = preprocessing_from_fields({"height": 8}, where="test")
    assert torch.equal(image_to_tensor(image, preprocessing), image_to_tensor(expected, preprocessing))


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    pixels = np.array([[0, 255, 256], [4660, 65279, 65535]], dtype=np.uint16)
    preprocessing = preprocessing_from_fields({"height": 2, "width": 3, "channels": 1}, where="test")
    prepared = image_to_tensor(Image.fromarray(pixels), preprocessing)
    assert prepared[0].tolist() == [[0, 0, 1], [18, 254, 255]]


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), dtype=np.float32), np.full((4, 4), 70_000, dtype=np.int32)])
def test_modes_without_a_defined_conversion_are_refused(pixels: Any) -> None:
    with pytest.raises(ValueError, match="no defined conversion to 8 bits"):
        image_to_tensor(Image.fromarray(pixels), IMAGENET)


def test_channel_order_is_the_networks() -> None:
    image = Image.new("RGB", (4, 4), (10, 20, 30))
    rgb = preprocessing_from_fields({"height": 4}, where="test")
    bgr = preprocessing_from_fields({"height": 4, "channel_order": "BGR"}, where="test")
    assert image_to_tensor(image, rgb)[:, 0, 0].tolist() == [10, 20, 30]
    assert image_to_tensor(image, bgr)[:, 0, 0].tolist() == [30, 20, 10]
    assert bgr.mean == rgb.mean[::-1]


def test_normalisation_equals_torchvisions() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    expected = transforms.Normalize(IMAGENET.mean, IMAGENET.std)(images.to(torch.float32) / 255)
    assert torch.equal(normalise(images, IMAGENET), expected)
    assert torch.equal(normalise(images, IMAGENET, dtype=torch.float16), expected.half())
    # 0.485 is the mean of red: (124 / 255 - 0.485) / 0.229, by hand.
    assert normalise(images, IMAGENET)[0, 0, 7, 12].item() == pytest.approx(0.005566, abs=1e-6)


def test_normalised_images_can_be_trained_on_after_inference_mode() -> None:
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    fresh = replace(IMAGENET, mean=(0.1, 0.2, 0.3))
    with torch.inference_mode():
        normalise(images, fresh)
    weight = torch.ones(1, requires_grad=True)
    (gradient,) = torch.autograd.grad((normalise(images, fresh) * weight).sum(), weight)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    "images",
    [torch.zeros(1, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(1, 1, 4, 4).byte()],
)
def test_normalising_other_things_than_prepared_images_is_our_bug(images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="uint8"):
        normalise(images, IMAGENET)


def test_json_round_trip() -> None:
    text = json.dumps(IMAGENET.to_json())
    assert Preprocessing.from_json(json.loads(text)) == IMAGENET
    with pytest.raises(UserError, match=r"missing fields \['width'\], unknown fields \['size'\]"):
        values = IMAGENET.to_json()
        Preprocessing.from_json({("size" if name == "width" else name): values[name] for name in values})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 0}, "height is 0"),
        ({"width": 2.5}, "width is 2.5"),
        ({"resize": True}, "resize is True"),
        ({"interpolation": "cubic"}, "known: nearest, bilinear"),
        ({"channels": 1}, "1 channels in the order 'RGB'"),
        ({"channel_order": "GRB"}, "order 'GRB'"),
        ({"mean": (0.5,)}, "mean has 1 values"),
        ({"mean": (123.7, 116.3, 103.5)}, "divided by 255, these are mean 0.4851,0.4561,0.4059 and std 0.0"),
        ({"mean": (float("nan"), 0.5, 0.5)}, "finite numbers"),
        ({"std": (0.2, 0.0, 0.2)}, "above 0"),
        ({"std": [0.2, 0.2, 0.2]}, "std is"),
    ],
)
def test_impossible_preprocessing_does_not_exist(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(IMAGENET, **changes)


def test_some_fields_are_completed_by_imagenets() -> None:
    assert (IMAGENET.height, IMAGENET.width, IMAGENET.resize) == (224, 224, 256)
    small = preprocessing_from_fields({"width": 32, "mean": 0.5, "std": 0.25}, where="test")
    assert (small.height, small.width, small.resize) == (32, 32, None)
    assert (small.mean, small.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    grey = preprocessing_from_fields({"mean": (0.1,), "std": (0.2,)}, where="test")
    assert (grey.channels, grey.channel_order) == (1, "L")
    with pytest.raises(UserError, match="python:x: unknown preprocessing fields size; known: channels, height"):
        preprocessing_from_fields({"size": 3}, where="python:x")


def test_overrides_keep_the_ratio_of_resize_and_crop() -> None:
    smaller = with_overrides(IMAGENET, image_size=112, mean=(0.5,))
    assert (smaller.height, smaller.width, smaller.resize, smaller.mean) == (112, 112, 128, (0.5, 0.5, 0.5))
    with pytest.raises(UserError, match="image size 0 px"):
        with_overrides(IMAGENET, image_size=0)
    with pytest.raises(UserError, match="std has 2 values"):
        with_overrides(IMAGENET, std=(0.1, 0.2))
