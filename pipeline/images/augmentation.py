"""Random crops and flips of training images; every number is drawn from a generator that is passed in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from calibration.errors import UserError
from pipeline.images.device_preprocess import OPENCV, letterboxed, scaled
from pipeline.images.preprocessing import Preprocessing, tensor_from_image, to_channels
from pipeline.images.sources.arrays import ArraySource
from pipeline.images.sources.image_source import ImageSource

AUGMENTATIONS = ("auto", "crop", "crop-flip", "none")

SMALLEST_AREA = 0.35
"""Part of a photograph that a random resized crop keeps at least.

Training from scratch customarily goes down to 0.08, for regularisation; a student that already has the
teacher's weights needs images like the device's, of whole objects [ours].
"""
ASPECT_RATIOS = (3 / 4, 4 / 3)
"""Range of width / height of a random resized crop, relative to the network's input (Szegedy et al. 2015)."""

_ATTEMPTS = 10  # to place a crop, as in torchvision, before the largest centred one is taken
UNIFORMS = 2 * _ATTEMPTS + 3
"""Uniform numbers in [0, 1) that one random resized crop uses."""

_SMALL = 64  # pixels: images so small show one object, and a part of it may be of another class


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to training images."""

    crop: Literal["none", "shifted", "resized"]  # shifted: padded and cropped to the same size again
    flip: bool  # left-right, of every second image on average
    fill: Literal["reflection", "background"]  # what a shift brings in at the border


def choose_augmentation(name: str, source: ImageSource, preprocessing: Preprocessing) -> Augmentation:
    """Resolve `auto`, `crop`, `crop-flip` or `none` for a source and a network.

    Crops are shifts for arrays in memory and for networks of up to 64 px, random resized crops for files and
    other images of many sizes. `auto` crops, and flips unless the network is greyscale: such images are
    mostly characters or measurements, which have a left and a right.

    Raises:
        UserError: another name.
    """
    if name not in AUGMENTATIONS:
        raise UserError(f"augmentation {name!r} is unknown; known: {', '.join(AUGMENTATIONS)}")
    if name == "none":
        return Augmentation(crop="none", flip=False, fill="reflection")
    small = min(preprocessing.height, preprocessing.width) <= _SMALL
    crop: Literal["shifted", "resized"] = "shifted" if small or isinstance(source, ArraySource) else "resized"
    colour = preprocessing.channels == 3
    # A shift and a flip of a prepared image move its frame as well, which on the device lies right and below.
    mirrors = crop == "resized" or preprocessing.mirrors
    if name == "crop-flip" and not mirrors:
        raise UserError(
            "--augmentation crop-flip: the mirror image of one at the top left of its frame is none that the device"
            " sees; take --placement centre, or --augmentation crop"
        )
    return Augmentation(
        crop=crop,
        flip=name == "crop-flip" or (name == "auto" and colour and mirrors),
        fill="reflection" if colour else "background",
    )


def shift_and_flip(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Move each image of uint8 [B, C, H, W] by up to an eighth of its size, and flip every second one.

    Colour images are continued by their own reflection, greyscale ones by the median of their border. The
    black frame of training from scratch is an input that the device never sees: on CIFAR-10 it moves a
    ResNet-20's activation ranges (99.95th percentiles) by 3.7 %, reflection by 1.2 %, the mean colour by
    2.2 %. But a reflected stroke makes another character: the digits' teacher still reads 91 % of them,
    and 99.9 % with the background.
    """
    count, _, height, width = images.shape
    vertical, horizontal = height // 8, width // 8
    tops = torch.randint(0, 2 * vertical + 1, (count,), generator=generator).tolist()
    lefts = torch.randint(0, 2 * horizontal + 1, (count,), generator=generator).tolist()
    flips = (torch.rand(count, generator=generator) < 0.5).tolist()
    margins = ((0, 0), (0, 0), (vertical, vertical), (horizontal, horizontal))
    pixels = images.numpy()
    if augmentation.fill == "reflection":
        padded = np.pad(pixels, margins, mode="reflect")
    else:
        padded = np.pad(pixels, margins)
        padded[:] = _background(pixels)
        padded[:, :, vertical : vertical + height, horizontal : horizontal + width] = pixels
    moved = np.empty(images.shape, dtype=np.uint8)
    # Image by image is as fast as one gather over the batch, whose index would be as large as eight batches.
    for index, (top, left, flipped) in enumerate(zip(tops, lefts, flips, strict=True)):
        window = padded[index, :, top : top + height, left : left + width]
        moved[index] = window[:, :, ::-1] if augmentation.flip and flipped else window
    return torch.from_numpy(moved)


def _background(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The median [B, C, 1, 1] of each image's border."""
    top, bottom, left, right = pixels[:, :, 0], pixels[:, :, -1], pixels[:, :, :, 0], pixels[:, :, :, -1]
    border = np.concatenate((top, bottom, left, right), axis=2)
    median: NDArray[np.uint8] = np.median(border, axis=2).astype(np.uint8)
    return median[:, :, None, None]


def resized_crop(image: Image.Image, preprocessing: Preprocessing, uniforms: list[float], *, flip: bool) -> Tensor:
    """Cut a random part out of an image and resize it to uint8 [C, height, width].

    The part comes to the network as a whole image does on the device: stretched by as much, or in a frame as large on
    average. It is mirrored before it is framed. `uniforms` are `UNIFORMS` numbers in [0, 1), which decide everything.

    Source: Szegedy et al., Going deeper with convolutions, 2015, section 6; the procedure of torchvision's
    RandomResizedCrop.
    """
    image = to_channels(image, preprocessing)
    left, top, width, height = _crop_box(image.width, image.height, preprocessing, uniforms)
    box = (left, top, left + width, top + height)
    mirrored = flip and uniforms[-1] < 0.5
    if preprocessing.fit == "letterbox":
        part = image.crop(box)
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else part
        return tensor_from_image(letterboxed(part, preprocessing.settings), preprocessing)
    part = scaled(image, (preprocessing.width, preprocessing.height), preprocessing.settings, box)
    return tensor_from_image(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else part, preprocessing)


def smallest_side_to_decode(preprocessing: Preprocessing) -> int | None:
    """Return the shorter side, pixels, below which a random resized crop would have to enlarge.

    None where scaling is not antialiased: a decoder's smaller version is, and the device sees none.
    """
    if preprocessing.interpolation in ("nearest", OPENCV):
        return None
    # A crop of the smallest area and the most extreme shape that still fits has about this part of the side.
    return math.ceil(max(preprocessing.height, preprocessing.width) / math.sqrt(SMALLEST_AREA * ASPECT_RATIOS[0]))


def _crop_box(
    width: int, height: int, preprocessing: Preprocessing, uniforms: list[float]
) -> tuple[int, int, int, int]:
    """Return left, top, width and height, pixels, of a random part of a width x height image."""
    shape = _shape_of_part(width, height, preprocessing)
    smallest, largest = (math.log(ratio * shape) for ratio in ASPECT_RATIOS)
    for attempt in range(_ATTEMPTS):
        area = width * height * (SMALLEST_AREA + (1 - SMALLEST_AREA) * uniforms[2 * attempt])
        ratio = math.exp(smallest + (largest - smallest) * uniforms[2 * attempt + 1])
        part_width, part_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < part_width <= width and 0 < part_height <= height:
            left = int(uniforms[-3] * (width - part_width + 1))
            top = int(uniforms[-2] * (height - part_height + 1))
            return left, top, part_width, part_height
    # Very long or very high images: the largest centred part of an allowed shape.
    ratio = min(max(width / height, math.exp(smallest)), math.exp(largest))
    part_width, part_height = min(width, round(height * ratio)), min(height, round(width / ratio))
    part_width, part_height = max(part_width, 1), max(part_height, 1)
    return (width - part_width) // 2, (height - part_height) // 2, part_width, part_height


def _shape_of_part(width: int, height: int, preprocessing: Preprocessing) -> float:
    """Return width / height of the part of an image that comes to the network distorted as the whole is."""
    seen = preprocessing.width / preprocessing.height
    if preprocessing.fit == "crop" and not isinstance(preprocessing.resize, tuple):
        return seen
    whole = width / height
    if isinstance(preprocessing.resize, tuple):  # stretched, then cropped
        return whole * seen * preprocessing.resize[1] / preprocessing.resize[0]
    return whole
