"""What the network's images must look like, where its source does not say it or the user knows better."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter, Token

from calibration.errors import UserError
from pipeline.config import flags
from pipeline.images.pixel_scale import WHITE, of_other_pixels


def _numbers(help: str) -> Parameter:
    return Parameter(converter=flags.split_numbers, consume_multiple=True, negative=(), metavar="R,G,B", help=help)


def _size(kind: Any, tokens: Sequence[Token]) -> int | str:
    text = tokens[0].value
    return int(text) if re.fullmatch(r"[+-]?[0-9]+", text) else text


@dataclass(frozen=True, kw_only=True)
class PreprocessingConfig:
    """From an image to the network's input: what is set here replaces the source's own."""

    image_size: Annotated[
        int | str | None,
        Parameter(
            converter=_size,
            metavar="WIDTHxHEIGHT",
            help="Input size, pixels: 640x384 is 640 wide and 384 high, 224 is 224x224. Default: the source's own, "
            "else 224.",
        ),
    ] = None
    fit: Annotated[
        Literal["crop", "stretch", "letterbox"] | None,
        Parameter(
            help="How an image of another shape becomes the input: crop (resized to --resize, the centre cut out), "
            "stretch (to the input's size, whatever the shape), letterbox (scaled as a whole, the rest filled). "
            "Default: the source's own, else crop of square inputs above 64 px, stretch of others."
        ),
    ] = None
    resize: Annotated[
        int | str | None,
        Parameter(
            converter=_size,
            metavar="PIXELS",
            help="Before the crop: the image's shorter side, pixels, or WIDTHxHEIGHT it is stretched to. Default: the "
            "source's own, else 8/7 of the input.",
        ),
    ] = None
    crop_ratio: Annotated[
        float | None,
        Parameter(metavar="RATIO", help="In place of --resize: the input's side over the shorter side, such as 0.875."),
    ] = None
    fill: Annotated[
        tuple[int, ...] | None,
        Parameter(
            converter=flags.split_whole_numbers,
            consume_multiple=True,
            negative=(),
            metavar="R,G,B",
            help="What a letterbox is filled with, 0 to 255, one number or one per channel. Default: 114.",
        ),
    ] = None
    placement: Annotated[
        Literal["centre", "top-left"] | None,
        Parameter(help="Where the image lies in a letterbox. Default: centre, an odd pixel right or below."),
    ] = None
    interpolation: Annotated[
        Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming", "bilinear-opencv"] | None,
        Parameter(
            help="Pillow's filter of the resize, antialiased but for nearest; bilinear-opencv: that of cv2.resize, not "
            "antialiased. Default: the source's own, else bilinear."
        ),
    ] = None
    channel_order: Annotated[
        Literal["RGB", "BGR", "L"] | None,
        Parameter(
            help="Order of the input's channels, and of --mean, --std and --fill; L: grey. Default: the source's own, "
            "else RGB, or L of a network with one channel."
        ),
    ] = None
    divisor: Annotated[
        float | None,
        Parameter(
            metavar="NUMBER",
            help="What the 8-bit values are divided by before --mean and --std: 255 (values in [0, 1], the default), "
            "or 1 (they stay 0 to 255, as are --mean and --std then).",
        ),
    ] = None
    mean: Annotated[
        tuple[float, ...] | None,
        _numbers(
            "Mean per channel of the divided values, in [0, 1] unless --divisor says otherwise. Default: the source's "
            "own, else ImageNet's."
        ),
    ] = None
    std: Annotated[
        tuple[float, ...] | None,
        _numbers("Standard deviation per channel of the same values. Default: as for --mean."),
    ] = None
    stored_bits: Annotated[
        int | None,
        Parameter(
            metavar="BITS",
            help="Bits that grey images of more than 8 use, such as 12 of a camera's 16; 8 of them are kept. "
            "Default: 16.",
        ),
    ] = None

    def __post_init__(self) -> None:
        flags.check_fields(self)
        for flag in ("image_size", "resize"):
            _width_and_height(getattr(self, flag), flag.replace("_", "-"))
        flags.check_above_zero(self, "crop_ratio", "divisor")
        if self.crop_ratio is not None and self.crop_ratio > 1:
            raise UserError(f"--crop-ratio {self.crop_ratio}: must be at most 1, the input's side over the image's")
        if self.resize is not None and self.crop_ratio is not None:
            raise UserError("--resize and --crop-ratio say the same thing: give one of them")
        before = "resize" if self.resize is not None else "crop-ratio" if self.crop_ratio is not None else None
        if before is not None and self.fit not in (None, "crop"):
            raise UserError(f"--{before} comes before a crop: it needs --fit crop, not {self.fit}")
        frame = "fill" if self.fill is not None else "placement" if self.placement is not None else None
        if frame is not None and self.fit in ("crop", "stretch"):
            raise UserError(f"--{frame} is of the frame around a letterboxed image: it needs --fit letterbox")
        if self.fill is not None and not all(0 <= value <= 255 for value in self.fill):
            raise UserError(f"--fill {flags.as_typed(self.fill)}: must be whole numbers from 0 to 255")
        if self.stored_bits is not None and not 9 <= self.stored_bits <= 16:
            raise UserError(f"--stored-bits {self.stored_bits}: must be from 9 to 16")
        if self.divisor is not None and self.mean is None:
            raise UserError(f"--divisor {self.divisor:g} needs --mean and --std, which are of what the division leaves")
        self._check_statistics()

    def _check_statistics(self) -> None:
        if (self.mean is None) != (self.std is None):
            flag, other = ("mean", "std") if self.std is None else ("std", "mean")
            raise UserError(f"--{flag} {flags.as_typed(getattr(self, flag))} needs --{other} with as many numbers")
        for flag, values in (("mean", self.mean), ("std", self.std), ("fill", self.fill)):
            if values is not None and len(values) not in (1, 3):
                raise UserError(f"--{flag} {flags.as_typed(values)}: must be 1 or 3 numbers, one per channel")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise UserError(f"--mean has {len(self.mean)} numbers and --std {len(self.std)}: give as many of each")
        largest = WHITE / (self.divisor or WHITE)
        if self.mean is not None and self.std is not None and max(*self.mean, *self.std) > largest:
            name = "mean" if max(self.mean) > largest else "std"
            raise UserError(f"--{of_other_pixels(name, self.mean, self.std, largest=largest)}")
        if self.std is not None and min(self.std) <= 0:
            raise UserError(f"--std {flags.as_typed(self.std)}: every number must be greater than 0")

    def overrides(self) -> dict[str, Any]:
        """Return what is set, as `pipeline.images.preprocessing_overrides.Overrides` has it."""
        values = {flag.field: getattr(self, flag.field) for flag in flags.flags(type(self)).values()}
        for flag in ("image_size", "resize"):
            values[flag] = _width_and_height(values[flag], flag)
        return values


def _width_and_height(size: int | str | None, flag: str) -> int | tuple[int, int] | None:
    """Read a side, or WIDTHxHEIGHT."""
    if isinstance(size, str):
        match = re.fullmatch(r"([0-9]+)[xX*]([0-9]+)", size)
        if match is None or not int(match[1]) or not int(match[2]):
            raise UserError(
                f"--{flag} {size!r}: must be pixels, such as 224, or WIDTHxHEIGHT, such as 640x384 (640 wide, 384 high)"
            )
        return int(match[1]), int(match[2])
    if size is not None and size < 1:
        raise UserError(f"--{flag} {size}: must be 1 or more")
    return size
