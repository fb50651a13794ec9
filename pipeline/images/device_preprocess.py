"""From image files to the network's input, exactly as the run did it; needs numpy and Pillow only.

Every bundle holds a copy of this file as preprocess.py, beside the manifest whose "preprocessing" it follows:

    from preprocess import load
    inputs = load(["a.jpg", "b.png"])  # float32 [2, channels, height, width]

or python preprocess.py IMAGE... --output inputs.npz. The run prepares its own images by the same lines.
"""

from __future__ import annotations

import sys

if __name__ == "__main__" and not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    del sys.path[0]  # the bundle's folder: a numpy.py that lies there would be run instead of NumPy
import argparse
import hashlib
import json
import os
import re
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

try:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
except ModuleNotFoundError as error:
    line = f"preprocess.py needs NumPy, and Pillow to decode images ({error}): pip install numpy pillow"
    if __name__ != "__main__":
        raise ModuleNotFoundError(line, name=error.name) from None
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2) from None

SUFFIXES_OF_FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "PNG": (".png", ".apng"), "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",), "GIF": (".gif",), "TIFF": (".tif", ".tiff"), "AVIF": (".avif",), "TGA": (".tga",),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"), "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"), "PCX": (".pcx",), "QOI": (".qoi",), "PSD": (".psd",),
}  # fmt: skip
"""Pillow's decoders of pictures and the names of their files (MPO is JPEG); not EPS, which runs a program, nor WMF."""

# What Pillow raised over corrupted files of every format, and what its format readers document.
_COMMON_ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, OverflowError)
READ_ERRORS = (*_COMMON_ERRORS, RuntimeError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError)

INTERPOLATIONS: dict[str, Image.Resampling] = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
}
"""Name -> Pillow's filter; all but nearest are antialiased when they shrink."""
OPENCV = "bilinear-opencv"
"""Name of what cv2.resize does unless told otherwise (INTER_LINEAR), which is not antialiased."""
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of grey with more than 8 bits
_Box = tuple[float, float, float, float]  # left, top, right, bottom
# Of a resized image before its crop; 256 MB in Pillow. At 256 px, an image may be 1024 times as long as wide.
_MOST_PIXELS = 2**26
_TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
_UPRIGHT = {number: Image.Transpose[name] for number, name in enumerate(_TURNS.split(), start=2)}


def load(images: Any, bundle: Path | str | None = None) -> NDArray[np.float32]:
    """Return the network's input float32 [N, channels, height, width] for one image or a sequence of them.

    An image is a file's path, a Pillow image, or a uint8 array [H, W], [H, W, C] or [C, H, W] in RGB; one uint8 array
    [N, C, H, W] or [N, H, W, C] is N images. `bundle` is the folder of the manifest; by default that of this file.
    Raises OSError or ValueError, which names the image, where one cannot be decoded or is none.
    """
    settings = read_settings(Path(bundle) if bundle is not None else Path(__file__).resolve().parent)
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return normalised(pixels_from_array(images, settings), settings)
    several = [images] if isinstance(images, str | Path | Image.Image | np.ndarray) else list(images)
    if not several:
        raise ValueError("no images to prepare")
    return normalised(np.stack([_pixels(image, settings) for image in several]), settings)


def read_settings(bundle: Path) -> Mapping[str, Any]:
    """Return what a bundle's manifest says of preprocessing; ValueError where it is none, or not as it was written."""
    path = bundle / "manifest.json"
    try:
        tree = json.loads(path.read_bytes() if path.is_file() else b"")
        said = json.dumps({key: tree[key] for key in tree if key != "sha256"}, sort_keys=True).encode()
        if tree["format"] != 2 and tree["sha256"] != hashlib.sha256(said).hexdigest():  # older ones have no hash
            raise ValueError("its own SHA-256 differs")
        return dict(tree["preprocessing"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}): copy the bundle anew") from error


def decode(path: Path, *, at_least: int | None = None) -> Image.Image:
    """Decode a file to an upright image in mode L, RGB or I;16; of several frames the first.

    With `at_least` a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, its shorter side not below that many pixels.
    Raises one of READ_ERRORS where the file is missing, truncated, damaged or no image.
    """
    # Pillow warns about damaged EXIF data and large photographs, neither of which the user need act on.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(checked_file(path), formats=decodable_formats()) as image:
            if at_least is not None:
                image.draft(None, (at_least, at_least))
            orientation = _orientation(image)
            image.load()
            shown = _deep(image) if image.mode in DEEP_MODES else plain_image(image)
        return shown.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else shown


def checked_file(path: Path) -> Path:
    """Return a path of a regular file, or of none; raise OSError for a pipe or a device, which may never end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("is no regular file")
    return path


@lru_cache(maxsize=1)
def decodable_formats() -> tuple[str, ...]:
    """Return the formats that this machine's Pillow can decode, whatever a file's name says."""
    Image.init()
    return tuple(name for name in SUFFIXES_OF_FORMATS if name in Image.OPEN)


def image_suffixes() -> tuple[str, ...]:
    """Return the endings of file names that are taken for images here, in small letters."""
    return tuple(suffix for name in decodable_formats() for suffix in SUFFIXES_OF_FORMATS[name])


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(0x0112)  # Orientation, EXIF 2.32
    except READ_ERRORS:
        return None  # damaged EXIF data around a sound image


def plain_image(image: Image.Image, stored_bits: int = 16) -> Image.Image:
    """Return the image in mode L or RGB with 8 bits per channel.

    Alpha is dropped, not blended, as torchvision's and timm's loaders do (`convert("RGB")`). Grey of more than 8 bits
    keeps the upper 8 of its `stored_bits`, as Pillow does for 16-bit colour; what lies above is white.
    Raises ValueError for a mode without a defined conversion (floating point, 32-bit integers, LAB).
    """
    mode = image.mode
    if mode in ("L", "RGB"):
        return image
    if mode in ("1", "LA", "La"):
        return (image.convert("LA") if mode == "La" else image).convert("L")
    if mode in DEEP_MODES:
        pixels = np.asarray(_deep(image)) >> (stored_bits - 8)
        return Image.fromarray(np.minimum(pixels, 255).astype(np.uint8))
    if mode in ("RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "P", "PA", "RGBa"):
        # Straight to RGB Pillow warns about transparency in palettes, and refuses premultiplied alpha.
        return (image.convert("RGBA") if mode in ("P", "PA", "RGBa") else image).convert("RGB")
    raise ValueError(f"images of mode {mode} have no defined conversion to 8 bits; store them as 8-bit RGB or L")


def _deep(image: Image.Image) -> Image.Image:
    """Return grey of more than 8 bits in mode I;16."""
    if image.mode == "I;16":
        return image
    pixels = np.asarray(image).astype(np.int64)
    if pixels.size and (pixels.min() < 0 or pixels.max() > 0xFFFF):
        raise ValueError("32-bit integer pixels have no defined conversion to 8 bits; store them as 8-bit L")
    return Image.fromarray(pixels.astype(np.uint16))


def pixels_from_image(image: Image.Image, settings: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Prepare one image of any size and mode: uint8 [C, height, width] in the network's channel order.

    Resized and cropped, these are the bytes of torchvision's Resize (antialiased) and CenterCrop of the Pillow image,
    including the black frame where a crop is larger than the resized image. Raises ValueError as `plain_image` does.
    """
    image = to_channels(image, settings)
    if settings.get("fill") is not None:
        return channels_first(letterboxed(image, settings), settings)
    size = resized_size(image.width, image.height, settings)
    image = image if size == image.size else _resized(image, size, settings)
    return channels_first(_centre_crop(image, settings["height"], settings["width"]), settings)


def to_channels(image: Image.Image, settings: Mapping[str, Any]) -> Image.Image:
    """Return the image in mode RGB for three channels, in mode L for one."""
    mode, image = "RGB" if settings["channels"] == 3 else "L", plain_image(image, settings.get("stored_bits", 16))
    return image if image.mode == mode else image.convert(mode)


def resized_size(width: int, height: int, settings: Mapping[str, Any]) -> tuple[int, int]:
    """Return (width, height), pixels, that an image of width x height is resized to before the crop."""
    if not isinstance(resize := settings["resize"] or (settings["width"], settings["height"]), int):
        return resize[0], resize[1]
    shorter, longer = sorted((width, height))
    other = int(resize * longer / shorter)  # truncated, not rounded, as torchvision does
    return (resize, other) if width <= height else (other, resize)


def letterboxed(image: Image.Image, settings: Mapping[str, Any]) -> Image.Image:
    """Scale a whole image into width x height, keeping its shape, and fill the rest; mode RGB or L.

    Source: the sizes and the placement of Ultralytics' LetterBox (an odd pixel goes to the right and the bottom).
    """
    width, height = settings["width"], settings["height"]
    ratio = min(height / image.height, width / image.width)
    inner = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
    image = image if inner == image.size else scaled(image, inner, settings)
    left, top = ((width - inner[0]) // 2, (height - inner[1]) // 2) if settings["placement"] == "centre" else (0, 0)
    fill = tuple(settings["fill"])[:: -1 if settings["channel_order"] == "BGR" else 1]
    canvas = Image.new(image.mode, (width, height), fill if len(fill) > 1 else fill[0])
    canvas.paste(image, (left, top))
    return canvas


def channels_first(image: Image.Image, settings: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return an image in mode RGB or L as uint8 [C, H, W] in the network's channel order."""
    pixels = np.array(image).reshape(image.height, image.width, -1)
    return np.ascontiguousarray(pixels[:, :, :: -1 if settings["channel_order"] == "BGR" else 1].transpose(2, 0, 1))


def _resized(image: Image.Image, size: tuple[int, int], settings: Mapping[str, Any]) -> Image.Image:
    width, height = size
    if width * height <= _MOST_PIXELS:
        return scaled(image, size, settings)
    # A strip thousands of times longer than wide: only the middle, which the crop looks at, is made.
    keep = (min(width, 4 * settings["width"]), min(height, 4 * settings["height"]))
    part = (image.width * keep[0] / width, image.height * keep[1] / height)
    left, top = (image.width - part[0]) / 2, (image.height - part[1]) / 2
    return scaled(image, keep, settings, (left, top, left + part[0], top + part[1]))


def scaled(
    image: Image.Image, size: tuple[int, int], settings: Mapping[str, Any], box: _Box | None = None
) -> Image.Image:
    """Scale an image in mode L or RGB, or what of it lies in left, top, right, bottom, to (width, height).

    Source of OpenCV's: its resize.cpp, weights of 11 bits, products shifted one by one; equal to 4.12's and 5.0's.
    """
    if settings["interpolation"] != OPENCV:
        return image.resize(size, INTERPOLATIONS[settings["interpolation"]], box=box)
    part = image if box is None else image.crop(box)
    pixels = np.asarray(part).reshape(part.height, part.width, -1)
    columns, across = _neighbours(part.width, size[0], at_edges=0)
    total = np.full((size[1], size[0], pixels.shape[2]), 2, np.int32)
    for row, weight in zip(*_neighbours(part.height, size[1]), strict=True):
        left, right = (pixels[row][:, column].astype(np.int32) for column in columns)
        total += ((left * across[0][:, None] + right * across[1][:, None]) >> 4) * weight[:, None, None] >> 16
    return Image.fromarray((total >> 2).astype(np.uint8).reshape(*total.shape[:2], *np.asarray(part).shape[2:]))


def _neighbours(stored: int, size: int, at_edges: float | None = None) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the two stored pixels [2, size] that each pixel lies between, and their shares of 2048 [2, size]."""
    place = ((np.arange(size) + 0.5) * (stored / size) - 0.5).astype(np.float32)
    first = np.floor(place).astype(np.int64)
    share = place - first.astype(np.float32)
    if at_edges is not None:
        share[(first < 0) | (first >= stored - 1)] = at_edges
    shares = np.rint(np.stack([1 - share, share]) * np.float32(2048)).astype(np.int32)
    return np.clip(np.stack([first, first + 1]), 0, stored - 1), shares


def _centre_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    # As torchvision: a larger crop is centred on black, the odd pixel right and below; else ties are rounded to even.
    left = round((image.width - width) / 2) if image.width >= width else -((width - image.width) // 2)
    top = round((image.height - height) / 2) if image.height >= height else -((height - image.height) // 2)
    return image.crop((left, top, left + width, top + height))


def image_from_array(array: NDArray[Any]) -> Image.Image:
    """Return uint8 [C, H, W], [H, W, C] or [H, W] in RGB as a Pillow image; ValueError where it is something else."""
    expected, shape = "an image is a uint8 array [C, H, W], [H, W, C] or [H, W]", array.shape
    if array.dtype != np.uint8:
        raise ValueError(f"{array.dtype} {list(array.shape)}: {expected}")
    if array.ndim == 2 and array.size:
        return Image.fromarray(np.ascontiguousarray(array))
    if array.ndim != 3 or not array.size or (shape[0] in (1, 3)) == (shape[2] in (1, 3)):
        raise ValueError(f"{list(shape)} has no axis or two axes of 1 or 3 channels; {expected}")
    if shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array))


def pixels_from_array(images: NDArray[Any], settings: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Prepare uint8 [N, C, H, W] or [N, H, W, C] in RGB: uint8 [N, C, height, width] in the network's channel order.

    Images of the network's own size are taken as prepared by their owner: only their channels are put right.
    """
    if images.ndim == 4 and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"{images.dtype} {list(images.shape)}: images are uint8 [N, C, H, W] or [N, H, W, C], C: 1, 3")
    if images.shape[2:] != (settings["height"], settings["width"]):
        return np.stack([pixels_from_image(image_from_array(image), settings) for image in images])
    if images.shape[1] == 3 and settings["channels"] == 1:
        images = _luma(images)
    elif images.shape[1] == 1 and settings["channels"] == 3:
        images = np.repeat(images, 3, axis=1)
    if settings["channel_order"] == "BGR":
        images = images[:, ::-1]
    return np.ascontiguousarray(images)


def _luma(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB [B, 3, H, W] to grey [B, 1, H, W] with Pillow's integer weights (ITU-R 601-2, scaled by 65536)."""
    red, green, blue = (pixels[:, channel].astype(np.uint32) for channel in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)[:, None]


def normalised(pixels: NDArray[np.uint8], settings: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return (pixels / divisor - mean) / std of uint8 [N, C, H, W], computed in float32."""
    mean, std = (np.array(settings[key], np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    scaled = pixels.astype(np.float32) / np.float32(settings.get("divisor", 255))
    return np.asarray((scaled - mean) / std, np.float32)


def image_files(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of images below a folder, at any depth, in natural order (img2 before img10), and other files'.

    Links are followed; names that begin with a dot are skipped. Raises OSError where a folder cannot be listed.
    """
    suffixes, files = image_suffixes(), sorted(_files(folder), key=_natural_key)
    images = tuple(name for name in files if name.lower().endswith(suffixes))
    return images, tuple(name for name in files if not name.lower().endswith(suffixes))


def _files(root: Path) -> Iterator[str]:
    def stop(error: OSError) -> None:
        raise error

    seen: set[tuple[int, int]] = set()  # Links are followed, as data sets are often made of them: a loop ends here.
    for folder, subfolders, names in os.walk(root, onerror=stop, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (os.path.relpath(os.path.join(folder, name), root) for name in names if not name.startswith("."))


def _natural_key(file: str) -> tuple[list[list[str | int]], str]:
    # Splitting at digits puts text at even and numbers at odd places, so that like compares with like.
    parts = [re.split(r"([0-9]+)", part.casefold()) for part in file.split(os.sep)]
    return [[int(text) if place % 2 else text for place, text in enumerate(part)] for part in parts], file


def _pixels(image: Any, settings: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Prepare one image of any kind that `load` takes."""
    image = image_from_array(image) if isinstance(image, np.ndarray) else image
    if isinstance(image, Image.Image):
        return pixels_from_image(image, settings)
    try:
        return pixels_from_image(decode(Path(image)), settings)
    except READ_ERRORS as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise ValueError(f"{image} cannot be read as an image: {reason}") from error


def main(arguments: Sequence[str]) -> int:
    """Prepare the images that a command line names and write them to an npz file; return the exit status."""
    what = "Prepare images as the run did. Exit status: 0 all, 1 without those that cannot be read, 2 a mistake."
    parser = argparse.ArgumentParser(prog="preprocess.py", description=what)
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image file, or folder of them (at any depth)")
    add("--output", required=True, type=Path, metavar="FILE.npz", help="inputs float32 [N, C, H, W], names [N]")
    add("--bundle", type=Path, default=None, metavar="DIR", help="folder of manifest.json; default: where this lies")
    options = parser.parse_args(list(arguments))
    temporary = options.output.with_name(f".{options.output.name}.part")
    try:
        settings = read_settings(options.bundle or Path(__file__).resolve().parent)
        folders = [(path, image_files(path)[0] if path.is_dir() else ("",)) for path in map(Path, options.images)]
        files, names = [path / file for path, inside in folders for file in inside], list[str]()
        with tempfile.TemporaryFile(dir=options.output.parent) as rows:  # of any number: one is in memory at a time
            for file in files:
                try:
                    pixels = _pixels(file, settings)
                    rows.write(normalised(pixels[None], settings).tobytes())
                    names.append(str(file))
                except ValueError as error:
                    print(repr(f"left out: {error}")[1:-1], file=sys.stderr)  # shown, never obeyed by the terminal
            if not names:
                raise ValueError(f"none of {len(files)} images can be read" if files else "no images to prepare")
            rows.flush()
            inputs = np.memmap(rows, np.float32, "r", shape=(len(names), *pixels.shape))
            with temporary.open("wb") as stream:
                np.savez(stream, allow_pickle=False, inputs=inputs, names=np.array(names))
        os.replace(temporary, options.output)
    except (OSError, ValueError, LookupError, TypeError) as error:
        temporary.unlink(missing_ok=True)
        print(repr(f"error: {error}")[1:-1], file=sys.stderr)
        return 2
    left_out = f", {len(files) - len(names)} images left out" if len(names) < len(files) else ""
    print(f"{options.output}: inputs float32 {list(inputs.shape)}{left_out}")
    return 1 if left_out else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
