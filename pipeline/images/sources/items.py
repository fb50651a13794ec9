"""Data sets made of items: a user's own sequence, or one of torchvision's classes."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from calibration.errors import UserError
from pipeline.images.device_preprocess import DEEP_MODES, plain_image
from pipeline.images.sources.arrays import checked_labels
from pipeline.images.sources.decoding import READ_ERRORS, decode_image
from pipeline.images.sources.image_source import Unreadable, UnreadableImage
from pipeline.tools.user_code import UserCode


@final
class ItemSource:
    """Images of a data set whose items are images, paths of files or (image, label, ...); no label is looked at."""

    def __init__(self, name: str, items: Any) -> None:
        self.name = name
        self.notes: tuple[str, ...] = ()
        self.unreadable = Unreadable()
        self.items = items
        self.count = len(items)

    def __len__(self) -> int:
        return self.count

    def image(self, index: int, *, at_least: int | None = None) -> Image.Image:
        """Return the image of one item; see `ImageSource.image`.

        Raises:
            UserError: the item holds no image, or the data set's own code fails with other than reading
                errors.
        """
        item = read_item(self.items, index, self.name)
        if isinstance(item, tuple | list) and item:
            item = item[0]
        if isinstance(item, str | os.PathLike):
            return decode_image(Path(item), str(item), at_least=at_least)
        if isinstance(item, Image.Image):
            try:
                item.load()  # Pillow opens a file and decodes it later
            except READ_ERRORS as error:
                raise UnreadableImage(f"item {index}", str(error) or type(error).__name__) from None
        return image_from_item(item, f"{self.name}[{index}]")


def read_item(items: Any, index: int, name: str) -> Any:
    """Return an item of somebody else's data set.

    Raises:
        UnreadableImage: reading it failed as reading a damaged file does.
        UserError: it failed in another way.
    """
    try:
        with UserCode(f"{name}[{index}]"):
            return items[index]
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, OSError | Image.DecompressionBombError):
            raise UnreadableImage(f"item {index}", str(cause) or type(cause).__name__) from None
        raise


def image_from_item(item: Any, where: str) -> Image.Image:
    """Return a Pillow image, or a uint8 array or tensor [C, H, W], [H, W, C] or [H, W], as a Pillow image.

    Raises:
        UserError: it is something else, or its channels are ambiguous.
    """
    if isinstance(item, Image.Image):
        try:
            plain = plain_image(item)
            return item if item.mode in DEEP_MODES else plain  # how many bits count is the network's affair
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
    if isinstance(item, torch.Tensor):
        item = item.numpy(force=True)
    expected = "it must be a PIL image, or a uint8 array or tensor [C, H, W], [H, W, C] or [H, W]"
    if not isinstance(item, np.ndarray):
        raise UserError(f"{where} is a {type(item).__name__}; {expected}")
    shape = list(item.shape)
    if item.dtype != np.uint8:
        fix = ": return images before they are scaled to floats" if item.dtype.kind == "f" else ""
        raise UserError(f"{where} is {item.dtype} {shape}; {expected}{fix}")
    if item.ndim == 2 and item.size:
        return Image.fromarray(np.ascontiguousarray(item))
    if item.ndim != 3 or not item.size or (shape[0] in (1, 3)) == (shape[2] in (1, 3)):
        raise UserError(f"{where} is {shape}, with no axis or two axes of 1 or 3 channels; {expected}")
    if shape[0] in (1, 3):
        item = item.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(item[:, :, 0] if item.shape[2] == 1 else item))


def labels_of_items(items: Any, count: int, where: str) -> NDArray[np.int64] | None:
    """Return the labels of a data set, None where its items are images alone.

    Read from the attribute targets, labels or _labels where it holds one integer per item (as in
    torchvision), else from the second member of every item, which decodes every image once.

    Raises:
        UserError: labels are there but are not class indices.
    """
    for attribute in ("targets", "labels", "_labels"):
        with UserCode(f"{where}.{attribute}"):  # it may be a property, whose code is the user's
            stored = getattr(items, attribute, None)
        if isinstance(stored, torch.Tensor):
            stored = stored.numpy(force=True)
        if isinstance(stored, Sequence | np.ndarray) and len(stored) == count:
            array = np.asarray(stored)
            if array.ndim == 1 and array.dtype.kind in "iu":
                return checked_labels(array, count, f"{where}: {attribute}")
    labels = []
    for index in range(count):
        try:
            item = read_item(items, index, where)
        except UnreadableImage:
            labels.append(0)  # its image is left out of every batch, and so is this
            continue
        if not isinstance(item, tuple | list) or len(item) < 2:
            return None
        labels.append(_class_index(item[1], f"{where}[{index}]"))
    return checked_labels(np.array(labels, dtype=np.int64), count, where)


def _class_index(label: Any, where: str) -> int:
    try:
        # Integers of Python, numpy and torch alike; a float or a list is no class index.
        return operator.index(label)
    except TypeError:
        raise UserError(
            f"{where} has the label {label!r} ({type(label).__name__}); labels are class indices from 0"
        ) from None
