"""Data by name: the table of sources, what the user is told, and the shared sample end to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from calibration.errors import UserError
from pipeline.images.data import (
    DATA_SOURCES,
    open_evaluation,
    open_images,
    ordered_batches,
    split_held_out,
    training_batches,
)
from pipeline.images.preprocessing import preprocessing_from_fields
from pipeline.images.split_images import SplitImages

CIFAR = preprocessing_from_fields({"height": 32}, where="test")
IMAGENET = preprocessing_from_fields({}, where="test")


@pytest.mark.parametrize("kind", DATA_SOURCES)
@pytest.mark.parametrize("opened", [open_images, open_evaluation])
def test_every_source_answers_nonsense_in_one_line(kind: str, opened: Callable[..., object]) -> None:
    """A new one is tested the moment it is listed."""
    with pytest.raises(UserError, match="no such thing") as caught:
        opened(f"{kind}:no such thing", CIFAR)
    assert "\n" not in str(caught.value)


def test_unknown_sources_are_told_so() -> None:
    for open_source in (open_images, open_evaluation):
        with pytest.raises(UserError, match=f"one of {', '.join(sorted(DATA_SOURCES))}"):
            open_source("folder:x", CIFAR)
        with pytest.raises(UserError, match="must be images:rest"):
            open_source("images:", CIFAR)
        with pytest.raises(UserError, match="have no variants"):
            open_source("digits:all", CIFAR)


def test_embedded_digits_train_without_labels_and_score_with_them() -> None:
    from pipeline.networks.sources.digits import digits_preprocessing

    preprocessing = digits_preprocessing()
    training = open_images("digits", preprocessing)
    evaluation = open_evaluation("digits", preprocessing)
    assert (len(training), len(evaluation.images)) == (1347, 450)
    assert evaluation.labels is not None
    assert evaluation.labels.shape == (450,)
    split = SplitImages(source=training, training=np.arange(1347), held_out=np.arange(0))
    (batch,) = training_batches(split, preprocessing, batch_size=64, first_step=7, steps=1, seed=0)
    assert batch.images.shape == (64, 1, 8, 8)
    assert training.notes == ()


def test_the_shared_sample(shared_folder: Path) -> None:
    file = shared_folder / "data" / "cifar10_sample.npz"
    images = open_images(f"npz:{file}#unlabelled", CIFAR)
    evaluation = open_evaluation(f"npz:{file}#test_images,test_labels", CIFAR)
    assert (len(images), len(evaluation.images), images.notes) == (5085, 1017, ())
    assert evaluation.labels is not None
    assert np.bincount(evaluation.labels).min() > 50
    _, held_out = split_held_out(len(images), seed=0)
    assert len(held_out) == 508
    batches = list(ordered_batches(images, held_out, CIFAR, batch_size=128))
    assert [len(batch.images) for batch in batches] == [128, 128, 128, 124]
    with np.load(file, allow_pickle=False) as archive:
        expected = torch.from_numpy(archive["unlabelled"][held_out])
    assert torch.equal(torch.cat([batch.images for batch in batches]), expected)


def test_shared_photographs_from_worker_processes(shared_folder: Path) -> None:
    source = open_images(f"images:{shared_folder / 'data' / 'photos'}", IMAGENET)
    split = SplitImages(source=source, training=np.arange(93), held_out=np.arange(0))
    here, there = (
        list(training_batches(replace(split, workers=workers), IMAGENET, batch_size=8, first_step=3, steps=2, seed=1))
        for workers in (0, 2)
    )
    for one, other in zip(here, there, strict=True):
        assert one.images.shape == (8, 3, 224, 224)
        assert torch.equal(one.images, other.images)
    assert source.unreadable.summary() is None


def test_the_user_is_told_about_other_sizes_and_channels(tmp_path: Path) -> None:
    pixels = np.zeros((2, 1, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", pixels)
    name = f"npz:{tmp_path / 'x.npz'}"
    source = open_images(name, IMAGENET)
    assert [note.removeprefix(source.name) for note in source.notes] == [
        ": stored at 32x32 px, resized for the network's 224x224 px",
        ": greyscale images for a colour network",
    ]
    assert len(open_evaluation(name, CIFAR).images.notes) == 1
    np.savez(tmp_path / "x.npz", np.zeros((2, 3, 224, 224), dtype=np.uint8))
    (note,) = open_images(name, IMAGENET).notes
    assert "taken as already resized and cropped" in note


def test_labels_stay_beside_their_images_when_some_are_damaged(tmp_path: Path) -> None:
    for number in range(6):
        folder = tmp_path / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        if number == 2:
            (folder / f"{number}.png").write_bytes(b"damaged")
        else:
            Image.new("RGB", (40, 40), (number, 0, number % 2)).save(folder / f"{number}.png")
    evaluation = open_evaluation(f"images:{tmp_path}", CIFAR)
    assert evaluation.labels is not None
    batches = ordered_batches(evaluation.images, np.arange(6), CIFAR, batch_size=4)
    pairs = [
        (int(image[2, 0, 0]), int(evaluation.labels[index]))
        for batch in batches
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True)
    ]
    assert pairs == [(0, 0), (0, 0), (1, 1), (1, 1), (1, 1)]
    assert evaluation.images.unreadable.names == ("a/2.png",)
