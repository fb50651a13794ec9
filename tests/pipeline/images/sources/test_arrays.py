"""Images in memory and npz files: layouts, channels, labels, and every wrong array."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from calibration.errors import UserError
from pipeline.images.preprocessing import image_to_tensor, preprocessing_from_fields
from pipeline.images.sources.arrays import ArraySource, as_channels_first, checked_labels, open_npz

Pixels = NDArray[np.uint8]


def _pixels(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _message(rest: str) -> str:
    with pytest.raises(UserError) as caught:
        open_npz(rest, labelled=True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An npz with images in three layouts, labels and much that is wrong."""
    path = tmp_path / "data.npz"
    first = _pixels(5, 3, 8, 9)
    arrays: dict[str, Any] = {
        "first": first,
        "last": first.transpose(0, 2, 3, 1),
        "grey": first[:, 0],
        "labels": np.arange(5, dtype=np.uint8),
        "floats": first / 255,
        "wide": first.astype(np.uint16),
        "negative": -np.arange(5),
        "few": np.arange(4),
        "one_hot": np.eye(5, dtype=np.int64),
        "objects": np.array([first, None], dtype=object),
    }
    np.savez(path, **arrays)
    return path


def test_every_layout_gives_the_same_images(file: Path) -> None:
    first, last, grey = (open_npz(f"{file}#{key}", labelled=False).images for key in ("first", "last", "grey"))
    assert len(first) == len(last) == len(grey) == 5
    for index in range(5):
        assert np.array_equal(np.asarray(first.image(index)), np.asarray(last.image(index)))
        assert np.array_equal(np.asarray(first.image(index))[:, :, 0], np.asarray(grey.image(index)))
    assert (first.image(0).mode, grey.image(0).mode, first.image(0).size) == ("RGB", "L", (9, 8))


def test_labels_are_read_for_scoring_only(file: Path) -> None:
    labelled = open_npz(f"{file}#first,labels", labelled=True)
    assert labelled.labels is not None
    assert (labelled.labels.dtype, labelled.labels.tolist()) == (np.dtype(np.int64), [0, 1, 2, 3, 4])
    assert open_npz(f"{file}#first,labels", labelled=False).labels is None
    assert open_npz(f"{file}#first,absent", labelled=False).labels is None
    assert open_npz(f"{file}#first", labelled=True).labels is None


def test_the_only_array_needs_no_key(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a#b.npz", _pixels(2, 8, 8, 1))
    assert len(open_npz(str(tmp_path / "a#b.npz"), labelled=True).images) == 2
    assert len(open_npz(f"{tmp_path / 'a#b.npz'}#arr_0", labelled=True).images) == 2


def test_wrong_keys_and_types(file: Path) -> None:
    assert "keys: first, last, grey" in _message(str(file))
    assert "no array 'images'; keys: first" in _message(f"{file}#images")
    assert "no array 'label'" in _message(f"{file}#first,label")
    assert "(array * 255).round().astype('uint8')" in _message(f"{file}#floats")
    assert "is uint16 [5, 3, 8, 9]" in _message(f"{file}#wide")
    assert "is uint8 [5]; it must be" not in _message(f"{file}#labels")
    assert "is [5]; it must be uint8 [N, 3 or 1, H, W]" in _message(f"{file}#labels")
    assert "cannot be read: Object arrays cannot be loaded" in _message(f"{file}#objects")
    assert "has the label -4" in _message(f"{file}#first,negative")
    assert "labels must be integers [5], one per image" in _message(f"{file}#first,few")
    assert "is int64 [5, 5]" in _message(f"{file}#first,one_hot")
    assert "is float64" in _message(f"{file}#first,floats")


@pytest.mark.parametrize(
    ("dtype", "most", "code"),
    [
        ("uint16", 65535, "(array >> 8).astype('uint8')"),
        ("uint16", 4095, "(array >> 4).astype('uint8')"),
        ("int32", 1023, "(array >> 2).astype('uint8')"),
        ("int64", 255, "array.astype('uint8')"),
        ("bool", 1, "(array * 255).astype('uint8')"),
        ("float32", 1, "(array * 255).round().astype('uint8')"),
    ],
)
def test_the_conversion_that_is_named_keeps_black_and_white(dtype: str, most: int, code: str) -> None:
    array = np.zeros((2, 1, 4, 4), dtype)
    array[0] = most
    with pytest.raises(UserError) as raised:
        as_channels_first(array, "x")
    assert code.removeprefix("array") in str(raised.value)
    pixels = eval(code, {"array": array})
    assert pixels.dtype == np.uint8 and pixels.max() == 255 and pixels.min() == 0
    negative = array.astype("int16")
    negative[0] = -4
    with pytest.raises(UserError, match=r"its values are -4 to 0: bring them to 0\.\.255 before"):
        as_channels_first(negative, "x")


def test_files_that_are_no_npz(tmp_path: Path, file: Path) -> None:
    assert "there is no file" in _message(f"{tmp_path / 'absent.npz'}#x")
    assert f"is a folder; type images:{tmp_path}" in _message(f"{tmp_path}#x")
    np.save(tmp_path / "a.npy", _pixels(2, 3, 8, 8))
    assert "store it with numpy.savez" in _message(f"{tmp_path / 'a.npy'}#x")
    whole = file.read_bytes()
    for contents in (b"", b"PK\x03\x04", b"a text", whole[:1000], whole[: len(whole) - 10]):
        (tmp_path / "bad.npz").write_bytes(contents)
        assert "is damaged or no npz file" in _message(f"{tmp_path / 'bad.npz'}#first")
    damaged = bytearray(whole)
    damaged[400:420] = b"\xff" * 20  # inside the first array: the checksum differs
    (tmp_path / "bad.npz").write_bytes(damaged)
    assert "'first' cannot be read" in _message(f"{tmp_path / 'bad.npz'}#first")


def test_members_that_claim_too_much_memory_are_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 3, 1000, 1000)}
    )
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue())
    assert "does not fit into memory" in _message(f"{tmp_path / 'huge.npz'}#images")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((7, 3, 8, 9), (7, 3, 8, 9)),
        ((7, 1, 8, 9), (7, 1, 8, 9)),
        ((7, 8, 9, 3), (7, 3, 8, 9)),
        ((7, 8, 9, 1), (7, 1, 8, 9)),
        ((7, 8, 9), (7, 1, 8, 9)),
        ((1, 8, 9), (1, 1, 8, 9)),
        ((3, 3, 8, 9), (3, 3, 8, 9)),
    ],
)
def test_the_axis_of_channels_is_found(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert as_channels_first(_pixels(*shape), "x").shape == expected


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((7, 3, 8, 3), "either axis of 3 and 3 may be the channels"),
        ((7, 1, 8, 3), "either axis of 1 and 3"),
        ((7, 4, 8, 9), "no axis of 1 or 3 channels"),
        ((3, 8, 9), "one image or several grey ones"),
        ((8, 9, 3), "one image or several grey ones"),
        ((8, 9), "it must be uint8"),
        ((0, 3, 8, 9), "is empty"),
        ((2, 1, 3, 8, 9), "it must be uint8"),
    ],
)
def test_other_and_ambiguous_shapes_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        as_channels_first(np.zeros(shape, dtype=np.uint8), "x")


def test_labels_of_every_integer_type_become_int64() -> None:
    for dtype in (np.uint8, np.int16, np.int64, np.uint32):
        assert checked_labels(np.array([3, 1], dtype=dtype), 2, "x").dtype == np.int64
    with pytest.raises(UserError, match="is bool"):
        checked_labels(np.array([True, False]), 2, "x")


@pytest.mark.parametrize("stored", [1, 3])
@pytest.mark.parametrize("order", ["RGB", "BGR", "L"])
def test_whole_batches_equal_single_images(stored: int, order: str) -> None:
    source = ArraySource("x", _pixels(6, stored, 10, 12))
    preprocessing = preprocessing_from_fields({"height": 10, "width": 12, "channel_order": order}, where="x")
    assert source.is_prepared(preprocessing)
    indices = np.array([4, 0, 4])
    expected = torch.stack([image_to_tensor(source.image(index), preprocessing) for index in indices])
    assert torch.equal(source.prepared(indices, preprocessing), expected)


def test_only_prepared_arrays_are_sources() -> None:
    with pytest.raises(ValueError, match="expected"):
        ArraySource("x", _pixels(2, 8, 8, 3))
