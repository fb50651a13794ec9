"""Images of one size in memory, and `npz:FILE#key`."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from backends.device.bundle_check.room import lack_of_room, unpacked
from calibration.errors import UserError
from pipeline.images.device_preprocess import pixels_from_array
from pipeline.images.preprocessing import Preprocessing
from pipeline.images.sources.image_source import EvaluationSet, Unreadable
from pipeline.tools.regular_file import irregular

_NPZ_ERRORS = (
    OSError,
    ValueError,
    EOFError,
    LookupError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
)


@final
class ArraySource:
    """Images in memory, uint8 [N, 1 or 3, H, W], RGB."""

    def __init__(self, name: str, pixels: NDArray[np.uint8]) -> None:
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
            raise ValueError(f"uint8 [N, 1 or 3, H, W] expected, got {pixels.dtype} {pixels.shape}")
        self.name = name
        self.notes: tuple[str, ...] = ()
        self.unreadable = Unreadable()
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, index: int, *, at_least: int | None = None) -> Image.Image:
        """Return one image in mode L or RGB; see `ImageSource.image`."""
        pixels = self.pixels[index]
        return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))

    def is_prepared(self, preprocessing: Preprocessing) -> bool:
        """Whether images are stored at the network's input size, resized and cropped by their owner."""
        return self.pixels.shape[2:] == (preprocessing.height, preprocessing.width)

    def prepared(self, indices: NDArray[np.int64], preprocessing: Preprocessing) -> Tensor:
        """Return prepared images as uint8 [B, C, H, W] in the network's channels, all at once."""
        return torch.from_numpy(pixels_from_array(self.pixels[indices], preprocessing.settings))


def open_npz(rest: str, *, labelled: bool) -> EvaluationSet:
    """Open `FILE#images` or `FILE#images,labels`; without keys the file's only array of images, and of labels.

    Images are uint8 [N, 1 or 3, H, W], [N, H, W, 1 or 3] or greyscale [N, H, W]; labels are integers [N].
    Unlabelled, the labels are not read.

    Raises:
        UserError: no such file, key, or not such arrays.
    """
    where = f"npz:{rest}"
    file, _, keys = (rest, "", "") if Path(rest).is_file() else rest.rpartition("#") if "#" in rest else (rest, "", "")
    path = Path(file).expanduser()
    if path.is_dir():
        raise UserError(f"{where}: {path} is a folder; type images:{path}")
    if (wrong := irregular(path)) is not None:
        raise UserError(f"{where}: {path} {wrong}")
    if not path.is_file():
        raise UserError(f"{where}: there is no file {path}")
    image_key, _, label_key = keys.partition(",")
    with _archive(path, where) as archive:
        if not image_key:
            image_key, label_key = _only_keys(archive, path, where, labelled=labelled)
        pixels = as_channels_first(_array(archive, image_key, where), f"{where}: array {image_key!r}")
        labels = None
        if labelled and label_key:
            labels = checked_labels(_array(archive, label_key, where), len(pixels), f"{where}: array {label_key!r}")
    source = ArraySource(f"npz:{path}#{image_key}", pixels)
    if not keys and labels is not None:
        source.notes += (f"{where}: the array {image_key!r} is taken for the images, {label_key!r} for their labels",)
    return EvaluationSet(images=source, labels=labels)


def _only_keys(archive: Any, path: Path, where: str, *, labelled: bool) -> tuple[str, str]:
    """The key of the only array that can be images, and of the only one that can be their labels; "" where none is."""
    keys: list[str] = archive.files
    if len(keys) == 1:
        return keys[0], ""
    headers = {key: _header(archive, key) for key in keys}
    images = [key for key, (shape, dtype) in headers.items() if dtype == np.uint8 and len(shape) in (3, 4)]
    if len(images) != 1:
        raise UserError(f"{where}: name the array as npz:{path}#KEY; keys: {', '.join(keys)}")
    count = headers[images[0]][0][0]
    labels = [key for key, (shape, dtype) in headers.items() if dtype.kind in "iu" and shape == (count,)]
    if labelled and len(labels) > 1:
        raise UserError(f"{where}: name the arrays as npz:{path}#{images[0]},LABELS; keys: {', '.join(keys)}")
    return images[0], labels[0] if labels else ""


def _header(archive: Any, key: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of an array that is not read; of what is none, ((), object)."""
    try:
        with archive.zip.open(f"{key}.npy") as stream:
            version = np.lib.format.read_magic(stream)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, _, dtype = read(stream)
            return shape, dtype
    except _NPZ_ERRORS:
        return (), np.dtype(object)


def as_channels_first(array: NDArray[Any], where: str) -> NDArray[np.uint8]:
    """View an array of images as uint8 [N, C, H, W] with 1 or 3 channels.

    The axis of size 1 or 3 holds the channels: the second or the last of four. Where both could be, or three
    axes could be one image as well as several grey ones, the array is refused.

    Raises:
        UserError: another type or shape, or an ambiguous one.
    """
    shape = list(array.shape)
    expected = "it must be uint8 [N, 3 or 1, H, W], [N, H, W, 3 or 1] or greyscale [N, H, W]"
    if array.dtype != np.uint8:
        raise UserError(f"{where} is {array.dtype} {shape}; {expected}; {_to_bytes(array)}")
    if 0 in shape:
        raise UserError(f"{where} is empty: {shape}")
    if array.ndim == 3:
        if shape[0] == 3 or shape[2] in (1, 3):
            raise UserError(
                f"{where} is {shape}: one image or several grey ones? Add the axis N or the axis of channels"
            )
        return array[:, None]
    if array.ndim != 4:
        raise UserError(f"{where} is {shape}; {expected}")
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first and last:
        raise UserError(f"{where} is {shape}: either axis of {shape[1]} and {shape[3]} may be the channels; {expected}")
    if not first and not last:
        raise UserError(f"{where} is {shape}, with no axis of 1 or 3 channels; {expected}")
    return array if first else array.transpose(0, 3, 1, 2)


def _to_bytes(array: NDArray[Any]) -> str:
    """How to make 0..255 of an array of another type; a bare .astype('uint8') keeps the lower 8 bits."""
    kind = array.dtype.kind
    if kind == "f":
        return "if it is in [0, 1]: (array * 255).round().astype('uint8'); if it is in 0..255: .round().astype('uint8')"
    if kind == "b":
        return "make it pixels by (array * 255).astype('uint8')"
    if kind not in "iu" or not array.size:
        return "store pixels from 0 to 255"
    least, most = int(array.min()), int(array.max())
    if least < 0 or most > 65535:
        return (
            f"its values are {least} to {most}: bring them to 0..255 before .astype('uint8'), which keeps 8 bits alone"
        )
    if most <= 255:
        return "its values fit as they are: .astype('uint8')"
    bits = most.bit_length()
    if bits == 16:
        return f"its values reach {most}: (array >> 8).astype('uint8'), or divided by 257 and rounded"
    return (
        f"its values reach {most}, so {bits} bits are in use: (array >> {bits - 8}).astype('uint8') keeps the upper 8"
        f" of them; >> 8, which is for all 16, would leave at most {most >> 8} of 255"
    )


def checked_labels(array: NDArray[Any], count: int, where: str) -> NDArray[np.int64]:
    """Return labels as int64 [count], or maps of them [count, H, W], whose numbers that are no class are left out.

    Raises:
        UserError: they are not integers, not one or one map per image, or negative where there is one per image.
    """
    if array.dtype.kind not in "iu" or array.ndim not in (1, 3) or len(array) != count or not array.size:
        raise UserError(
            f"{where} is {array.dtype} {list(array.shape)}; labels must be integers [{count}], one per image, or of"
            f" maps [{count}, H, W]"
        )
    if array.ndim == 1 and int(array.min()) < 0:
        raise UserError(f"{where} has the label {int(array.min())}; labels are class indices from 0")
    return array.astype(np.int64)


@contextmanager
def _archive(path: Path, where: str) -> Iterator[Any]:
    try:
        stream = path.open("rb")
    except OSError as error:
        raise UserError(f"{where}: cannot read {path}: {error.strerror}") from None
    with stream:  # numpy would leave a damaged file open
        try:
            archive = np.load(stream, allow_pickle=False)
        except _NPZ_ERRORS as error:
            raise UserError(f"{where}: {path} is damaged or no npz file: {error}") from None
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UserError(f"{where}: {path} is a single array; store it with numpy.savez(FILE, images=array)")
        with archive:
            yield archive


def _array(archive: Any, key: str, where: str) -> NDArray[Any]:
    if key not in archive.files:
        raise UserError(f"{where}: no array {key!r}; keys: {', '.join(archive.files)}")
    files = "store images as files and use images:"
    if (wrong := lack_of_room(unpacked(archive, [key]))) is not None:
        raise UserError(f"{where}: array {key!r} {wrong}; {files}")
    try:
        array: NDArray[Any] = archive[key]
    except MemoryError:
        raise UserError(f"{where}: array {key!r} does not fit into memory; {files}") from None
    except _NPZ_ERRORS as error:
        # An object array lands here too: numpy names it, and refuses to unpickle it.
        raise UserError(f"{where}: array {key!r} cannot be read: {error}") from None
    return array
