"""Mistakes that can be known at the start are said at the start, and cost nothing that was there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.errors import UserError
from pipeline.artifacts import Network
from pipeline.cli import main
from pipeline.config import DistillationConfig, QuantisationConfig
from pipeline.images.batches import split_held_out
from pipeline.images.data import open_evaluation, open_labelled
from pipeline.images.sources.arrays import ArraySource
from pipeline.images.sources.folder import open_folder
from pipeline.images.sources.image_source import ImageSource
from pipeline.images.sources.items import ItemSource
from pipeline.images.split_images import SplitImages
from pipeline.setup.identity import images_identity
from pipeline.setup.networks import Networks
from pipeline.stages.teacher import load_network
from pipeline.validation.preflight import check_learnable, check_room, scored_on

pytestmark = pytest.mark.usefixtures("all_digits_narrow")

QUICK = ("--quiet", "--steps", "2", "--calibration-images", "16")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with images of digits' size, two sets of labels for them, and pictures that are none."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (24, 1, 8, 8), np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(24) % 10, far=np.arange(24))
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / name).write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def teacher() -> Network:
    return load_network("digits")


def checked(
    teacher: Network,
    root: Path,
    *,
    data: str = "digits",
    labelled: bool = False,
    scored: str | None = None,
    steps: int | None = None,
) -> None:
    opened = (open_labelled if labelled else open_evaluation)(data, teacher.preprocessing)
    labels = opened.labels if labelled else None
    training, held_out = split_held_out(len(opened.images), 0)
    images = SplitImages(
        source=opened.images, training=training, held_out=held_out, workers=0, augmentation="none", labels=labels
    )
    networks = Networks(teachers=(teacher,), student=teacher)
    check_learnable(images, teacher)
    scored_on(scored, images, teacher)
    check_room(root, networks, QuantisationConfig(), DistillationConfig(steps=steps), in_float=False)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"scored": "npz:absent.npz#images"}, "npz:absent.npz#images: there is no file absent.npz"),
        ({"scored": "npz:set.npz#images,missing"}, "npz:set.npz#images,missing: no array 'missing'"),
        (
            {"scored": "npz:set.npz#images,far"},
            "--eval-data has labels 0 to 23, but the network has 10 classes, 0 to 9",
        ),
        ({"scored": "images:broken"}, "images:broken: none of 2 images can be read; the first: cannot identify image"),
        ({"data": "images:broken"}, "images:broken: none of 2 images can be read; the first: cannot identify image"),
        ({"data": "npz:set.npz#images,far", "labelled": True}, "--data has labels 0 to 23, but the network has 10"),
    ],
)
def test_what_is_wrong_with_images_and_labels_is_said(
    arguments: dict[str, Any], line: str, folder: Path, teacher: Network
) -> None:
    checked(teacher, folder, data="npz:set.npz#images", scored="npz:set.npz#images,labels")
    with pytest.raises(UserError, match=re.escape(line)):
        checked(teacher, folder, **arguments)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--device", "cuda:9"), "--device cuda:9: "),
        (("--backend", "tensorrt", "--timing-cache", "broken"), "--timing-cache broken is a folder: name a file"),
        (("--backend", "tensorrt", "--timing-cache", "set.npz/cache"), "--timing-cache set.npz/cache: "),
    ],
)
def test_what_is_wrong_with_the_machine_is_said_before_any_folder_is_made(
    arguments: tuple[str, ...], line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *QUICK, *arguments, "--output", "new/run"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")
    assert not (folder / "new").exists()


def test_a_mistyped_source_removes_nothing_of_the_folder_that_is_to_be_overwritten(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {"state/trained.safetensors", "state/settings.json", "bundle/manifest.json"}
    for name in kept:
        (folder / "old" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "old" / name).write_bytes(b'{"data": "digits", "files": {}}')
    assert main(["run", *QUICK, "--data", "npz:sets.npz", "--output", "old", "--overwrite"]) == 2
    assert "there is no file sets.npz" in capsys.readouterr().err
    assert {str(path.relative_to("old")) for path in Path("old").rglob("*") if path.is_file()} == kept


def test_a_disk_without_room_for_the_least_is_said_at_the_start(
    folder: Path, teacher: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = sum(tensor.numel() * 4 for tensor in teacher.folded.state_dict().values())

    def room(free: int) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free})())

    results, checkpoints = 2 * weights + weights // 4, 6 * weights
    for steps, needed, words in ((0, results, "writes {} MB at the least"), (1, checkpoints, "needs {} MB for its tr")):
        room(needed - 1)
        line = re.escape(
            f"has {needed / 1e6:.4g} MB free and a run of this network {words.format(f'{needed / 1e6:.4g}')}"
        )
        with pytest.raises(UserError, match=line):
            checked(teacher, folder, steps=steps)
        room(needed)
        checked(teacher, folder, steps=steps)
    # What an interrupted run has written already makes way for what this one writes.
    (folder / "state").mkdir()
    (folder / "state" / "checkpoint.safetensors").write_bytes(bytes(3 * weights))
    room(3 * weights)
    checked(teacher, folder, steps=1)


def test_a_corrected_evaluation_goes_on_with_what_is_finished(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images to score on are gone when it comes to that; the run goes on with others, and trains nothing again."""
    arguments = ["run", *QUICK, "--max-drop", "100", "--output", "run"]

    def no_room(*arguments: object, **more: object) -> None:
        raise UserError("the disk was full here")

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.run.validate_network", no_room)
        assert main([*arguments, "--eval-data", "npz:set.npz#images"]) == 2
    trained = (folder / "run" / "state" / "trained.safetensors").stat().st_mtime_ns
    (folder / "set.npz").rename(folder / "moved.npz")
    capsys.readouterr()

    assert main([*arguments, "--eval-data", "npz:moved.npz#images", "--resume"]) in (0, 1, 4)
    assert (folder / "run" / "state" / "trained.safetensors").stat().st_mtime_ns == trained
    assert (folder / "run" / "bundle" / "manifest.json").is_file()


def test_what_a_run_settles_may_be_typed_when_it_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", *QUICK, "--max-drop", "100", "--output", "run"]

    def no_room(*arguments: object, **more: object) -> None:
        raise UserError("the disk was full here")

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.run.validate_network", no_room)
        assert main(arguments) == 2
        settled = json.loads((folder / "run" / "state" / "settings.json").read_text())["settled"]
        held_out, (taps,) = settled["held-out-images"], settled["taps"]
        assert held_out > 100 and settled["targets"] == "image" and settled["batch-size"] == 128 and taps
        for flag, value in (("--held-out-images", held_out + 1), ("--targets", "mirror"), ("--taps", taps[0])):
            assert main([*arguments, flag, str(value), "--resume"]) == 2
            assert f"error: --resume: {flag} was " in capsys.readouterr().err
    typed = ["--held-out-images", str(held_out), "--targets", "image", "--augmentation", "crop", "--taps", *taps]
    trained = (folder / "run" / "state" / "trained.safetensors").stat().st_mtime_ns
    assert main([*arguments, *typed, "--image-size", "8", "--resume"]) in (0, 1, 4), capsys.readouterr().err
    assert (folder / "run" / "state" / "trained.safetensors").stat().st_mtime_ns == trained


def identity(source: ImageSource) -> str:
    training, held_out = split_held_out(len(source), 0)
    images = SplitImages(source=source, training=training, held_out=held_out, workers=0, augmentation="none")
    return images_identity(images)


@pytest.mark.parametrize("most", [2 << 30, 0], ids=["whole files", "pieces of files"])
def test_images_are_the_same_wherever_they_lie(most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.setup.identity._WHOLE", most)
    generator = np.random.default_rng(0)
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    for index in range(100):
        pixels = generator.integers(0, 256, (9, 8, 3), np.uint8)
        for name in ("here", "there"):
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.bmp")

    def of_folder(name: str) -> str:
        return identity(open_folder(str(tmp_path / name), labelled=False).images)

    first = of_folder("here")
    assert first == of_folder("there")
    # Any image, the bytes of whose file are as many as before.
    Image.fromarray(pixels + 1).save(tmp_path / "there" / "57.bmp")
    others = [of_folder("there")]
    (tmp_path / "there" / "57.bmp").write_bytes(b"")
    others.append(of_folder("there"))
    (tmp_path / "there" / "57.bmp").unlink()
    (tmp_path / "there" / "57.bmp").symlink_to(tmp_path / "absent")
    others.append(of_folder("there"))
    (tmp_path / "here" / "20.bmp").unlink()
    others.append(of_folder("here"))
    assert len({first, *others}) == 5


def test_every_image_of_an_array_counts_and_its_layout_does_not() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (700, 3, 8, 8), np.uint8)
    first = identity(ArraySource("a", pixels))
    stored_otherwise = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert identity(ArraySource("b", stored_otherwise)) == first
    pixels[341, 1, 2, 3] ^= 1
    assert identity(ArraySource("a", pixels)) != first
    assert identity(ArraySource("a", pixels[:, :, :4])) != identity(ArraySource("a", pixels[:, :, 4:]))


def test_a_data_set_of_ones_own_is_known_by_its_items() -> None:
    items = [np.full((8, 8, 3), index, np.uint8) for index in range(40)]
    first = identity(ItemSource("mine", items))
    assert identity(ItemSource("other", list(items))) == first
    items[17] = items[16]
    assert identity(ItemSource("mine", items)) != first
    assert identity(ItemSource("mine", items[:39])) != identity(ItemSource("mine", items))
