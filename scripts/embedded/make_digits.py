"""Make digits.npz from scikit-learn's copy of the UCI digits: python -m scripts.embedded.make_digits FILE.

Needs scikit-learn, which users of the pipeline do not. See README.md beside this file for source and licence.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HELD_OUT_COUNT = 450
_SPLIT_SEED = 0


def digits_arrays() -> dict[str, NDArray[np.generic]]:
    """Return the arrays of digits.npz, in scikit-learn's order.

    images: uint8 [1797, 1, 8, 8], 0 (paper) to 255 (ink). The original counts 0..16 are scaled to the full
    range because everything that reads images takes a uint8 value for a fraction of 255; the 17 levels stay
    distinct, so nothing is lost: counts = round(images * 16 / 255).
    labels: int64 [1797], 0 to 9.
    held_out: bool [1797], true for the 450 images that no training sees.
    """
    # By name: scikit-learn has no type information and is not among the project's dependencies.
    digits = importlib.import_module("sklearn.datasets").load_digits()
    counts = np.asarray(digits.images, dtype=np.float64)
    images = np.rint(counts * (255 / 16)).astype(np.uint8)[:, np.newaxis]
    labels = np.asarray(digits.target, dtype=np.int64)
    # RandomState and not default_rng: NumPy promises that its stream never changes (NEP 19).
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(labels))
    held_out = np.zeros(len(labels), dtype=np.bool_)
    held_out[order[:HELD_OUT_COUNT]] = True
    return {"images": images, "labels": labels, "held_out": held_out}


def npz_bytes(arrays: dict[str, NDArray[np.generic]]) -> bytes:
    """Return arrays as a compressed npz archive without dates or host-dependent fields.

    The same arrays give the same bytes wherever the same zlib is used; another may compress differently.
    """
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as entries:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # Unix, as zipfile writes it everywhere but on Windows
            entry.external_attr = 0o644 << 16
            entries.writestr(entry, member.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return archive.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the archive to the file named on the command line and print its size and hash."""
    parser = argparse.ArgumentParser(description="Make digits.npz from scikit-learn's copy of the UCI digits.")
    parser.add_argument("file", type=Path, nargs="?", default=Path("digits.npz"), help="file to write")
    file: Path = parser.parse_args(arguments).file
    contents = npz_bytes(digits_arrays())
    file.write_bytes(contents)
    print(f"{file}: {len(contents)} bytes, sha256 {hashlib.sha256(contents).hexdigest()}")


if __name__ == "__main__":
    main()
