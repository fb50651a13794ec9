"""The golden images of a bundle, and whether they are such as can be compared at all."""

from __future__ import annotations

import io
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DeviceError
from .manifest import Manifest
from .room import unpacked
from .stored import DamagedError, read_whole

# 16 images and 32 MB of arrays at the most, unless one image takes more; packed and unpacked.
_MOST_BYTES = 2 << 30
# What NumPy's reader of archives raises of bytes that are none, or whose header is no Python literal.
_NO_ARRAYS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, EOFError, SyntaxError, NotImplementedError,
    RuntimeError, OverflowError, MemoryError, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_golden(bundle: Path, manifest: Manifest) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
    """Golden inputs [N, ...] and what must come out of them by output's name [N, ...], N 1 or more.

    Raises DeviceError where arrays are missing, empty, no numbers, or of different numbers of images.
    """
    names = [output.name for output in manifest.outputs]
    path = bundle / "golden.npz"
    try:
        arrays = read_arrays(path, ["inputs", *(f"outputs.{name}" for name in names)])
    except DamagedError as error:
        raise DeviceError(f"{error}: make the bundle anew") from error
    inputs, *expected = arrays.values()
    return inputs, dict(zip(names, expected, strict=True))


def read_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays float32 [N, ...] of these names in an npz file, in this order, of as many images each, 1 or more.

    Raises DamagedError where the file holds something else.
    """
    arrays = _all_arrays(path, names)
    for name, values in arrays.items():
        if values.dtype != np.float32:
            raise DamagedError(f"{path}: {name} is {values.dtype}, and float32 is written")
    counts = {values.shape[:1] for values in arrays.values()}
    if len(counts) != 1 or counts <= {(), (0,)}:
        shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in arrays.items())
        raise DamagedError(f"{path} holds no images with their outputs ({shapes})")
    return arrays


def read_layers(path: Path) -> tuple[list[str], list[str], list[NDArray[np.float32]]]:
    """Layers, the tensors that they give, and a few values of each, float32 [N, K], of a bundle's layers.npz.

    Raises DeviceError where the file holds something else.
    """
    try:
        described = _all_arrays(path, ("layers", "tensors"))
        layers, tensors = ([str(name) for name in np.atleast_1d(values)] for values in described.values())
        if len(layers) != len(tensors):
            raise DamagedError(f"{path} has {len(layers)} layers and {len(tensors)} tensors")
        values = read_arrays(path, [f"values_{index}" for index in range(len(layers))]) if layers else {}
    except DamagedError as error:
        raise DeviceError(f"{error}: make the bundle anew, or add --no-layers") from error
    return layers, tensors, list(values.values())


def _all_arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays of these names in an npz file. Raises DamagedError where it has them not, or is none."""
    try:
        with np.load(io.BytesIO(read_whole(path, most=_MOST_BYTES)), allow_pickle=False) as kept:
            if lacking := [name for name in names if name not in kept.files]:
                raise DamagedError(f"{path} has no array {lacking[0]!r}")
            if (size := unpacked(kept, names)) > _MOST_BYTES:
                raise DamagedError(f"{path} unpacks to {size} bytes, and {_MOST_BYTES} at the most are written")
            return {name: kept[name] for name in names}
    except _NO_ARRAYS as error:
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{path} cannot be read ({error})") from error


def check_takes(session: Any, inputs: NDArray[np.float32]) -> None:
    """Raise DeviceError where a model takes no images of the golden ones' size; `session`: as `load` returns it."""
    sizes = session.get_inputs()[0].shape[1:]
    fits = inputs.ndim == 1 + len(sizes) and all(
        size == fixed or not isinstance(fixed, int) for size, fixed in zip(inputs.shape[1:], sizes, strict=True)
    )
    if not fits or inputs.dtype != np.float32:
        raise DeviceError(
            f"golden inputs are {inputs.dtype} {list(inputs.shape)}, model.onnx takes images of {list(sizes)}: make the"
            " bundle anew"
        )


def check_gives(outputs: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> None:
    """Raise DeviceError where a model lacks an output that is to be compared, or gives it another shape."""
    for name, values in expected.items():
        if name not in outputs:
            raise DeviceError(f"model.onnx has no output {name}, but {', '.join(outputs)}: make the bundle anew")
        if outputs[name].shape != values.shape:
            raise DeviceError(
                f"model.onnx gives {name} as {list(outputs[name].shape)}, golden.npz has {list(values.shape)}: make the"
                " bundle anew"
            )
