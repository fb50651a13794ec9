"""Decode image files."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

from PIL import Image

from pipeline.image_modes import plain_image
from pipeline.sources.image_source import UnreadableImage

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF")
"""Pillow's decoders that are tried, whatever the file's name says; JPEG takes cameras' MPO files too."""

# What Pillow raised over 40,000 corrupted files, and what its format readers document.
READ_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

_ORIENTATION_TAG = 0x0112
_UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the stored pixels upright (EXIF 2.32, tag Orientation)."""


def decode_image(path: Path, name: str, *, at_least: int | None = None) -> Image.Image:
    """Decode a file to an upright image in mode L or RGB; of an animation the first frame.

    With `at_least` a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, its shorter side not below that many
    pixels: several times faster for photographs of many megapixels.

    Raises:
        UnreadableImage: the file is missing, truncated, damaged or no image.
    """
    try:
        # Pillow warns about damaged EXIF data and large photographs, neither of which the user need act on.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                if at_least is not None:
                    image.draft(None, (at_least, at_least))
                orientation = _orientation(image)
                image.load()
                plain = plain_image(image)
            return plain.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else plain
    except READ_ERRORS as error:
        # The system's words end with the whole path, which the name says already.
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise UnreadableImage(name, reason.replace(f" {str(path)!r}", "")) from None


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except READ_ERRORS:
        return None  # damaged EXIF data around a sound image
