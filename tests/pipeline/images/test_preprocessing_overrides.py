"""What a user says of a network's images: sizes, fits and channels replaced, and what cannot be together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from calibration.errors import UserError
from pipeline.config import PreprocessingConfig
from pipeline.images.preprocessing import Preprocessing, preprocessing_from_fields
from pipeline.images.preprocessing_overrides import FLAGS, Overrides, assumed_preprocessing, with_overrides

IMAGENET = preprocessing_from_fields({}, where="test")
LETTERBOX = preprocessing_from_fields({"height": 64, "fit": "letterbox"}, where="test")


def _shape(p: Preprocessing) -> tuple[Any, ...]:
    return p.width, p.height, p.fit, p.resize, p.fill, p.placement


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"image_size": 112}, (112, 112, "crop", 128, None, "centre")),
        ({"image_size": (640, 384)}, (640, 384, "stretch", None, None, "centre")),
        ({"image_size": (640, 384), "fit": "crop"}, (640, 384, "crop", 439, None, "centre")),
        (
            {"image_size": (640, 384), "fit": "crop", "resize": (700, 420)},
            (640, 384, "crop", (700, 420), None, "centre"),
        ),
        ({"fit": "stretch"}, (224, 224, "stretch", None, None, "centre")),
        ({"resize": 232}, (224, 224, "crop", 232, None, "centre")),
        (
            {"crop_ratio": 0.95},
            (224, 224, "crop", 235, None, "centre"),
        ),  # 224 / 0.95 = 235.8, cut as timm does
        ({"fit": "letterbox"}, (224, 224, "letterbox", None, (114, 114, 114), "centre")),
        (
            {"image_size": 416, "fit": "letterbox", "fill": (0,), "placement": "top-left"},
            (416, 416, "letterbox", None, (0, 0, 0), "top-left"),
        ),
    ],
)
def test_sizes_and_fits(overrides: Overrides, expected: tuple[Any, ...]) -> None:
    assert _shape(with_overrides(IMAGENET, **overrides)) == expected


def test_a_letterbox_stays_one_until_told_otherwise() -> None:
    assert _shape(with_overrides(LETTERBOX, image_size=(96, 64))) == (96, 64, "letterbox", None, (114,) * 3, "centre")
    assert _shape(with_overrides(LETTERBOX, fit="crop", resize=70))[2:5] == ("crop", 70, None)
    assert with_overrides(LETTERBOX, fit="stretch").fill is None


def test_the_order_of_channels_turns_what_belongs_to_them() -> None:
    bgr = with_overrides(replace(LETTERBOX, fill=(1, 2, 3)), channel_order="BGR")
    assert (bgr.mean, bgr.std, bgr.fill) == (IMAGENET.mean[::-1], IMAGENET.std[::-1], (3, 2, 1))
    told = with_overrides(IMAGENET, channel_order="BGR", mean=(0.1, 0.2, 0.3), std=(1.0,))
    assert (told.mean, told.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    with pytest.raises(UserError, match="--channel-order L: the network takes 3 channels, in the order RGB"):
        with_overrides(IMAGENET, channel_order="L")


def test_values_from_0_to_255() -> None:
    caffe = with_overrides(IMAGENET, divisor=1, mean=(103.53, 116.28, 123.675), std=(1.0,), channel_order="BGR")
    assert caffe.mean == (103.53, 116.28, 123.675)
    with pytest.raises(UserError, match=r"255\.5"):
        with_overrides(IMAGENET, divisor=1, mean=(255.5,), std=(1.0,))


@pytest.mark.parametrize(
    ("base", "overrides", "words"),
    [
        (LETTERBOX, {"resize": 70}, "--resize comes before a crop: it needs --fit crop, not letterbox"),
        (IMAGENET, {"fit": "stretch", "crop_ratio": 0.9}, "--crop-ratio comes before a crop"),
        (
            IMAGENET,
            {"fill": (0,)},
            "--fill is of the frame around a letterboxed image: it needs --fit letterbox",
        ),
        (IMAGENET, {"placement": "top-left"}, "--placement is of the frame"),
        (IMAGENET, {"crop_ratio": 1.2}, "--crop-ratio 1.2: must be above 0"),
        (IMAGENET, {"fit": "letterbox", "fill": (1, 2)}, "it must be whole numbers from 0 to 255, one per channel"),
        (IMAGENET, {"stored_bits": 8}, "stored_bits is 8"),
        (IMAGENET, {"image_size": (0, 5)}, "image size 0x5 px"),
    ],
)
def test_what_cannot_be_is_said(base: Preprocessing, overrides: Overrides, words: str) -> None:
    with pytest.raises(UserError) as caught:
        with_overrides(base, **overrides)
    assert words in str(caught.value)


def test_a_source_without_preprocessing_is_completed() -> None:
    grey = assumed_preprocessing(1, "python:x", image_size=(96, 48), fit="letterbox")
    assert (grey.channel_order, grey.fill, grey.width, grey.height) == ("L", (114,), 96, 48)
    raw = assumed_preprocessing(3, "python:x", divisor=1.0, mean=(0.0,), std=(1.0,))
    assert (raw.divisor, raw.resize) == (1.0, 256)
    with pytest.raises(UserError, match="python:x: --resize comes before a crop"):
        assumed_preprocessing(3, "python:x", fit="stretch", resize=3)


def test_every_flag_is_an_override() -> None:
    config = PreprocessingConfig(image_size="640x384", fit="crop", resize="700x420")
    overrides = config.overrides()
    assert list(overrides) == list(FLAGS)
    assert (overrides["image_size"], overrides["resize"]) == ((640, 384), (700, 420))
    assert PreprocessingConfig(image_size=224).overrides()["image_size"] == 224


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"fit": "pad"}, "fit is 'pad'; known: crop, stretch, letterbox"),
        ({"fit": "stretch", "resize": 3}, "resize 3 comes before a crop; fit is 'stretch'"),
        ({"fit": "crop", "fill": 0}, "fill 0 is of letterboxed images; fit is 'crop'"),
        ({"placement": "top-left"}, "placement top-left is of letterboxed images"),
        ({"divisor": 0}, "divisor is 0"),
        ({"divisor": "255"}, "divisor is '255'"),
        ({"resize": [1, 2, 3]}, "resize is (1, 2, 3)"),
    ],
)
def test_a_builders_mistakes_are_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        preprocessing_from_fields(fields, where="python:x")
    assert str(caught.value).startswith("python:x: ") and words in str(caught.value)


def test_manifests_come_back_as_they_were_and_older_ones_are_read() -> None:
    for rule in (IMAGENET, LETTERBOX, replace(IMAGENET, resize=(300, 260)), replace(LETTERBOX, placement="top-left")):
        assert preprocessing_from_fields(rule.to_json(), where="test") == rule
        assert Preprocessing.from_json(rule.to_json()) == rule
    new = ("fill", "placement", "divisor", "stored_bits", "fit")
    older = {key: value for key, value in IMAGENET.to_json().items() if key not in new}
    assert preprocessing_from_fields(older, where="test") == IMAGENET
    with pytest.raises(UserError, match="fit is 'crop', its resize and fill are those of letterbox"):
        Preprocessing.from_json(LETTERBOX.to_json() | {"fit": "crop"})


def test_one_table_has_every_flag_and_every_key_of_the_manifest(repository: Path) -> None:
    text = (repository / "docs" / "preprocessing.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `--") or line.startswith("| `-")]
    table = "\n".join(rows)
    assert all(f"`{flag}" in table for flag in FLAGS.values())
    assert all(f"`{key}`" in table for key in IMAGENET.to_json())
