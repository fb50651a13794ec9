"""Random crops and flips: what is chosen, where pixels go, and that the numbers are the generator's alone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image

from calibration.errors import UserError
from pipeline.images.augmentation import (
    ASPECT_RATIOS,
    SMALLEST_AREA,
    UNIFORMS,
    Augmentation,
    _crop_box,
    choose_augmentation,
    resized_crop,
    shift_and_flip,
    smallest_side_to_decode,
)
from pipeline.images.preprocessing import Preprocessing, image_to_tensor, preprocessing_from_fields
from pipeline.images.sources.arrays import ArraySource
from pipeline.images.sources.folder import FolderSource

ARRAY = ArraySource("x", np.zeros((2, 3, 32, 32), dtype=np.uint8))
FOLDER = FolderSource(Path(), ("1.jpg",))


def _prepared(size: int, channels: int = 3) -> Preprocessing:
    return preprocessing_from_fields({"height": size, "channels": channels}, where="test")


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("name", "source", "size", "channels", "expected"),
    [
        ("auto", ARRAY, 32, 3, ("shifted", True, "reflection")),
        ("auto", ARRAY, 8, 1, ("shifted", False, "background")),
        ("auto", ARRAY, 224, 3, ("shifted", True, "reflection")),
        ("auto", FOLDER, 224, 3, ("resized", True, "reflection")),
        ("auto", FOLDER, 32, 3, ("shifted", True, "reflection")),
        ("auto", FOLDER, 224, 1, ("resized", False, "background")),
        ("crop", FOLDER, 224, 3, ("resized", False, "reflection")),
        ("crop-flip", ARRAY, 28, 1, ("shifted", True, "background")),
        ("none", FOLDER, 224, 3, ("none", False, "reflection")),
    ],
)
def test_what_suits_the_source_is_chosen(
    name: str, source: ArraySource | FolderSource, size: int, channels: int, expected: tuple[str, bool, str]
) -> None:
    chosen = choose_augmentation(name, source, _prepared(size, channels))
    assert (chosen.crop, chosen.flip, chosen.fill) == expected


def test_unknown_augmentations_are_refused() -> None:
    with pytest.raises(UserError, match="'flip' is unknown; known: auto, crop, crop-flip, none"):
        choose_augmentation("flip", ARRAY, _prepared(32))


def _shifted(*, flip: bool, fill: Literal["reflection", "background"] = "reflection") -> Augmentation:
    return Augmentation(crop="shifted", flip=flip, fill=fill)


def test_shifts_are_windows_of_the_reflected_image() -> None:
    images = torch.randint(0, 256, (200, 3, 16, 24), dtype=torch.uint8, generator=_generator())
    moved = shift_and_flip(images, _shifted(flip=True), _generator(1))
    assert (moved.shape, moved.dtype) == (images.shape, torch.uint8)
    padded = torch.nn.functional.pad(images.double(), (3, 3, 2, 2), mode="reflect").byte()
    places = set()
    for image, window in zip(padded, moved, strict=True):
        offsets = [
            (top, left, flipped)
            for top in range(5)
            for left in range(7)
            for flipped in (False, True)
            if torch.equal(image[:, top : top + 16, left : left + 24], window.flip(2) if flipped else window)
        ]
        assert len(offsets) == 1
        places.add(offsets[0])
    assert len(places) > 60  # of 70 equally likely ones: all are reached
    assert {place[0] for place in places} == set(range(5))
    assert {place[1] for place in places} == set(range(7))


def test_without_flips_there_is_none() -> None:
    images = torch.arange(8, dtype=torch.uint8).expand(50, 1, 8, 8).contiguous()
    moved = shift_and_flip(images, _shifted(flip=False), _generator())
    assert (moved[:, 0, 0, 3] < moved[:, 0, 0, 4]).all()
    flipped = shift_and_flip(images, _shifted(flip=True), _generator())
    share = (flipped[:, 0, 0, 3] > flipped[:, 0, 0, 4]).float().mean()
    assert 0.3 < share < 0.7


def test_characters_are_continued_by_their_background() -> None:
    images = torch.full((40, 1, 8, 8), 200, dtype=torch.uint8)  # light paper
    images[:, :, 1:7, 3] = 10  # a stroke
    images[:, :, 0, 3] = 0  # that reaches the border
    moved = shift_and_flip(images, _shifted(flip=False, fill="background"), _generator())
    assert set(moved.flatten().tolist()) == {0, 10, 200}
    assert (moved.eq(0).sum(dim=(1, 2, 3)) <= 1).all()  # never a second end of the stroke


def test_the_generator_decides_alone() -> None:
    images = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8, generator=_generator())
    state = torch.get_rng_state()
    before = images.clone()
    shifted = _shifted(flip=True)
    first, second, other = (shift_and_flip(images, shifted, _generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_images_of_one_pixel_stay() -> None:
    images = torch.full((3, 1, 1, 1), 7, dtype=torch.uint8)
    assert torch.equal(shift_and_flip(images, _shifted(flip=True), _generator()), images)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (64, 64), (3000, 40), (40, 3000), (1, 1), (2, 1)])
def test_resized_crops_lie_inside_with_the_promised_area_and_shape(size: tuple[int, int]) -> None:
    width, height = size
    preprocessing = _prepared(224)
    numbers = torch.rand(300, UNIFORMS, generator=_generator(), dtype=torch.float64).tolist()
    boxes = [_crop_box(width, height, preprocessing, uniforms) for uniforms in numbers]
    for left, top, part_width, part_height in boxes:
        assert left >= 0 and top >= 0 and part_width > 0 and part_height > 0
        assert left + part_width <= width and top + part_height <= height
    if min(size) < 64:
        return
    areas = [part_width * part_height / (width * height) for _, _, part_width, part_height in boxes]
    ratios = [part_width / part_height for _, _, part_width, part_height in boxes]
    assert min(areas) > SMALLEST_AREA * 0.97 and max(areas) > 0.8
    assert np.mean(areas) < 0.75
    assert min(ratios) > ASPECT_RATIOS[0] * 0.97 and max(ratios) < ASPECT_RATIOS[1] * 1.03
    assert len({box[0] for box in boxes}) > 10 and len({box[1] for box in boxes}) > 10


def test_a_resized_crop_is_a_resized_part_of_the_image() -> None:
    rows, columns = np.mgrid[0:200, 0:250]
    image = Image.fromarray(np.stack([rows, columns, rows], axis=2).astype(np.uint8))
    preprocessing = _prepared(96)
    uniforms = [0.5] * UNIFORMS
    left, top, width, height = _crop_box(250, 200, preprocessing, uniforms)
    part = image.crop((left, top, left + width, top + height)).resize((96, 96), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.asarray(part).transpose(2, 0, 1).copy())
    crop = resized_crop(image, preprocessing, uniforms, flip=False)
    assert crop.dtype == torch.uint8
    # Pillow's filter may look beyond the box by a pixel.
    assert (crop.int() - expected.int()).abs().max() <= 1
    assert torch.equal(resized_crop(image, preprocessing, [*uniforms[:-1], 0.49], flip=True), crop.flip(2))
    assert torch.equal(resized_crop(image, preprocessing, [*uniforms[:-1], 0.51], flip=True), crop)
    assert torch.equal(resized_crop(image, preprocessing, [*uniforms[:-1], 0.49], flip=False), crop)


def test_resized_crops_have_the_networks_channels() -> None:
    image = Image.new("RGB", (50, 40), (10, 20, 30))
    bgr = preprocessing_from_fields({"height": 8, "channel_order": "BGR"}, where="test")
    assert resized_crop(image, bgr, [0.5] * UNIFORMS, flip=False)[:, 0, 0].tolist() == [30, 20, 10]
    grey = resized_crop(image, _prepared(8, 1), [0.5] * UNIFORMS, flip=False)
    assert torch.equal(grey, image_to_tensor(image, _prepared(8, 1)))


def test_the_smallest_decoded_side_still_fills_the_smallest_crop() -> None:
    side = smallest_side_to_decode(_prepared(224))
    assert side is not None
    assert side * (SMALLEST_AREA * ASPECT_RATIOS[0]) ** 0.5 >= 224
    assert side < 2.1 * 224  # and a common photograph of 500 px is decoded whole, one of 1000 px by half
    # A decoder's smaller version is antialiased, which these ways to scale are not.
    for name in ("nearest", "bilinear-opencv"):
        assert smallest_side_to_decode(preprocessing_from_fields({"interpolation": name}, where="test")) is None


def _framed(placement: str) -> Preprocessing:
    fields = {"height": 40, "width": 60, "fit": "letterbox", "placement": placement, "fill": 9}
    return preprocessing_from_fields(fields, where="test")


@pytest.mark.parametrize("placement", ["centre", "top-left"])
def test_parts_are_framed_as_whole_images_are(placement: str) -> None:
    image = Image.new("RGB", (300, 100), (200, 200, 200))
    numbers = torch.rand(50, UNIFORMS, generator=_generator(), dtype=torch.float64).tolist()
    rule = _framed(placement)
    filled = []
    for uniforms in numbers:
        crop = resized_crop(image, rule, uniforms, flip=True)
        assert set(crop.flatten().tolist()) == {9, 200}
        rows = (crop[0, :, 0] == 200).nonzero().flatten().tolist()  # the frame is above and below, never at a side
        assert (crop[0, rows] == 200).all()
        assert rows[0] == (0 if placement == "top-left" else (40 - len(rows)) // 2)
        filled.append(len(rows))
    whole = image_to_tensor(image, rule)
    assert np.mean(filled) == pytest.approx(int((whole[0, :, 0] == 200).sum()), abs=2)


def test_a_part_is_mirrored_before_it_is_framed() -> None:
    image = Image.fromarray(
        np.tile(np.arange(20, 120, dtype=np.uint8)[:, None, None], (1, 30, 3)).transpose(1, 0, 2)[:, :20]
    )
    rule = preprocessing_from_fields(
        {"height": 40, "width": 60, "fit": "letterbox", "placement": "top-left", "fill": 9}, where="test"
    )
    uniforms = [0.5] * (UNIFORMS - 1)
    plain = resized_crop(image, rule, [*uniforms, 0.9], flip=True)
    mirrored = resized_crop(image, rule, [*uniforms, 0.1], flip=True)
    width = int((plain[0, 0] != 9).sum())
    assert 0 < width < 60 and (mirrored[:, :, width:] == 9).all()
    assert (plain[:, :, :width].int() - mirrored[:, :, :width].flip(2).int()).abs().max() <= 1


def test_stretched_networks_train_on_parts_stretched_by_as_much() -> None:
    rule = preprocessing_from_fields({"height": 100, "fit": "stretch"}, where="test")
    numbers = torch.rand(200, UNIFORMS, generator=_generator(), dtype=torch.float64).tolist()
    ratios = [width / height for _, _, width, height in (_crop_box(400, 200, rule, uniforms) for uniforms in numbers)]
    assert ASPECT_RATIOS[0] * 2 * 0.97 < min(ratios) and max(ratios) < ASPECT_RATIOS[1] * 2 * 1.03
    before = preprocessing_from_fields({"height": 100, "width": 50, "resize": [60, 120]}, where="test")
    ratios = [width / height for _, _, width, height in (_crop_box(400, 200, before, uniforms) for uniforms in numbers)]
    # A crop of 50x100 from a whole stretched to 60x120 shows a part of the whole's shape.
    assert ASPECT_RATIOS[0] * 2 * 0.97 < min(ratios) and max(ratios) < ASPECT_RATIOS[1] * 2 * 1.03


def test_what_lies_at_the_top_left_of_its_frame_is_not_mirrored_with_it() -> None:
    source = ArraySource("x", np.zeros((2, 3, 40, 60), np.uint8))
    assert choose_augmentation("auto", source, _framed("centre")).flip
    assert not choose_augmentation("auto", source, _framed("top-left")).flip
    with pytest.raises(UserError, match="--augmentation crop-flip: the mirror image of one at the top left"):
        choose_augmentation("crop-flip", source, _framed("top-left"))
