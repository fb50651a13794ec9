"""`python:package.module:function`: the user's own images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.errors import UserError
from pipeline.images.sources.arrays import ArraySource, as_channels_first, checked_labels
from pipeline.images.sources.image_source import EvaluationSet
from pipeline.images.sources.items import ItemSource, labels_of_items
from pipeline.tools.user_code import UserCode, call_user_function


def open_python(rest: str, *, labelled: bool) -> EvaluationSet:
    """Call `package.module:function` for a sequence or map-style Dataset of images, or of (image, label).

    An image is a PIL image, the path of a file, or a uint8 array or tensor. One uint8 array or tensor of all images,
    as in `npz:`, is taken as such and is the fastest; so is the pair of such an array and of integer labels [N], or
    maps of them [N, H, W].

    Raises:
        UserError: the function cannot be called, fails, or returns something else.
    """
    where = f"python:{rest}"
    return open_value(call_user_function(rest, where), where, labelled=labelled)


def open_value(returned: Any, where: str, *, labelled: bool, verb: str = "returned") -> EvaluationSet:
    """Images, or images with labels, that a user has at hand; `where` names them, `verb` says how they came.

    Raises:
        UserError: they are of another form than `open_python` takes.
    """
    pixels, labels = _arrays(returned)
    if pixels is not None:
        source = ArraySource(where, as_channels_first(pixels, where))
        if labels is None or not labelled:
            return EvaluationSet(images=source, labels=None)
        return EvaluationSet(images=source, labels=checked_labels(labels, len(source), f"{where}: labels"))
    count = item_count(returned, where, verb)
    items = ItemSource(where, returned)
    return EvaluationSet(images=items, labels=labels_of_items(returned, count, where) if labelled else None)


def item_count(items: Any, where: str, verb: str = "returned") -> int:
    """Return the number of items of a sequence or map-style data set.

    Raises:
        UserError: it is neither, or empty.
    """
    if not hasattr(items, "__len__") or not hasattr(items, "__getitem__") or isinstance(items, str | bytes | dict):
        must = "must return" if verb == "returned" else "must be"
        raise UserError(
            f"{where} {verb} a {type(items).__name__}; it {must} a sequence or Dataset (with len() and [index]) of"
            " images or of (image, label)"
        )
    with UserCode(f"len({where})"):
        count = len(items)
    if count < 1:
        raise UserError(f"{where} {verb} no images")
    return count


def _arrays(returned: Any) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Whole arrays of images and labels, where that is what was returned."""
    parts = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned,)
    arrays = [part.numpy(force=True) if isinstance(part, torch.Tensor) else part for part in parts]
    if not all(isinstance(array, np.ndarray) for array in arrays):
        return None, None
    if len(arrays) == 1:
        return arrays[0], None
    # A list of labels has one axis and no image has; maps of them come with images of four, and no image has four: two
    # images are not mistaken for either.
    pair = arrays[1].ndim == 1 or (arrays[0].ndim == 4 and arrays[1].ndim == 3)
    return (arrays[0], arrays[1]) if pair else (None, None)
