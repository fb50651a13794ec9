"""Any mode of Pillow brought to 8 bits, grey or RGB, in one place."""

from __future__ import annotations

import numpy as np
from PIL import Image


def plain_image(image: Image.Image) -> Image.Image:
    """Return the image in mode L or RGB with 8 bits per channel.

    Alpha is dropped, not blended, because the loaders that networks are trained and evaluated with do the
    same (torchvision's and timm's `convert("RGB")`). 16-bit greyscale keeps its high byte, as Pillow does for
    16-bit colour. CMYK, YCbCr, HSV and palettes become RGB by Pillow's conversion.

    Raises:
        ValueError: the mode has no defined conversion (floating point, 32-bit integers, LAB).
    """
    mode = image.mode
    if mode in ("L", "RGB"):
        return image
    if mode in ("1", "LA"):
        return image.convert("L")
    if mode == "La":
        return image.convert("LA").convert("L")
    if mode in ("I", "I;16", "I;16B", "I;16L", "I;16N"):
        return _high_byte(image)
    if mode in ("P", "PA", "RGBa"):
        # Straight to RGB Pillow warns about transparency in palettes, and refuses premultiplied alpha.
        return image.convert("RGBA").convert("RGB")
    if mode in ("RGBA", "RGBX", "CMYK", "YCbCr", "HSV"):
        return image.convert("RGB")
    raise ValueError(f"images of mode {mode} have no defined conversion to 8 bits; store them as 8-bit RGB or L")


def _high_byte(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.int64)
    if pixels.size and (pixels.min() < 0 or pixels.max() > 0xFFFF):
        raise ValueError("32-bit integer pixels have no defined conversion to 8 bits; store them as 8-bit L")
    return Image.fromarray((pixels >> 8).astype(np.uint8))
