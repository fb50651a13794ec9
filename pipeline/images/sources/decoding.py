"""Decode image files: the device's own way, with an error that a run can go on from."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image

from pipeline.images import device_preprocess
from pipeline.images.device_preprocess import READ_ERRORS, checked_file, decodable_formats
from pipeline.images.sources.image_source import UnreadableImage

__all__ = ["READ_ERRORS", "decode_image", "frame_count"]

_SEVERAL_FRAMES = ("GIF", "TIFF", "WEBP", "PNG", "AVIF")


def decode_image(path: Path, name: str, *, at_least: int | None = None) -> Image.Image:
    """Decode a file to an upright image in mode L, RGB or I;16, as `pipeline.images.device_preprocess.decode` does.

    Raises:
        UnreadableImage: the file is missing, truncated, damaged or no image.
    """
    try:
        return device_preprocess.decode(path, at_least=at_least)
    except READ_ERRORS as error:
        # The system's words end with the whole path, which the name says already.
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise UnreadableImage(name, reason.replace(f" {str(path)!r}", "")) from None


def frame_count(path: Path) -> int:
    """Return how many frames or pages a file has; 1 where it cannot be read or its kind has no frames of equal rank."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(checked_file(path), formats=decodable_formats()) as image:
                return int(getattr(image, "n_frames", 1)) if image.format in _SEVERAL_FRAMES else 1
    except READ_ERRORS:
        return 1
