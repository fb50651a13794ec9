"""The user's own images: what a function may return, and what happens when it does not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.errors import UserError
from pipeline.images.sources.arrays import ArraySource
from pipeline.images.sources.image_source import UnreadableImage
from pipeline.images.sources.items import ItemSource
from pipeline.images.sources.python_dataset import open_python, open_value

WriteModule = Callable[[str], str]

MODULE = """
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

PIXELS = np.arange(4 * 6 * 5 * 3, dtype=np.int64).astype(np.uint8).reshape(4, 6, 5, 3)

class Pairs(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        if not 0 <= index < 4:
            raise IndexError(index)
        return torch.from_numpy(PIXELS[index].transpose(2, 0, 1).copy()), torch.tensor(index + 1)

class WithTargets(Pairs):
    targets = [3, 2, 1, 0]

class Damaged(Pairs):
    def __getitem__(self, index):
        if index == 2:
            raise OSError("truncated")
        return super().__getitem__(index)

class Buggy(Pairs):
    def __getitem__(self, index):
        return undefined_name

class Stream(IterableDataset):
    def __iter__(self):
        yield from PIXELS

class LazyFile(Pairs):
    def __getitem__(self, index):
        return Image.open("bad.jpg")

def images(): return [Image.fromarray(pixels) for pixels in PIXELS]
def grey(): return [pixels[:, :, 0] for pixels in PIXELS]
def array(): return PIXELS
def tensor(): return torch.from_numpy(PIXELS.transpose(0, 3, 1, 2).copy())
def arrays(): return PIXELS, torch.tensor([4, 3, 2, 1])
def two_images(): return PIXELS[0], PIXELS[1]
def floats(): return PIXELS / 255
def float_items(): return [pixels / 255 for pixels in PIXELS]
def float_labels(): return [(pixels, 0.5) for pixels in PIXELS]
def strange_items(): return [3.5, 4.5]
def float_mode(): return [Image.fromarray(PIXELS[0, :, :, 0].astype(np.float32))]
def empty(): return []
def dictionary(): return {"images": PIXELS}
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module with the functions above, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    name = f"user_data_{abs(hash(str(tmp_path))):x}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    return name


def _message(rest: str, *, labelled: bool = True) -> str:
    with pytest.raises(UserError) as caught:
        open_python(rest, labelled=labelled)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("function", ["images", "array", "tensor", "Pairs", "arrays", "WithTargets"])
def test_every_kind_of_return_gives_the_same_images(module: str, function: str) -> None:
    source = open_python(f"{module}:{function}", labelled=False).images
    expected = np.arange(4 * 6 * 5 * 3, dtype=np.int64).astype(np.uint8).reshape(4, 6, 5, 3)
    assert len(source) == 4
    assert all(np.array_equal(np.asarray(source.image(index)), expected[index]) for index in range(4))
    assert isinstance(source, ArraySource if function in ("array", "tensor", "arrays") else ItemSource)


def test_labels_are_found_where_there_are_any(module: str) -> None:
    def labels(function: str) -> list[int] | None:
        read = open_python(f"{module}:{function}", labelled=True).labels
        return None if read is None else read.tolist()

    assert labels("Pairs") == [1, 2, 3, 4]
    assert labels("WithTargets") == [3, 2, 1, 0]
    assert labels("arrays") == [4, 3, 2, 1]
    assert labels("Damaged") == [1, 2, 0, 4]  # the third image is left out of every batch
    assert labels("images") is labels("array") is labels("grey") is None
    assert open_python(f"{module}:Pairs", labelled=False).labels is None


def test_two_images_are_not_images_and_labels(module: str) -> None:
    source = open_python(f"{module}:two_images", labelled=True).images
    assert (len(source), source.image(1).size) == (2, (5, 6))


def test_damaged_items_are_unreadable_and_bugs_are_the_users(module: str) -> None:
    damaged = open_python(f"{module}:Damaged", labelled=False).images
    assert damaged.image(1).size == (5, 6)
    with pytest.raises(UnreadableImage, match="item 2"):
        damaged.image(2)
    Path("bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    with pytest.raises(UnreadableImage, match="item 0"):
        open_python(f"{module}:LazyFile", labelled=False).images.image(0)
    with pytest.raises(UserError, match=r"\[0\] raised NameError: name 'undefined_name'.*, line \d+\)"):
        open_python(f"{module}:Buggy", labelled=False).images.image(0)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("float_items", r"\[0\] is float64 \[6, 5, 3\].*before they are scaled to floats"),
        ("strange_items", r"\[0\] is a float; it must be a PIL image"),
        ("float_mode", r"\[0\]: images of mode F have no defined conversion"),
    ],
)
def test_items_that_are_no_images(module: str, function: str, message: str) -> None:
    source = open_python(f"{module}:{function}", labelled=False).images
    with pytest.raises(UserError, match=message):
        source.image(0)


def test_paths_are_opened_as_a_folders_files_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    names = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png", 3),
        tmp_path / "broken.png",
        "absent.png",
    ]
    images = open_value(names, "here", labelled=False).images
    for index in range(3):
        assert np.array_equal(np.asarray(images.image(index)), pixels)
    for index, why in ((3, "broken"), (4, "No such file")):
        with pytest.raises(UnreadableImage, match=why):
            images.image(index)


def test_mistakes(module: str) -> None:
    assert "(array * 255).round()" in _message(f"{module}:floats")
    assert "returned no images" in _message(f"{module}:empty")
    assert "returned a dict; it must return a sequence or Dataset" in _message(f"{module}:dictionary")
    assert "returned a Stream" in _message(f"{module}:Stream")
    assert "has the label 0.5 (float)" in _message(f"{module}:float_labels")
    assert "no module 'absent_module'" in _message("absent_module:function")
