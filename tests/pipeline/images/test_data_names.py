"""Data named by a path alone is taken where it has one meaning; else the answer is what to type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.errors import UserError
from pipeline.images.data import DATA_SOURCES, open_evaluation, open_images
from pipeline.images.data_names import with_kind
from pipeline.images.preprocessing import preprocessing_from_fields

RULE = preprocessing_from_fields({"height": 8}, where="test")
KINDS = list(DATA_SOURCES)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, with data of several kinds in it."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for place in ("photos/cat", "photos/dog", "digits"):
        (tmp_path / place).mkdir(parents=True)
    for name in ("photos/cat/1.png", "photos/dog/2.png", "single.jpg"):
        Image.fromarray(generator.integers(0, 256, (9, 9, 3), np.uint8)).save(name)
    np.savez(
        "set.npz", pictures=generator.integers(0, 256, (5, 8, 8, 3), np.uint8), truth=np.arange(5), scale=np.ones(2)
    )
    np.savez("two.npz", first=np.zeros((5, 8, 8), np.uint8), second=np.zeros((5, 8, 8), np.uint8))
    for name in ("photos.zip", "photos.tar.gz", "clip.mp4", "array.npy", "list.txt", "table.parquet", "noending"):
        Path(name).write_bytes(b"")
    return tmp_path


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("photos", "images:photos"),
        ("./photos/", "images:./photos/"),
        ("photos?classes=c.txt", "images:photos?classes=c.txt"),
        ("set.npz", "npz:set.npz"),
        ("set.npz#pictures,truth", "npz:set.npz#pictures,truth"),
        ("images:anything", "images:anything"),
        ("digits", "digits"),  # the embedded ones, also where a folder has that name
    ],
)
def test_one_meaning_is_taken(typed: str, meant: str) -> None:
    assert with_kind(typed, KINDS) == meant


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        ("photos.zip", "is an archive: unpack it (unzip photos.zip -d photos), then type images:photos"),
        ("photos.tar.gz", "(mkdir photos && tar -xf photos.tar.gz -C photos), then type images:photos"),
        ("clip.mp4", "is a video: take pictures out of it (mkdir clip && ffmpeg -i clip.mp4 -vf fps=1 clip/%05d.png)"),
        ("single.jpg", "is one image: several are needed; type the folder that holds them, images:FOLDER"),
        ("photos/cat/1.png", "images:photos/cat"),
        (
            "array.npy",
            "is a single array: store it with numpy.savez('array.npz', images=array), then type npz:",
        ),
        ("list.txt", "is a file, no folder of images: type images:FOLDER, or write a function"),
        ("table.parquet", "type python:package.module:function"),
        ("noending", "is a file, no folder of images"),
        ("fotos", "fotos does not exist, did you mean photos"),
        ("my.sets:build", "did you mean python:my.sets:build?"),
        ("CIFAR10", "did you mean torchvision:CIFAR10?root=DIR?"),
        ("nothing-like-it", "or a folder or .npz file that exists"),
        ("/no/such/place", "or a folder or .npz file that exists"),
    ],
)
def test_all_else_is_answered_with_what_to_type(typed: str, answer: str) -> None:
    with pytest.raises(UserError) as caught:
        open_images(typed, RULE)
    assert answer in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.usefixtures("desk")
def test_files_behind_their_kind_are_answered_too() -> None:
    with pytest.raises(UserError, match=r"images:photos.zip: photos.zip is an archive: unpack it"):
        open_images("images:photos.zip", RULE)
    with pytest.raises(UserError, match=r"npz:photos: photos is a folder; type images:photos"):
        open_images("npz:photos", RULE)
    with pytest.raises(UserError, match=r"images:set.npz: set.npz is an archive of arrays: type npz:set.npz"):
        open_images("images:set.npz", RULE)


@pytest.mark.usefixtures("desk")
def test_the_only_images_and_labels_of_an_archive_are_taken() -> None:
    assert len(open_images("set.npz", RULE)) == 5
    scored = open_evaluation("set.npz", RULE)
    assert scored.labels is not None and scored.labels.tolist() == [0, 1, 2, 3, 4]
    assert "'pictures' is taken for the images, 'truth' for their labels" in scored.images.notes[0]
    with pytest.raises(UserError, match=r"name the array as npz:two.npz#KEY; keys: first, second"):
        open_images("two.npz", RULE)
    labelled = open_evaluation("photos", RULE)
    assert labelled.labels is not None and labelled.labels.tolist() == [0, 1]
