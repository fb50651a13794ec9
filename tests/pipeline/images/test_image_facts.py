"""The look at images before a run: what cannot be decoded, what is black, deep, flat or always the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.errors import UserError
from pipeline.images.batches import split_held_out
from pipeline.images.data import open_images
from pipeline.images.image_facts import check_single, look, readable_split
from pipeline.images.preprocessing import preprocessing_from_fields

RULE = preprocessing_from_fields({"height": 16}, where="test")
LETTERBOX = preprocessing_from_fields({"height": 16, "fit": "letterbox"}, where="test")


def _fill(folder: Path, images: list[Any]) -> str:
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    return f"images:{folder}"


def _noise(count: int, high: int = 256, dtype: Any = np.uint8, shape: tuple[int, ...] = (20, 30, 3)) -> list[Any]:
    generator = np.random.default_rng(count)
    return [generator.integers(0, high, shape, dtype) for _ in range(count)]


def test_ordinary_images_go_without_a_word(tmp_path: Path, shared_folder: Path) -> None:
    assert look(open_images(_fill(tmp_path, _noise(5)), RULE), RULE) == ()
    assert look(open_images(f"images:{shared_folder / 'data' / 'photos'}", RULE), RULE) == ()


@pytest.mark.parametrize("rule", [RULE, LETTERBOX])
@pytest.mark.parametrize(("colour", "word"), [(0, "every image is black"), (7, "of one colour each, the first 7/7/7")])
def test_a_set_of_nothing_but_one_colour_is_refused(tmp_path: Path, rule: Any, colour: int, word: str) -> None:
    source = open_images(_fill(tmp_path, [np.full((9, 9, 3), colour, np.uint8)] * 3), rule)
    with pytest.raises(UserError, match=word):
        look(source, rule)


def test_arrays_are_looked_at_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "black.npz", images=np.zeros((200, 3, 16, 16), np.uint8))
    with pytest.raises(UserError, match="every image is black: nothing can be calibrated"):
        look(open_images(str(tmp_path / "black.npz"), RULE), RULE)


def test_the_one_image_that_shows_something_saves_a_set(tmp_path: Path) -> None:
    pixels = np.zeros((200, 3, 16, 16), np.uint8)
    pixels[100] = np.random.default_rng(0).integers(0, 256, (3, 16, 16))  # not among the 64 that are looked at
    np.savez(tmp_path / "nearly.npz", images=pixels)
    notes = look(open_images(str(tmp_path / "nearly.npz"), RULE), RULE)
    assert any("64 of 64 images that were looked at are of one colour (64 black): number 0" in note for note in notes)


def test_twelve_bits_in_sixteen_are_told(tmp_path: Path) -> None:
    images = _noise(3, 4096, np.uint16, (20, 30))
    images[0][0, 0] = 4095
    source = open_images(_fill(tmp_path, images), RULE)
    (note,) = look(source, RULE)
    assert "use 12 bits (the brightest pixel of 3 is 4095 of 65535)" in note
    assert "add --stored-bits 12" in note
    told = preprocessing_from_fields({"height": 16, "stored_bits": 12}, where="test")
    assert look(source, told) == ()
    (note,) = look(source, preprocessing_from_fields({"height": 16, "stored_bits": 10}, where="test"))
    assert "reach 4095: with --stored-bits 10 all above 1023 is white" in note


def test_stored_bits_of_images_of_eight_bits_are_said_to_have_no_effect(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 1, 20, 20), dtype=np.uint8)
    np.savez(tmp_path / "bytes.npz", images=pixels)
    told = preprocessing_from_fields({"height": 16, "stored_bits": 12}, where="test")
    source = open_images(f"npz:{tmp_path / 'bytes.npz'}", told)
    (note,) = look(source, told)
    assert "#images: --stored-bits 12 has no effect on the 4 images" in note and look(source, RULE) == ()


def test_ten_bits_that_would_all_be_black_name_the_flag(tmp_path: Path) -> None:
    source = open_images(_fill(tmp_path, _noise(3, 250, np.uint16, (20, 30))), RULE)
    with pytest.raises(UserError, match=r"every image is black \(their 16-bit values reach 249: add --stored-bits 9\)"):
        look(source, RULE)


def test_dark_and_flat_sets_are_told(tmp_path: Path) -> None:
    (tmp_path / "dark").mkdir()
    (note,) = look(open_images(_fill(tmp_path / "dark", _noise(4, 16)), RULE), RULE)
    assert "the brightest pixel of 4 images is 15 of 255" in note
    (tmp_path / "flat").mkdir()
    flat = [image + 100 for image in _noise(4, 3)]
    (note,) = look(open_images(_fill(tmp_path / "flat", flat), RULE), RULE)
    assert "spread by 0.8" in note and "around 101" in note


def test_copies_and_single_colours_are_told(tmp_path: Path) -> None:
    (tmp_path / "same").mkdir()
    (note,) = look(open_images(_fill(tmp_path / "same", _noise(1) * 3), RULE), RULE)
    assert "all 3 images that were looked at are the same picture" in note
    (tmp_path / "some").mkdir()
    (note,) = look(open_images(_fill(tmp_path / "some", [*_noise(2), np.zeros((9, 9), np.uint8)]), RULE), RULE)
    assert "1 of 3 images that were looked at are of one colour (1 black): 2.png" in note


def test_files_of_several_frames_give_their_first(tmp_path: Path) -> None:
    frames = [Image.fromarray(image) for image in _noise(3)]
    frames[0].save(tmp_path / "pages.tif", save_all=True, append_images=frames[1:])
    frames[1].save(tmp_path / "single.tif")
    source = open_images(f"images:{tmp_path}", RULE)
    assert np.array_equal(np.asarray(source.image(0)), _noise(3)[0])
    (note,) = look(source, RULE)
    assert note.endswith("of files with several frames or pages the first is taken: pages.tif")


def test_an_image_that_cannot_be_decoded_is_not_called_too_few(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"0 of 1 images can be decoded, and two are the least, .* broken.jpg \(cannot"):
        check_single(open_images(f"images:{tmp_path}", RULE))
    Image.fromarray(_noise(1)[0]).save(tmp_path / "sound.png")
    source = open_images(f"images:{tmp_path}", RULE)
    check_single(source)
    with pytest.raises(UserError, match=r"1 of 2 images can be decoded, .* broken.jpg \(cannot"):
        readable_split(source, *split_held_out(2, 0))


@pytest.mark.parametrize("sound", [(1, 4), (0, 9), (3, 2), (7, 8)])
def test_both_parts_of_a_set_hold_an_image_that_can_be_read(tmp_path: Path, sound: tuple[int, int]) -> None:
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    for number in sound:
        Image.fromarray(_noise(1)[0]).save(tmp_path / f"{number}.png")
    for held_out_images in (1, 5, 9):
        source = open_images(f"images:{tmp_path}", RULE)
        training, held_out = readable_split(source, *split_held_out(10, 0, count_held_out=held_out_images))
        assert sorted([*training, *held_out]) == list(range(10))
        assert set(training) & set(sound) and set(held_out) & set(sound)
        assert source.unreadable.count <= 8


def test_other_files_are_counted_and_named_but_no_companions(tmp_path: Path) -> None:
    _fill(tmp_path, _noise(2))
    for name in ("a.heic", "b.heic", "clip.mp4", "classes.txt", "0.xml", ".hidden", "LICENSE", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"")
    (note,) = open_images(f"images:{tmp_path}", RULE).notes
    assert "3 other files (2 .heic, 1 .mp4: a.heic, b.heic, clip.mp4) left aside" in note
    for name in ("0.png", "1.png"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"no images in .*; there are 7 other files \(2 \.heic"):
        open_images(f"images:{tmp_path}", RULE)
