"""What a user says of a network's images beside its source: parts of its preprocessing replaced or completed."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, TypedDict, Unpack

from calibration.errors import UserError
from pipeline.images.preprocessing import (
    CHANNEL_ORDERS,
    FITS,
    LETTERBOX_FILL,
    Preprocessing,
    default_resize,
    preprocessing_from_fields,
)


class Overrides(TypedDict, total=False):
    """Parts of a preprocessing; an absent one, or None, stays as the source has it."""

    image_size: int | tuple[int, int] | None  # side, or width and height, pixels
    fit: str | None  # of `pipeline.images.preprocessing.FITS`
    resize: int | tuple[int, int] | None  # shorter side, or width and height, before the crop, pixels
    crop_ratio: float | None  # side of the crop over the shorter side before it
    fill: tuple[int, ...] | None  # 0 to 255, one or one per channel
    placement: str | None  # of `pipeline.images.preprocessing.PLACEMENTS`
    interpolation: str | None
    channel_order: str | None
    divisor: float | None
    mean: tuple[float, ...] | None  # one or one per channel
    std: tuple[float, ...] | None
    stored_bits: int | None


FLAGS: dict[str, str] = {name: "--" + name.replace("_", "-") for name in Overrides.__annotations__}
"""Override -> the flag that says it."""


def with_overrides(preprocessing: Preprocessing, **overrides: Unpack[Overrides]) -> Preprocessing:
    """Replace the given parts; the resize before a crop keeps its ratio to the image size.

    Without another word images are stretched where width and height come to differ: a centre crop of them would have
    black sides.

    Raises:
        UserError: parts that cannot be, or not together.
    """
    asked: dict[str, Any] = {name: value for name, value in overrides.items() if value is not None}
    values: dict[str, Any] = {field.name: getattr(preprocessing, field.name) for field in fields(preprocessing)}
    _set_channels(values, asked)
    _set_size(values, asked)
    _set_fit(values, asked, preprocessing.fit)
    for name in ("interpolation", "divisor", "stored_bits"):
        values[name] = asked.get(name, values[name])
    for name in ("mean", "std", "fill"):
        if name in asked:
            values[name] = tuple(asked[name]) * (values["channels"] if len(asked[name]) == 1 else 1)
    return Preprocessing(**values)


def assumed_preprocessing(channels: int | None, where: str, **overrides: Unpack[Overrides]) -> Preprocessing:
    """Complete what is said of a network that carries no preprocessing; ImageNet's where nothing is.

    `channels`: of its first convolution, where that takes 1 or 3.

    Raises:
        UserError: parts that cannot be, or not together.
    """
    asked = {name: value for name, value in overrides.items() if value is not None}
    own_fields: dict[str, Any] = {
        name: asked[name] for name in ("channel_order", "divisor", "mean", "std") if name in asked
    }
    if "image_size" in asked:
        own_fields["width"], own_fields["height"] = _width_and_height(asked["image_size"])
    if channels is not None and "channel_order" not in own_fields:
        own_fields["channels"] = channels
    base = preprocessing_from_fields(own_fields, where=where)
    try:
        return with_overrides(base, **overrides)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _width_and_height(size: Any) -> tuple[int, int]:
    width, height = size if isinstance(size, tuple) else (size, size)
    if min(width, height) < 1:
        shown = width if width == height else f"{width}x{height}"
        raise UserError(f"image size {shown} px: it must be at least 1")
    return width, height


def _set_channels(values: dict[str, Any], asked: dict[str, Any]) -> None:
    order, own = asked.get("channel_order", values["channel_order"]), values["channel_order"]
    if order == own:
        return
    if CHANNEL_ORDERS.get(order) != values["channels"]:
        raise UserError(f"--channel-order {order}: the network takes {values['channels']} channels, in the order {own}")
    values["channel_order"] = order
    for name in ("mean", "std", "fill"):
        if values[name] is not None:
            values[name] = values[name][::-1]


def _set_size(values: dict[str, Any], asked: dict[str, Any]) -> None:
    if "image_size" not in asked:
        return
    width, height = _width_and_height(asked["image_size"])
    resize, ratio = values["resize"], min(width, height) / min(values["width"], values["height"])
    if width != height:
        resize = None
    elif isinstance(resize, int):
        resize = round(resize * ratio)
    elif resize is not None:
        resize = (round(resize[0] * width / values["width"]), round(resize[1] * height / values["height"]))
    values.update(width=width, height=height, resize=resize)


def _set_fit(values: dict[str, Any], asked: dict[str, Any], own: str) -> None:
    fit = asked.get("fit")
    if fit not in (None, *FITS):
        raise UserError(f"--fit {fit}: must be one of {', '.join(FITS)}")
    before = [FLAGS[name] for name in ("resize", "crop_ratio") if name in asked]
    if len(before) > 1:
        raise UserError("--resize and --crop-ratio say the same thing: give one of them")
    if before:
        if fit not in (None, "crop") or (fit is None and own == "letterbox"):
            raise UserError(f"{before[0]} comes before a crop: it needs --fit crop, not {fit or own}")
        fit = "crop"
    elif fit is None:
        fit = "letterbox" if own == "letterbox" else "crop" if values["resize"] is not None else "stretch"
    frame = [FLAGS[name] for name in ("fill", "placement") if name in asked]
    if fit == "letterbox":
        own_fill = values["fill"] or (LETTERBOX_FILL,) * values["channels"]
        values.update(resize=None, fill=own_fill, placement=asked.get("placement", values["placement"]))
        return
    if frame:
        raise UserError(f"{frame[0]} is of the frame around a letterboxed image: it needs --fit letterbox, not {fit}")
    values.update(fill=None, placement="centre")
    smaller = min(values["height"], values["width"])
    if fit == "stretch":
        values["resize"] = None
    elif "resize" in asked:
        values["resize"] = asked["resize"]
    elif "crop_ratio" in asked:
        if not 0 < asked["crop_ratio"] <= 1:
            raise UserError(f"--crop-ratio {asked['crop_ratio']}: must be above 0 and at most 1")
        values["resize"] = math.floor(smaller / asked["crop_ratio"])  # as timm's crop_pct
    elif values["resize"] is None:
        values["resize"] = default_resize(smaller, smaller) or smaller
