"""Batches: pure functions of seed and step, the same from worker processes, unreadable images left out."""

from __future__ import annotations

import inspect
import os
import signal
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from calibration.errors import UserError
from pipeline.images.batches import Batch, ordered_batches, split_held_out, suggested_workers, training_batches
from pipeline.images.preprocessing import Preprocessing, image_to_tensor, preprocessing_from_fields
from pipeline.images.sources.arrays import ArraySource
from pipeline.images.sources.folder import FolderSource, open_folder
from pipeline.images.sources.image_source import ImageSource
from pipeline.images.sources.items import ItemSource
from pipeline.images.split_images import SplitImages

SMALL = preprocessing_from_fields({"height": 16}, where="test")
LARGE = preprocessing_from_fields({"height": 72}, where="test")


def _array(count: int = 10, size: int = 16) -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    return ArraySource("array", pixels)


def _folder(path: Path, count: int = 7, bad: tuple[int, ...] = ()) -> FolderSource:
    for number in range(count):
        file = path / f"{number}.png"
        if number in bad:
            file.write_bytes(b"damaged")
        else:
            pixels = np.random.default_rng(number).integers(0, 256, (90 + number, 100, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(file)
    opened = open_folder(str(path), labelled=False).images
    assert isinstance(opened, FolderSource)
    return opened


def _every(source: ImageSource) -> NDArray[np.int64]:
    return np.arange(len(source))


def _split(source: ImageSource, training: NDArray[np.int64] | None = None, **own: Any) -> SplitImages:
    every = _every(source)
    return SplitImages(source=source, training=every if training is None else training, held_out=every[:0], **own)


def _train(source: ImageSource, preprocessing: Preprocessing, **changes: Any) -> list[Batch]:
    arguments: dict[str, Any] = {"batch_size": 4, "first_step": 0, "steps": 5, "seed": 3} | changes
    own = {name: arguments.pop(name) for name in ("workers", "augmentation") if name in arguments}
    return list(training_batches(_split(source, arguments.pop("indices", None), **own), preprocessing, **arguments))


def _same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(one.images, two.images) and torch.equal(one.indices, two.indices)
        for one, two in zip(first, second, strict=True)
    )


def _indices(batches: list[Batch]) -> list[int]:
    return [index for batch in batches for index in batch.indices.tolist()]


def test_a_batch_has_no_place_for_a_label() -> None:
    assert [field.name for field in fields(Batch)] == ["images", "indices"]
    for function in (training_batches, ordered_batches):
        assert not any("label" in name for name in inspect.signature(function).parameters)


@pytest.mark.parametrize("augmentation", ["auto", "crop", "crop-flip", "none"])
@pytest.mark.parametrize("kind", ["array", "resized array", "folder", "small folder", "items"])
def test_training_is_a_pure_function_of_seed_and_step(tmp_path: Path, kind: str, augmentation: str) -> None:
    preprocessing = LARGE if kind == "folder" else SMALL
    source: ImageSource = _array(size=16 if kind == "array" else 20)
    if "folder" in kind:
        source = _folder(tmp_path)
    if kind == "items":
        source = ItemSource("items", [_array().image(index) for index in range(10)])
    state = torch.get_rng_state()
    whole = _train(source, preprocessing, augmentation=augmentation)
    assert len(whole) == 5
    for batch in whole:
        assert batch.images.shape == (4, 3, preprocessing.height, preprocessing.width)
        assert (batch.images.dtype, batch.indices.dtype) == (torch.uint8, torch.int64)
    resumed = _train(source, preprocessing, augmentation=augmentation, first_step=2, steps=3)
    assert _same(whole[2:], resumed)
    assert not _same(whole, _train(source, preprocessing, augmentation=augmentation, seed=4))
    workers = _train(source, preprocessing, augmentation=augmentation, workers=2)
    assert _same(whole, workers)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_image_is_seen_once_per_epoch_in_another_order() -> None:
    source = _array(10)
    seen = _indices(_train(source, SMALL, batch_size=4, steps=10))
    epochs = [seen[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    # A batch larger than the source holds several epochs.
    assert sorted(_indices(_train(source, SMALL, batch_size=20, steps=1))) == sorted(2 * list(range(10)))


def test_training_keeps_to_its_indices(tmp_path: Path) -> None:
    chosen = np.array([1, 4, 5])
    assert set(_indices(_train(_array(), SMALL, indices=chosen))) == {1, 4, 5}
    source = _folder(tmp_path, bad=(4, 6))
    batches = _train(source, LARGE, indices=np.array([1, 4, 5]))
    assert set(_indices(batches)) == {1, 5}  # image 4 gives way to image 5, not to 6 or any other
    assert source.unreadable.names == ("4.png",)


def test_training_without_augmentation_shows_the_prepared_images(tmp_path: Path) -> None:
    for source, preprocessing in ((_array(), SMALL), (_array(size=20), SMALL), (_folder(tmp_path), LARGE)):
        for batch in _train(source, preprocessing, augmentation="none"):
            for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
                assert torch.equal(image, image_to_tensor(source.image(index), preprocessing))


@pytest.mark.parametrize("workers", [0, 2])
def test_ordered_batches_are_prepared_as_the_device_does(tmp_path: Path, workers: int) -> None:
    folder = _folder(tmp_path, 10)
    for source, preprocessing in ((_array(), SMALL), (_array(size=20), SMALL), (folder, LARGE)):
        indices = np.array([9, 0, 3, 3, 5, 2, 8])
        batches = list(ordered_batches(source, indices, preprocessing, batch_size=3, workers=workers))
        assert [len(batch.images) for batch in batches] == [3, 3, 1]
        assert _indices(batches) == indices.tolist()
        images = torch.cat([batch.images for batch in batches])
        for image, index in zip(images, indices, strict=True):
            assert torch.equal(image, image_to_tensor(source.image(index), preprocessing))


@pytest.mark.parametrize("workers", [0, 3])
def test_unreadable_images_are_left_out_and_counted_once(tmp_path: Path, workers: int) -> None:
    source = _folder(tmp_path, count=9, bad=(0, 3, 4, 5, 8))
    batches = list(ordered_batches(source, _every(source), LARGE, batch_size=3, workers=workers))
    assert [batch.indices.tolist() for batch in batches] == [[1, 2], [6, 7]]
    assert all(len(batch.images) == len(batch.indices) for batch in batches)
    assert source.unreadable.count == 5
    trained = _train(source, LARGE, workers=workers, steps=12)
    assert all(len(batch.images) == 4 for batch in trained)
    assert set(_indices(trained)) == {1, 2, 6, 7}
    assert source.unreadable.count == 5
    assert source.unreadable.summary() == (
        "5 unreadable images left out: 0.png, 3.png, 4.png and 2 more (cannot identify image file)"
    )


def test_readable_sources_have_nothing_to_report(tmp_path: Path) -> None:
    source = _folder(tmp_path)
    _train(source, LARGE)
    assert (source.unreadable.count, source.unreadable.names, source.unreadable.summary()) == (0, (), None)


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_readable_is_an_error(tmp_path: Path, workers: int) -> None:
    source = _folder(tmp_path, count=3, bad=(0, 1, 2))
    message = r"images:.*: none of 3 images can be read; the first: cannot identify image file$"
    with pytest.raises(UserError, match=message):
        _train(source, LARGE, workers=workers)
    assert source.unreadable.count == 3
    source = open_folder(str(tmp_path), labelled=False).images  # type: ignore[assignment]
    with pytest.raises(UserError, match=message):
        list(ordered_batches(source, _every(source), LARGE, batch_size=2, workers=workers))
    assert source.unreadable.count == 3


class _Broken:
    """A user's data set with a bug in the middle."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> object:
        if index == 5:
            raise ZeroDivisionError("division by zero")
        if index == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.zeros((16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bug_in_the_users_data_set_is_one_line_from_any_process(workers: int) -> None:
    source = ItemSource("python:x:y", _Broken())
    with pytest.raises(UserError, match=r"^python:x:y\[5\] raised ZeroDivisionError: .*line \d+\)$"):
        list(ordered_batches(source, np.arange(7), SMALL, batch_size=2, workers=workers))
    with pytest.raises(UserError, match=r"^python:x:y\[5\] raised ZeroDivisionError: .*line \d+\)$"):
        _train(source, SMALL, indices=np.array([5]), workers=workers)


def test_a_worker_that_dies_is_one_line() -> None:
    source = ItemSource("python:x:y", _Broken())
    with pytest.raises(UserError, match=r"a process that decodes images died .*try --workers 0"):
        list(ordered_batches(source, np.array([0, 7]), SMALL, batch_size=1, workers=1))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_may_be_left_half_way(tmp_path: Path, workers: int) -> None:
    source = _folder(tmp_path)
    batches = training_batches(_split(source, workers=workers), LARGE, batch_size=2, first_step=0, steps=1000, seed=0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.skipif(torch.cuda.is_available(), reason="checks what happens without a GPU")
def test_pinning_without_a_gpu_does_nothing() -> None:
    assert not _train(_array(), SMALL, pin_memory=True)[0].images.is_pinned()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_pinned_for_the_gpu(tmp_path: Path, workers: int) -> None:
    for source, preprocessing in ((_array(), SMALL), (_folder(tmp_path), LARGE)):
        pinned = _train(source, preprocessing, pin_memory=True, workers=workers)
        assert all(batch.images.is_pinned() for batch in pinned)
        assert _same(pinned, _train(source, preprocessing))


def test_workers_are_suggested_for_decoding_only(tmp_path: Path) -> None:
    assert suggested_workers(_array(), SMALL) == 0
    assert 1 <= suggested_workers(_array(), LARGE) <= 8
    assert 1 <= suggested_workers(_folder(tmp_path), SMALL) <= 8


def test_held_out_images_are_chosen_by_the_seed() -> None:
    training, held_out = split_held_out(1000, 0)
    assert (len(training), len(held_out)) == (900, 100)
    assert sorted([*training, *held_out]) == list(range(1000))
    assert np.all(np.diff(held_out) > 0) and np.all(np.diff(training) > 0)
    assert held_out.dtype == training.dtype == np.int64
    assert np.array_equal(split_held_out(1000, 0)[1], held_out)
    assert not np.array_equal(split_held_out(1000, 1)[1], held_out)
    assert len(split_held_out(100_000, 0)[1]) == 512
    assert len(split_held_out(100_000, 0, fraction=0.2, most=300)[1]) == 300
    assert [len(part) for part in split_held_out(2, 0)] == [1, 1]
    assert [len(part) for part in split_held_out(93, 0, count_held_out=40)] == [53, 40]
    with pytest.raises(UserError, match="--held-out-images 93: of 93 images at most 92 can be held out"):
        split_held_out(93, 0, count_held_out=93)
    with pytest.raises(UserError, match="1 image is too few"):
        split_held_out(1, 0)
