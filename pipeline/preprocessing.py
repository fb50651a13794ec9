"""What a teacher expects of its images: the one definition that training, validation and device follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from calibration.errors import UserError
from pipeline.image_modes import plain_image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Of a resized image before its crop; 256 MB in Pillow. At 256 px, an image may be 1024 times as long as wide.
_MOST_PIXELS = 2**26

CHANNEL_ORDERS: dict[str, int] = {"RGB": 3, "BGR": 3, "L": 1}
"""Channel order -> number of channels; L is greyscale (ITU-R 601-2 luma, Pillow's definition)."""

INTERPOLATIONS: dict[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}
"""Name -> Pillow's filter; all but nearest are antialiased when they shrink."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From a decoded image to a network's input: resize, centre crop, channel order, normalisation.

    A value that exists is valid; a wrong one raises `UserError`, since every value comes from a user or a
    file.
    """

    channels: int  # 1 or 3
    height: int  # of the network's input, pixels
    width: int  # of the network's input, pixels
    resize: int | None  # shorter side before the centre crop, pixels; None: straight to height x width
    interpolation: str  # a key of INTERPOLATIONS
    mean: tuple[float, ...]  # per channel in `channel_order`, of values in [0, 1]
    std: tuple[float, ...]  # per channel in `channel_order`, of values in [0, 1], above 0
    channel_order: str  # a key of CHANNEL_ORDERS

    def __post_init__(self) -> None:
        for name in ("channels", "height", "width", "resize"):
            value = getattr(self, name)
            if name == "resize" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"preprocessing: {name} is {value!r}; it must be a whole number of at least 1")
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise UserError(f"preprocessing: interpolation is {self.interpolation!r}; known: {known}")
        if CHANNEL_ORDERS.get(self.channel_order) != self.channels:
            raise UserError(
                f"preprocessing: {self.channels} channels in the order {self.channel_order!r}; "
                "known: RGB or BGR with 3 channels, L with 1"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not isinstance(values, tuple) or not all(_is_finite(value) for value in values):
                raise UserError(f"preprocessing: {name} is {values!r}; it must be finite numbers")
            if len(values) != self.channels:
                raise UserError(f"preprocessing: {name} has {len(values)} values {values} for {self.channels} channels")
        if not all(0 <= value <= 1 for value in self.mean):
            raise UserError(f"preprocessing: mean {self.mean} is not of values in [0, 1]; divide it by 255")
        if not all(value > 0 for value in self.std):
            raise UserError(f"preprocessing: std is {self.std}; every value must be above 0")

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_json`'s object.

        Raises:
            UserError: a field is missing, unknown or wrong.
        """
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            missing, unknown = sorted(names - set(values)), sorted(set(values) - names)
            raise UserError(f"preprocessing: missing fields {missing}, unknown fields {unknown}")
        return cls(**{name: _tuple_if_list(value) for name, value in values.items()})


def preprocessing_from_fields(given: Mapping[str, Any], *, where: str) -> Preprocessing:
    """Complete some fields of a `Preprocessing`: unset ones are 224 px, RGB, ImageNet's mean and std.

    One number for mean or std holds for every channel; `height` alone or `width` alone means a square. Unless
    `resize` is given, images are first resized as `default_resize` says.

    Raises:
        UserError: a field is unknown or wrong.
    """
    names = [field.name for field in fields(Preprocessing)]
    unknown = sorted(str(name) for name in set(given) - set(names))
    if unknown:
        raise UserError(f"{where}: unknown preprocessing fields {', '.join(unknown)}; known: {', '.join(names)}")
    values = {name: _tuple_if_list(value) for name, value in given.items()}
    values.setdefault("height", values.get("width", 224))
    values.setdefault("width", values["height"])
    if "channel_order" not in values:
        widest = max(_length(values.get("mean")), _length(values.get("std")))
        values["channel_order"] = "L" if values.get("channels", widest or 3) == 1 else "RGB"
    channels = values.setdefault("channels", CHANNEL_ORDERS.get(values["channel_order"], 3))
    for name, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        if name not in values:
            # A greyscale network's default is the average over ImageNet's channels.
            values[name] = default if channels == 3 else (round(sum(default) / 3, 3),)
            if values["channel_order"] == "BGR":
                values[name] = default[::-1]
        elif isinstance(values[name], float | int):
            values[name] = (float(values[name]),)
        if isinstance(values[name], tuple) and len(values[name]) == 1 and isinstance(channels, int):
            values[name] *= channels
    values.setdefault("interpolation", "bilinear")
    if "resize" not in values:
        values["resize"] = default_resize(values["height"], values["width"])
    try:
        return Preprocessing(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def default_resize(height: int, width: int) -> int | None:
    """Return the shorter side, pixels, that ImageNet's evaluation resizes to before it crops, or None.

    224 of 256 pixels is the customary centre crop; networks of up to 64 px take whole images.
    """
    smaller = min(height, width)
    return round(smaller * 256 / 224) if smaller > 64 and height == width else None


def with_overrides(
    preprocessing: Preprocessing,
    *,
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Preprocessing:
    """Replace the given parts; the resize before the crop keeps its ratio to the image size."""
    changed = preprocessing
    if image_size is not None:
        if image_size < 1:
            raise UserError(f"image size {image_size} px: it must be at least 1")
        resize = preprocessing.resize
        if resize is not None:
            resize = round(resize * image_size / min(preprocessing.height, preprocessing.width))
        changed = replace(changed, height=image_size, width=image_size, resize=resize)
    if mean is not None:
        changed = replace(changed, mean=_per_channel(mean, changed.channels))
    if std is not None:
        changed = replace(changed, std=_per_channel(std, changed.channels))
    return changed


def image_to_tensor(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Prepare one image as the device must: return uint8 [C, height, width] in the network's channel order.

    Any size and any mode of Pillow is taken. The same bytes as torchvision's Resize (antialiased) and
    CenterCrop of the Pillow image, including the black frame where a crop is larger than the resized image.

    Raises:
        ValueError: the image's mode cannot be brought to 8 bits.
    """
    image = to_channels(image, preprocessing)
    size = resized_size(image.width, image.height, preprocessing)
    if size != image.size:
        image = _resized(image, size, preprocessing)
    return tensor_from_image(_centre_crop(image, preprocessing.height, preprocessing.width), preprocessing)


def to_channels(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Return the image in mode RGB for three channels, in mode L for one."""
    mode = "RGB" if preprocessing.channels == 3 else "L"
    image = plain_image(image)
    return image if image.mode == mode else image.convert(mode)


def resized_size(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return (width, height), pixels, that an image of width x height is resized to before the crop."""
    if preprocessing.resize is None:
        return preprocessing.width, preprocessing.height
    shorter, longer = sorted((width, height))
    # Truncated, not rounded, as torchvision does.
    other = int(preprocessing.resize * longer / shorter)
    return (preprocessing.resize, other) if width <= height else (other, preprocessing.resize)


def tensor_from_image(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Return an image in mode RGB or L as uint8 [C, H, W] in the network's channel order."""
    pixels = np.array(image)
    if pixels.ndim == 2:
        return torch.from_numpy(pixels[None])
    if preprocessing.channel_order == "BGR":
        pixels = pixels[:, :, ::-1]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def normalise(
    images: Tensor,
    preprocessing: Preprocessing,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return (images / 255 - mean) / std of uint8 [B, C, H, W], computed in float32, on the device, as dtype.

    Raises:
        ValueError: the images are not uint8 [B, C, H, W] with the preprocessing's channels.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != preprocessing.channels:
        raise ValueError(f"uint8 [B, {preprocessing.channels}, H, W] expected, got {images.dtype} {list(images.shape)}")
    images = images.to(device=device, non_blocking=True)
    mean, std = _statistics(preprocessing, images.device)
    return images.to(torch.float32).div_(255).sub_(mean).div_(std).to(dtype)


@lru_cache(maxsize=8)
def _statistics(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [1, C, 1, 1] on the device; kept, since a copy to a GPU is waited for."""
    shape = (1, preprocessing.channels, 1, 1)
    with torch.inference_mode(False):
        mean = torch.tensor(preprocessing.mean, dtype=torch.float32, device=device)
        std = torch.tensor(preprocessing.std, dtype=torch.float32, device=device)
        return mean.reshape(shape), std.reshape(shape)


def _resized(image: Image.Image, size: tuple[int, int], preprocessing: Preprocessing) -> Image.Image:
    interpolation = INTERPOLATIONS[preprocessing.interpolation]
    width, height = size
    if width * height <= _MOST_PIXELS:
        return image.resize(size, interpolation)
    # A strip thousands of times longer than wide: only the middle, which the crop looks at, is made.
    keep = (min(width, 4 * preprocessing.width), min(height, 4 * preprocessing.height))
    part = (image.width * keep[0] / width, image.height * keep[1] / height)
    left, top = (image.width - part[0]) / 2, (image.height - part[1]) / 2
    return image.resize(keep, interpolation, box=(left, top, left + part[0], top + part[1]))


def _centre_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.size == (width, height):
        return image
    # A crop larger than the image is centred on black, the odd pixel at the right and at the bottom;
    # otherwise Python's rounding of ties to even decides, as in torchvision.
    left = round((image.width - width) / 2) if image.width >= width else -((width - image.width) // 2)
    top = round((image.height - height) / 2) if image.height >= height else -((height - image.height) // 2)
    return image.crop((left, top, left + width, top + height))


def _is_finite(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return tuple(values) * (channels if len(values) == 1 else 1)


def _tuple_if_list(value: object) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _length(value: object) -> int:
    return len(value) if isinstance(value, tuple) else 0
