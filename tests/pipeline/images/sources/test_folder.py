"""Folders of image files: order, decoding, class folders, and files that are damaged or none."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from calibration.errors import UserError
from pipeline.images.sources.folder import FolderSource, open_folder
from pipeline.images.sources.image_source import EvaluationSet, UnreadableImage

FORMATS = {".jpg": "JPEG", ".JPEG": "JPEG", ".png": "PNG", ".BMP": "BMP", ".webp": "WEBP"}


def _picture(width: int = 20, height: int = 12, seed: int = 0) -> Image.Image:
    # Smooth, so that lossy formats keep it.
    rows, columns = np.mgrid[0:height, 0:width] * 6
    return Image.fromarray(np.stack([rows + seed, columns, rows + columns], axis=2).astype(np.uint8))


def _save(path: Path, image: Image.Image | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or _picture()).save(path, FORMATS.get(path.suffix))


def _message(rest: str, *, labelled: bool = True) -> str:
    with pytest.raises(UserError) as caught:
        open_folder(rest, labelled=labelled)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _files(opened: EvaluationSet) -> tuple[str, ...]:
    assert isinstance(opened.images, FolderSource)
    return opened.images.files


def test_files_of_any_depth_come_in_natural_order(tmp_path: Path) -> None:
    names = ["img10.png", "img2.jpg", "IMG3.JPEG", "b/1.BMP", "b/a/2.webp", "a10/1.png", "a9/1.png"]
    for name in names:
        _save(tmp_path / name)
    for name in ("notes.txt", ".hidden.png", ".cache/1.png", "__MACOSX.png/1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    opened = open_folder(str(tmp_path), labelled=False)
    assert _files(opened) == (
        "a9/1.png", "a10/1.png", "b/1.BMP", "b/a/2.webp", "img2.jpg", "IMG3.JPEG", "img10.png",
    )  # fmt: skip
    assert opened.labels is None
    for index in range(len(opened.images)):
        image = opened.images.image(index)
        assert (image.mode, image.size) == ("RGB", (20, 12))
        # WebP and JPEG keep this picture within a few steps.
        assert np.abs(np.asarray(image).astype(int) - np.asarray(_picture()).astype(int)).max() <= 24


def test_links_are_followed_and_their_loops_end(tmp_path: Path) -> None:
    _save(tmp_path / "real" / "1.png")
    root = tmp_path / "set"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(root)
    assert _files(open_folder(str(root), labelled=False)) == ("linked/1.png",)


def test_photographs_are_decoded_like_pillow_does(shared_folder: Path) -> None:
    folder = shared_folder / "data" / "photos"
    opened = open_folder(str(folder), labelled=True)
    assert len(opened.images) == 93
    assert opened.labels is None
    modes = set()
    for index, file in enumerate(_files(opened)):
        with Image.open(folder / file) as expected:
            modes.add(expected.mode)
            mode = "L" if expected.mode == "L" else "RGB"
            turned = ImageOps.exif_transpose(expected).convert(mode)
            assert np.array_equal(np.asarray(opened.images.image(index)), np.asarray(turned)), file
    assert modes == {"RGB", "L"}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"1{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    _picture().save(path, FORMATS[suffix], exif=exif)
    upright = open_folder(str(tmp_path), labelled=False).images.image(0)
    assert upright.size == ((12, 20) if orientation >= 5 else (20, 12))
    with Image.open(path) as stored:
        assert np.array_equal(np.asarray(upright), np.asarray(ImageOps.exif_transpose(stored)))


def test_damaged_exif_does_not_spoil_the_image(tmp_path: Path) -> None:
    _picture().save(tmp_path / "1.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert open_folder(str(tmp_path), labelled=False).images.image(0).size == (20, 12)


def test_large_photographs_are_decoded_smaller_for_training(tmp_path: Path) -> None:
    _save(tmp_path / "1.jpg", _picture(1200, 800))
    source = open_folder(str(tmp_path), labelled=False).images
    assert source.image(0).size == (1200, 800)
    assert source.image(0, at_least=200).size == (300, 200)
    assert source.image(0, at_least=201).size == (600, 400)
    assert source.image(0, at_least=5000).size == (1200, 800)


def _damaged_files(folder: Path) -> list[str]:
    buffer = io.BytesIO()
    _picture(64, 64).save(buffer, "JPEG")
    jpeg = buffer.getvalue()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_bytes(b"this is no image")
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "header.jpg").write_bytes(jpeg[:20])
    (folder / "dangling.png").symlink_to(folder / "absent.png")
    (folder / "floats.png").write_bytes(_tiff())
    (folder / "folder.bmp").mkdir()  # not a file, so not in the list at all
    # A bomb: 30,000 x 30,000 pixels of nothing.
    header = bytearray(_png())
    header[16:24] = (30_000).to_bytes(4, "big") * 2
    (folder / "bomb.png").write_bytes(header)
    return ["bomb.png", "dangling.png", "empty.jpg", "floats.png", "header.jpg", "text.png", "truncated.jpg"]


def _png() -> bytes:
    buffer = io.BytesIO()
    _picture().save(buffer, "PNG")
    return buffer.getvalue()


def _tiff() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), dtype=np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


def test_damaged_files_are_unreadable_images_with_a_name_and_a_reason(tmp_path: Path) -> None:
    expected = _damaged_files(tmp_path)
    opened = open_folder(str(tmp_path), labelled=False)
    assert list(_files(opened)) == expected
    for index, name in enumerate(expected):
        with pytest.raises(UnreadableImage) as caught:
            opened.images.image(index)
        assert caught.value.name == name
        assert caught.value.reason
        assert str(tmp_path) not in caught.value.reason


def test_any_damage_to_a_file_is_an_image_or_unreadable(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    path = tmp_path / "1.png"
    path.write_bytes(_png())
    source = open_folder(str(tmp_path), labelled=False).images
    for format in ("PNG", "JPEG", "BMP", "WEBP"):
        buffer = io.BytesIO()
        _picture().convert("P" if format == "PNG" else "RGB").save(buffer, format)
        whole = np.frombuffer(buffer.getvalue(), dtype=np.uint8)
        for _ in range(100):
            damaged = whole.copy()
            places = generator.integers(0, min(len(whole), 60), 3)
            damaged[places] = generator.integers(0, 256, 3)
            path.write_bytes(damaged.tobytes())
            try:
                source.image(0)
            except UnreadableImage:
                continue


def test_class_folders_are_numbered_as_torchvision_does(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    for folder in ("10", "9", "b", "A", "n0123_x/deep"):
        for number in (1, 2):
            _save(tmp_path / folder / f"{number}.png")
    opened = open_folder(str(tmp_path), labelled=True)
    theirs = {str(Path(path).relative_to(tmp_path)): label for path, label in ImageFolder(tmp_path).samples}
    assert opened.labels is not None
    assert opened.labels.dtype == np.int64
    assert dict(zip(_files(opened), opened.labels.tolist(), strict=True)) == theirs
    assert open_folder(str(tmp_path), labelled=False).labels is None


def test_labels_count_empty_class_folders_but_no_hidden_ones(tmp_path: Path) -> None:
    _save(tmp_path / "a" / "1.png")
    _save(tmp_path / "c" / "1.png")
    (tmp_path / "b").mkdir()
    (tmp_path / ".ipynb_checkpoints").mkdir()
    labels = open_folder(str(tmp_path), labelled=True).labels
    assert labels is not None
    assert labels.tolist() == [0, 2]


def test_no_class_folders_no_labels(tmp_path: Path) -> None:
    _save(tmp_path / "a" / "1.png")
    assert open_folder(str(tmp_path), labelled=True).labels is None  # one folder is no classification
    _save(tmp_path / "b" / "1.png")
    assert open_folder(str(tmp_path), labelled=True).labels is not None
    _save(tmp_path / "1.png")
    assert open_folder(str(tmp_path), labelled=True).labels is None


def test_a_file_of_class_names_gives_the_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "set?"
    _save(folder / "goldfish" / "1.png")
    names = tmp_path / "classes.txt"
    names.write_text("tench\ngoldfish\nshark\n\n")
    for rest in (f"{folder}?classes={names}", str(folder).replace("?", "?") + f"?classes={names}"):
        with pytest.raises(UserError):  # the text is split at the first question mark
            open_folder(rest, labelled=True)
    folder = folder.rename(tmp_path / "set")
    labels = open_folder(f"{folder}?classes={names}", labelled=True).labels
    assert labels is not None
    assert labels.tolist() == [1]
    assert open_folder(f"{folder}?classes={names}", labelled=False).labels is None
    _save(folder / "dog" / "1.png")
    assert "class folders dog are not in it" in _message(f"{folder}?classes={names}")
    (folder / "dog" / "1.png").rename(folder / "1.png")
    assert "images lie outside class folders" in _message(f"{folder}?classes={names}")
    assert "cannot read the class names" in _message(f"{folder}?classes={tmp_path / 'absent'}")
    names.write_text("tench\n\ngoldfish\n")
    assert "one class name per line" in _message(f"{folder}?classes={names}")


def test_a_folder_with_a_question_mark_in_its_name(tmp_path: Path) -> None:
    _save(tmp_path / "what?" / "1.png")
    assert len(open_folder(str(tmp_path / "what?"), labelled=False).images) == 1


def test_splits_are_not_taken_for_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        _save(tmp_path / split / "cat" / "1.png")
    assert f"are splits, not classes; give one, such as {tmp_path}/train" in _message(str(tmp_path))
    assert len(open_folder(str(tmp_path), labelled=False).images) == 2


def test_mistakes(tmp_path: Path) -> None:
    assert "does not exist" in _message(str(tmp_path / "absent"))
    assert f"no images in {tmp_path}; looked at any depth for .jpg" in _message(str(tmp_path))
    (tmp_path / "file").write_text("")
    assert "is a file" in _message(str(tmp_path / "file"))
    assert "unknown option 'labels'" in _message(f"{tmp_path}?labels=1")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_named(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    assert "cannot list" in _message(str(tmp_path))
