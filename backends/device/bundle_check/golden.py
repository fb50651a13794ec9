"""The golden images of a bundle, and whether they are such as can be compared at all."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DeviceError


def read_golden(bundle: Path, manifest: dict[str, Any]) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
    """Golden inputs [N, ...] and what must come out of them by output's name [N, ...], N 1 or more.

    Raises DeviceError where arrays are missing, empty or of different numbers of images.
    """
    path = bundle / "golden.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            inputs = arrays["inputs"]
            expected = {entry["name"]: arrays[f"outputs.{entry['name']}"] for entry in manifest["outputs"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise DeviceError(f"{path} holds no golden images ({error}): make the bundle anew") from error
    counts = {len(values) if values.ndim else 0 for values in (inputs, *expected.values())}
    if not expected or len(counts) > 1 or 0 in counts:
        shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in {"inputs": inputs, **expected}.items())
        raise DeviceError(f"{path} holds no images with their outputs ({shapes}): make the bundle anew")
    return inputs, expected


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
