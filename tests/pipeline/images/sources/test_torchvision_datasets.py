"""torchvision's data sets, on small folders in their real formats."""

from __future__ import annotations

import hashlib
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets

from calibration.errors import UserError
from pipeline.images.sources.arrays import ArraySource
from pipeline.images.sources.items import ItemSource
from pipeline.images.sources.torchvision_datasets import open_torchvision

Pixels = NDArray[np.uint8]


def _pixels(*shape: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _message(rest: str, *, labelled: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        open_torchvision(rest, labelled=labelled)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A folder in MNIST's idx format: 6 training and 4 test images."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 6), ("t10k", 4)):
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + _pixels(count, 28, 28).tobytes())
        labels = bytes(range(count))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, count) + labels)
    return tmp_path


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in CIFAR-10's format; the checksums that torchvision demands are set to this one's."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name: str, contents: dict[str, Any]) -> str:
        data = pickle.dumps(contents)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    train = write("data_batch_1", {"data": _pixels(5, 3072), "labels": [4, 3, 2, 1, 0]})
    test = write("test_batch", {"data": _pixels(3, 3072), "labels": [7, 8, 9]})
    meta = write("batches.meta", {"label_names": [str(number) for number in range(10)]})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", train]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", test]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta})
    return tmp_path


def _labels(rest: str) -> list[int] | None:
    labels = open_torchvision(rest, labelled=True).labels
    return None if labels is None else labels.tolist()


def test_cifar_is_taken_from_memory(cifar: Path) -> None:
    opened = open_torchvision(f"CIFAR10?root={cifar}&split=train", labelled=False)
    assert isinstance(opened.images, ArraySource)
    assert opened.labels is None
    expected = datasets.CIFAR10(str(cifar))
    assert len(opened.images) == len(expected) == 5
    for index in range(5):
        assert np.array_equal(np.asarray(opened.images.image(index)), np.asarray(expected[index][0]))
    assert _labels(f"CIFAR10?root={cifar}&split=train") == [4, 3, 2, 1, 0]
    assert _labels(f"CIFAR10?root={cifar}") == [7, 8, 9]  # to score, the test images unless said otherwise


def test_damaged_cifar_is_not_unpickled(cifar: Path) -> None:
    (cifar / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"cposix\nsystem\n(S'false'\ntR.")
    assert "are damaged; correct root= or add &download=true" in _message(f"CIFAR10?root={cifar}")


def test_mnist_is_taken_from_memory(mnist: Path) -> None:
    train = open_torchvision(f"MNIST?root={mnist}", labelled=False).images
    assert isinstance(train, ArraySource)
    assert (len(train), train.image(0).mode, train.image(0).size) == (6, "L", (28, 28))
    assert np.array_equal(np.asarray(train.image(5)), np.asarray(datasets.MNIST(str(mnist))[5][0]))
    assert _labels(f"MNIST?root={mnist}&split=test") == [0, 1, 2, 3]
    assert _labels(f"MNIST?root={mnist}&train=true") == list(range(6))
    assert "has splits train and test only, not split=val" in _message(f"MNIST?root={mnist}&split=val")


def test_folders_of_files_are_read_item_by_item(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog", "dog")):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(_pixels(6, 5, 3)).save(tmp_path / name / f"{number}.png")
    opened = open_torchvision(f"ImageFolder?root={tmp_path}", labelled=True)
    assert isinstance(opened.images, ItemSource)
    assert np.array_equal(np.asarray(opened.images.image(2)), _pixels(6, 5, 3))
    assert opened.labels is not None
    assert opened.labels.tolist() == [0, 1, 1]
    assert "ImageFolder has no splits" in _message(f"ImageFolder?root={tmp_path}&split=train")
    assert "cannot download" in _message(f"ImageFolder?root={tmp_path}&download=true")


def test_splits_with_names_of_their_own(tmp_path: Path) -> None:
    # Imagenette: train and val, no test.
    for split in ("train", "val"):
        for number, wordnet in enumerate(datasets.Imagenette._WNID_TO_CLASS):
            folder = tmp_path / "imagenette2" / split / wordnet
            folder.mkdir(parents=True)
            if number < (3 if split == "train" else 2):
                Image.fromarray(_pixels(6, 5, 3)).save(folder / "1.JPEG")
    for folder in (tmp_path / "imagenette2").glob("*/*"):
        if not any(folder.iterdir()):
            Image.fromarray(_pixels(4, 4, 3)).save(folder / "9.JPEG")
    root = f"Imagenette?root={tmp_path}"
    assert len(open_torchvision(root, labelled=False).images) == 10
    assert _labels(root) == list(range(10))
    assert _labels(f"{root}&split=val") == list(range(10))
    assert "Valid values are" in _message(f"{root}&split=test")


def test_options_reach_the_class_with_its_types() -> None:
    opened = open_torchvision("FakeData?size=4&image_size=3,6,5&num_classes=2", labelled=True)
    assert (len(opened.images), opened.images.image(0).size) == (4, (5, 6))
    assert opened.labels is not None
    assert set(opened.labels.tolist()) <= {0, 1}
    assert "size=many must be a int, like 1000" in _message("FakeData?size=many")


def test_mistakes(tmp_path: Path) -> None:
    assert "did you mean CIFAR10" in _message("CIFAR11?root=.")
    assert "VisionDataset" not in _message("VisionDatase?root=.")
    assert "add ?root=DIR" in _message("CIFAR10")
    assert "there is no folder" in _message(f"CIFAR10?root={tmp_path / 'absent'}")
    message = _message(f"CIFAR10?root={tmp_path}&split=train")
    assert f"the files of CIFAR10 are not in {tmp_path} or are damaged" in message
    assert "has no option 'size'; known: download, root, split, train" in _message(f"CIFAR10?root={tmp_path}&size=1")
    assert "has no option 'transform'" in _message(f"CIFAR10?root={tmp_path}&transform=x")
    assert "download=maybe must be true or false" in _message(f"CIFAR10?root={tmp_path}&download=maybe")


def test_roots_may_hold_escaped_characters(tmp_path: Path) -> None:
    odd = tmp_path / "a&b c"
    odd.mkdir()
    assert f"are not in {odd}" in _message(f"CIFAR10?root={tmp_path}/a%26b c")
