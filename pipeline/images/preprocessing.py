"""What a teacher expects of its images: the one definition that training, validation and device follow."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cached_property, lru_cache
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from calibration.errors import UserError
from pipeline.images import device_preprocess
from pipeline.images.device_preprocess import INTERPOLATIONS, OPENCV
from pipeline.images.pixel_scale import of_other_pixels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

CHANNEL_ORDERS: dict[str, int] = {"RGB": 3, "BGR": 3, "L": 1}
"""Channel order -> number of channels; L is greyscale (ITU-R 601-2 luma, Pillow's definition)."""

FITS = ("crop", "stretch", "letterbox")
"""How an image of any shape becomes one of the network's: docs/preprocessing.md."""
PLACEMENTS = ("centre", "top-left")
"""Where a letterboxed image lies in its frame."""
LETTERBOX_FILL = 114
"""Grey around a letterboxed image, 0 to 255. Source: Ultralytics' LetterBox, YOLOX."""
_LARGEST_PIXEL = 255


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From a decoded image to a network's input: resize, crop or frame, channel order, normalisation.

    A value that exists is valid; a wrong one raises `UserError`, since every value comes from a user or a
    file.
    """

    channels: int  # 1 or 3
    height: int  # of the network's input, pixels
    width: int  # of the network's input, pixels
    # Pixels before the centre crop: the shorter side, or (width, height); None: straight to height x width.
    resize: int | tuple[int, int] | None
    interpolation: str  # a key of INTERPOLATIONS, or OPENCV
    mean: tuple[float, ...]  # per channel in `channel_order`, of values in [0, 255 / divisor]
    std: tuple[float, ...]  # per channel in `channel_order`, of values in [0, 255 / divisor], above 0
    channel_order: str  # a key of CHANNEL_ORDERS
    fill: tuple[int, ...] | None = None  # 0 to 255, per channel in `channel_order`; set: images are letterboxed
    placement: str = "centre"  # of PLACEMENTS: of a letterboxed image
    divisor: float = 255  # of the 8-bit values, before mean and std
    stored_bits: int = 16  # that grey images of more than 8 bits use, 9 to 16

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("channels", "height", "width")}
        resized = self.resize if isinstance(self.resize, tuple) else (self.resize,)
        if len(resized) not in (1, 2):
            raise UserError(f"preprocessing: resize is {self.resize!r}; it must be one number, or width and height")
        for name, value in (*sizes.items(), *(("resize", value) for value in resized if self.resize is not None)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"preprocessing: {name} is {value!r}; it must be a whole number of at least 1")
        if self.interpolation not in (*INTERPOLATIONS, OPENCV):
            known = ", ".join((*INTERPOLATIONS, OPENCV))
            raise UserError(f"preprocessing: interpolation is {self.interpolation!r}; known: {known}")
        if CHANNEL_ORDERS.get(self.channel_order) != self.channels:
            raise UserError(
                f"preprocessing: {self.channels} channels in the order {self.channel_order!r}; "
                "known: RGB or BGR with 3 channels, L with 1"
            )
        self._check_frame()
        self._check_numbers()

    def _check_frame(self) -> None:
        if self.placement not in PLACEMENTS:
            raise UserError(f"preprocessing: placement is {self.placement!r}; known: {', '.join(PLACEMENTS)}")
        bits = self.stored_bits
        if not isinstance(bits, int) or isinstance(bits, bool) or not 9 <= bits <= 16:
            raise UserError(f"preprocessing: stored_bits is {bits!r}; it must be a whole number from 9 to 16")
        if self.fill is None:
            if self.placement != "centre":
                raise UserError(f"preprocessing: placement {self.placement} is of letterboxed images; set fit and fill")
            return
        if self.resize is not None:
            raise UserError(f"preprocessing: letterboxed images have no resize before a crop, {self.resize}")
        whole = isinstance(self.fill, tuple) and all(isinstance(value, int) for value in self.fill)
        if not whole or len(self.fill) != self.channels or not all(0 <= value <= _LARGEST_PIXEL for value in self.fill):
            raise UserError(
                f"preprocessing: fill is {self.fill!r}; it must be whole numbers from 0 to 255, one per channel"
            )

    def _check_numbers(self) -> None:
        if not _is_finite(self.divisor) or self.divisor <= 0:
            raise UserError(f"preprocessing: divisor is {self.divisor!r}; it must be a number above 0, such as 255")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not isinstance(values, tuple) or not all(_is_finite(value) for value in values):
                raise UserError(f"preprocessing: {name} is {values!r}; it must be finite numbers")
            if len(values) != self.channels:
                raise UserError(f"preprocessing: {name} has {len(values)} values {values} for {self.channels} channels")
        largest = _LARGEST_PIXEL / self.divisor
        if not all(0 <= value <= largest for value in self.mean):
            raise UserError(f"preprocessing: {of_other_pixels('mean', self.mean, self.std, largest=largest)}")
        if not all(value > 0 for value in self.std):
            raise UserError(f"preprocessing: std is {self.std}; every value must be above 0")
        if max(self.std) > largest:
            raise UserError(f"preprocessing: {of_other_pixels('std', self.mean, self.std, largest=largest)}")

    @property
    def fit(self) -> str:
        """How an image of any shape becomes one of the network's: a name of FITS."""
        if self.fill is not None:
            return "letterbox"
        return "stretch" if self.resize is None else "crop"

    @property
    def mirrors(self) -> bool:
        """Whether the mirror image of a prepared image is the prepared mirror image, to a pixel."""
        return self.placement == "centre"

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The manifest's object, for `pipeline.images.device_preprocess`."""
        return self.to_json()

    def to_json(self) -> dict[str, Any]:
        """Return the fields, and `fit`, as a JSON object."""
        values = {field.name: getattr(self, field.name) for field in fields(self)} | {"fit": self.fit}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Build from `to_json`'s object; keys that are newer than the object take their defaults.

        Raises:
            UserError: a field is missing, unknown or wrong.
        """
        own = {name: value for name, value in values.items() if name != "fit"}
        names = {field.name: field.default is not MISSING for field in fields(cls)}
        missing = sorted(name for name, optional in names.items() if not optional and name not in own)
        unknown = sorted(set(own) - set(names))
        if missing or unknown:
            raise UserError(f"preprocessing: missing fields {missing}, unknown fields {unknown}")
        built = cls(**{name: _plain(value) for name, value in own.items()})
        if values.get("fit", built.fit) != built.fit:
            raise UserError(f"preprocessing: fit is {values['fit']!r}, its resize and fill are those of {built.fit}")
        return built


# Far beyond any image: what is larger is a slip of the keyboard, or of a unit.
_LARGEST_SIDE = 2**20


def preprocessing_from_fields(settings: Mapping[str, Any], *, where: str) -> Preprocessing:
    """Complete some fields of a `Preprocessing`: unset ones are 224 px, RGB, ImageNet's mean and std.

    One number for mean, std or fill holds for every channel; `height` alone or `width` alone means a square. Unless
    `resize` or `fit` is given, images are first resized as `default_resize` says.

    Raises:
        UserError: a field is unknown or wrong.
    """
    names = [*(field.name for field in fields(Preprocessing)), "fit"]
    unknown = sorted(str(name) for name in set(settings) - set(names))
    if unknown:
        raise UserError(f"{where}: unknown preprocessing fields {', '.join(unknown)}; known: {', '.join(names)}")
    values = {name: _plain(value) for name, value in settings.items()}
    _check_kinds(values, where)
    values.setdefault("height", values.get("width", 224))
    values.setdefault("width", values["height"])
    if "channel_order" not in values:
        widest = max(_length(values.get("mean")), _length(values.get("std")))
        values["channel_order"] = "L" if values.get("channels", widest or 3) == 1 else "RGB"
    channels = values.setdefault("channels", CHANNEL_ORDERS.get(values["channel_order"], 3))
    divisor = values.get("divisor", 255)
    largest = _LARGEST_PIXEL / divisor if _is_finite(divisor) and divisor > 0 else 1
    for name, default in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        if name not in values:
            # A greyscale network's default is the average over ImageNet's channels.
            of_channels = default if channels == 3 else (round(sum(default) / 3, 3),)
            if values["channel_order"] == "BGR":
                of_channels = of_channels[::-1]
            values[name] = of_channels if largest == 1 else tuple(value * largest for value in of_channels)
        elif isinstance(values[name], float | int):
            values[name] = (float(values[name]),)
    values.setdefault("interpolation", "bilinear")
    try:
        _set_fit(values)
        for name in ("mean", "std", "fill"):
            if isinstance(values.get(name), tuple) and len(values[name]) == 1 and isinstance(channels, int):
                values[name] *= channels
        return Preprocessing(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _set_fit(values: dict[str, Any]) -> None:
    """Replace `fit` by the fields that say it, and complete them, in place."""
    fill = values.get("fill")
    fit = values.pop("fit", None)
    if fit is None:
        fit = "letterbox" if fill is not None else None
    elif fit not in FITS:
        raise UserError(f"preprocessing: fit is {fit!r}; known: {', '.join(FITS)}")
    default = default_resize(values["height"], values["width"])
    if fit == "letterbox":
        values["fill"] = LETTERBOX_FILL if fill is None else fill
        if isinstance(values["fill"], int):
            values["fill"] = (values["fill"],)
    elif fill is not None:
        raise UserError(f"preprocessing: fill {fill!r} is of letterboxed images; fit is {fit!r}")
    if fit in ("letterbox", "stretch"):
        if values.get("resize") is not None:
            raise UserError(f"preprocessing: resize {values['resize']!r} comes before a crop; fit is {fit!r}")
        values["resize"] = None
    elif fit == "crop" and values.get("resize") is None:
        values["resize"] = default or min(values["height"], values["width"])
    else:
        values.setdefault("resize", default)


def default_resize(height: int, width: int) -> int | None:
    """Return the shorter side, pixels, that ImageNet's evaluation resizes to before it crops, or None.

    224 of 256 pixels is the customary centre crop; networks of up to 64 px take whole images.
    """
    smaller = min(height, width)
    return round(smaller * 256 / 224) if smaller > 64 and height == width else None


def image_to_tensor(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Prepare one image of any size and mode as the device must: uint8 [C, height, width] in the network's order.

    Raises:
        ValueError: the image's mode cannot be brought to 8 bits.
    """
    return torch.from_numpy(device_preprocess.pixels_from_image(image, preprocessing.settings))


def to_channels(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Return the image in mode RGB for three channels, in mode L for one."""
    return device_preprocess.to_channels(image, preprocessing.settings)


def tensor_from_image(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Return an image in mode RGB or L as uint8 [C, H, W] in the network's channel order."""
    return torch.from_numpy(device_preprocess.channels_first(image, preprocessing.settings))


def normalise(
    images: Tensor,
    preprocessing: Preprocessing,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return (images / divisor - mean) / std of uint8 [B, C, H, W], computed in float32, on the device, as dtype.

    Raises:
        ValueError: the images are not uint8 [B, C, H, W] with the preprocessing's channels.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != preprocessing.channels:
        raise ValueError(f"uint8 [B, {preprocessing.channels}, H, W] expected, got {images.dtype} {list(images.shape)}")
    images = images.to(device=device, non_blocking=True)
    divisor, mean, std = _statistics(preprocessing, images.device)
    return images.to(torch.float32).div_(divisor).sub_(mean).div_(std).to(dtype)


@lru_cache(maxsize=8)
def _statistics(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, ...]:
    """Divisor, mean and standard deviation [1, C, 1, 1] on the device; kept, since a copy to a GPU is waited for.

    The divisor is a tensor too: by a number, a GPU multiplies by its reciprocal, which differs in the last bit.
    """
    divisors = (preprocessing.divisor,) * preprocessing.channels
    with torch.inference_mode(False):
        parts = [
            torch.tensor(values, dtype=torch.float32, device=device).reshape(1, preprocessing.channels, 1, 1)
            for values in (divisors, preprocessing.mean, preprocessing.std)
        ]
    return tuple(parts)


def _is_finite(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """A field as Python's own numbers and tuples, also where it is NumPy's or torch's."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(value) if isinstance(value, list) else value


def _check_kinds(values: Mapping[str, Any], where: str) -> None:
    """Refuse fields that are no whole number or no word, before anything is computed with them."""
    for name in ("channels", "height", "width"):
        value = values.get(name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST_SIDE:
            raise UserError(f"{where}: preprocessing: {name} is {value!r}; it must be a whole number of at least 1")
    for name in ("interpolation", "channel_order", "placement", "fit"):
        if name in values and not (isinstance(values[name], str) or (name == "fit" and values[name] is None)):
            raise UserError(f"{where}: preprocessing: {name} is {values[name]!r}; it must be a word")


def _length(value: object) -> int:
    return len(value) if isinstance(value, tuple) else 0
