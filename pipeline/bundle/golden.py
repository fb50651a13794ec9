"""Golden images: a few inputs that a bundle brings along, with what must come out of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from backends.device.bundle_check.golden import read_arrays
from pipeline.networks.outputs.meaning import Output

MOST_IMAGES = 16
# Dense outputs at full resolution are large: fewer images are kept then, at least one.
MOST_BYTES = 32_000_000


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A few inputs with what must come out by name: the oracle's outputs, and the float teacher's for comparison."""

    inputs: NDArray[np.float32]
    outputs: Mapping[str, NDArray[np.float32]]
    teacher: Mapping[str, NDArray[np.float32]]

    def to_bytes(self) -> bytes:
        """The arrays as one npz, `inputs`, `outputs.NAME` and `teacher.NAME`; equal arrays give equal bytes."""
        arrays = {"inputs": self.inputs}
        for word, column in (("outputs", self.outputs), ("teacher", self.teacher)):
            arrays |= {f"{word}.{name}": values for name, values in column.items()}
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path, names: Sequence[str]) -> Golden:
        """What `to_bytes` wrote, for the outputs of these names. Raises DamagedError where it is something else."""
        words = ("outputs", "teacher")
        arrays = read_arrays(path, ["inputs", *(f"{word}.{name}" for word in words for name in names)])
        outputs, teacher = ({name: arrays[f"{word}.{name}"] for name in names} for word in words)
        return cls(inputs=arrays["inputs"], outputs=outputs, teacher=teacher)


def golden_of(
    images: Tensor,
    outputs: Sequence[Output],
    oracle: Callable[[Tensor], list[Tensor]],
    teacher: Callable[[Tensor], list[Tensor]],
) -> Golden:
    """The first of the images float32 [B, C, H, W] with all outputs of the oracle and of the teacher.

    As many as keep the file small: MOST_IMAGES and MOST_BYTES at most, and one image at the least.
    """
    # As they come: an output's description leaves sizes open where the file does.
    size = 2 * sum(values.numel() for values in teacher(images[:1])) + images[0].numel()
    images = images[: max(1, min(MOST_IMAGES, MOST_BYTES // (4 * size)))]
    names = [output.name for output in outputs]
    columns = []
    for run in (oracle, teacher):
        columns.append({name: values.detach().numpy() for name, values in zip(names, run(images), strict=True)})
    return Golden(inputs=images.numpy(), outputs=columns[0], teacher=columns[1])
