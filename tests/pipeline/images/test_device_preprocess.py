"""The bundle's preprocess.py: without torch, from files to the network's input, equal to the run's to the bit."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.images import device_preprocess
from pipeline.images.data import open_images
from pipeline.images.loading import Reader
from pipeline.images.preprocessing import Preprocessing, normalise, preprocessing_from_fields
from tests.vouched import seal

RULES: dict[str, dict[str, Any]] = {
    "imagenet": {},
    "bicubic crop": {"height": 96, "resize": 101, "interpolation": "bicubic", "mean": 0.5, "std": 0.5},
    "stretched, then cropped": {"height": 64, "width": 80, "resize": [90, 75], "interpolation": "lanczos"},
    "FastestDet": {
        **{"height": 352, "fit": "stretch", "channel_order": "BGR", "mean": 0, "std": 1},
        "interpolation": "bilinear-opencv",
    },
    "YOLO": {"height": 192, "width": 320, "fit": "letterbox", "mean": 0, "std": 1},
    "YOLOX": {
        **{"height": 208, "fit": "letterbox", "fill": [0, 114, 255], "placement": "top-left"},
        **{"channel_order": "BGR", "divisor": 1, "mean": 0, "std": 1},
        "interpolation": "bilinear-opencv",
    },
    "grey, as OpenCV": {"height": 48, "channels": 1, "resize": 55, "interpolation": "bilinear-opencv"},
    "grey": {"height": 48, "channels": 1, "fit": "letterbox", "mean": 0.1307, "std": 0.3081, "stored_bits": 12},
}

#: Blocks torch, as on a device that has none, and prepares all files named through the module.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
sys.path.insert(0, sys.argv[1])
from preprocess import load
import numpy as np
np.save(sys.argv[2], load(sys.argv[3:]))
"""


def _bundle(folder: Path, rule: Preprocessing) -> Path:
    """A folder with what of a bundle preprocess.py needs."""
    folder.mkdir(exist_ok=True)
    shutil.copy(str(device_preprocess.__file__), folder / "preprocess.py")
    seal(folder / "manifest.json", {"format": 4, "preprocessing": rule.to_json()})
    return folder


def _odd_images(folder: Path) -> None:
    """Files of every usual mode and format, some turned by EXIF."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    colour = Image.fromarray(generator.integers(0, 256, (37, 61, 3), np.uint8))
    deep = generator.integers(0, 4096, (40, 30), np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    colour.save(folder / "turned.jpg", exif=exif)
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    colour.convert("L").save(folder / "grey.png")
    colour.convert("LA").save(folder / "grey-alpha.png")
    colour.convert("RGBA").save(folder / "alpha.png")
    colour.quantize(16).save(folder / "palette.png", transparency=bytes([0] * 4))
    colour.convert("1").save(folder / "bits.tif")
    colour.save(folder / "colour.tif")
    colour.save(folder / "colour.jp2")
    colour.save(folder / "colour.webp", lossless=True)
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(deep).save(folder / "deep.tif")
    Image.fromarray(deep.astype(np.int32)).save(folder / "wide.tif")
    frames = [Image.fromarray(generator.integers(0, 256, (20, 24, 3), np.uint8)) for _ in range(3)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(generator.integers(0, 256, (1, 700, 3), np.uint8)).save(folder / "strip.bmp")
    Image.fromarray(generator.integers(0, 256, (1, 1, 3), np.uint8)).save(folder / "pixel.ppm")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, shared_folder: Path) -> Path:
    """A folder of odd files and of real photographs of many sizes."""
    folder = tmp_path_factory.mktemp("pictures") / "all"
    _odd_images(folder)
    for path in sorted((shared_folder / "data" / "photos").iterdir())[::6]:
        shutil.copy(path, folder)
    return folder


def _of_the_run(folder: Path, rule: Preprocessing) -> tuple[list[Path], NDArray[np.float32]]:
    """The files in the run's order and what the run makes of them."""
    source = open_images(f"images:{folder}", rule)
    reader = Reader(source, rule)
    images = [reader.plain(index) for index in range(len(source))]
    assert reader.bad == {}
    files = [folder / name for name in source.files]  # type: ignore[attr-defined]  # a folder's
    return files, normalise(torch.stack([image for image in images if image is not None]), rule).numpy()


@pytest.mark.parametrize("name", RULES)
def test_files_become_what_the_run_makes_of_them(name: str, pictures: Path, tmp_path: Path) -> None:
    rule = preprocessing_from_fields(RULES[name], where=name)
    files, expected = _of_the_run(pictures, rule)
    assert len(files) > 30
    written = tmp_path / "inputs.npy"
    bundle = _bundle(tmp_path / "bundle", rule)
    subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(bundle), str(written), *map(str, files)], check=True, cwd=tmp_path
    )
    inputs = np.load(written)
    assert inputs.dtype == np.float32
    assert inputs.shape == (len(files), rule.channels, rule.height, rule.width)
    assert np.array_equal(inputs, expected)


def test_the_command_writes_an_archive(pictures: Path, tmp_path: Path) -> None:
    rule = preprocessing_from_fields(RULES["YOLO"], where="test")
    files, expected = _of_the_run(pictures, rule)
    bundle = _bundle(tmp_path / "bundle", rule)
    command = [sys.executable, str(bundle / "preprocess.py"), str(pictures), "--output", "x.npz"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"x.npz: inputs float32 [{len(files)}, 3, 192, 320]\n"
    with np.load(tmp_path / "x.npz") as archive:
        assert archive["names"].tolist() == [str(file) for file in files]
        assert np.array_equal(archive["inputs"], expected)


def _module(bundle: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("preprocess", bundle / "preprocess.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("absent", ["PIL", "numpy"])
def test_an_absent_package_is_named_in_one_line(absent: str, tmp_path: Path) -> None:
    bundle = _bundle(tmp_path / "bundle", preprocessing_from_fields({}, where="a test"))
    # As on a device that has no such package: its import fails, whoever asks for it.
    (tmp_path / "site" / absent).mkdir(parents=True)
    broken = f'raise ModuleNotFoundError("No module named {absent!r}", name={absent!r})'
    (tmp_path / "site" / absent / "__init__.py").write_text(broken)
    for command, status in (
        ([str(bundle / "preprocess.py"), "x.png", "--output", "x.npz"], 2),
        (["-c", "import preprocess"], 1),
    ):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=bundle,
            env={"PYTHONPATH": f"{tmp_path / 'site'}:{bundle}"},
            capture_output=True,
            text=True,
            check=False,
        )
        line = f"No module named '{absent}'): pip install numpy pillow"
        assert done.returncode == status and done.stderr.splitlines()[-1].endswith(line), done.stderr
        assert status == 1 or (done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1)


def test_a_broken_image_is_named_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = _module(_bundle(tmp_path / "bundle", preprocessing_from_fields({}, where="test")))
    broken, output = tmp_path / "a.jpg", tmp_path / "x.npz"
    broken.write_bytes(b"no image")
    assert module.main([str(broken), "--output", str(output)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"left out: {broken} cannot be read as an image: cannot identify image file")
    assert said.endswith("error: none of 1 images can be read\n")
    assert module.main([str(tmp_path / "absent.png"), "--output", str(output)]) == 2
    assert "absent.png cannot be read as an image: No such file or directory" in capsys.readouterr().err
    Image.new("RGB", (9, 9)).save(broken)
    assert module.main([str(broken), "--output", str(tmp_path / "no" / "x.npz")]) == 2
    assert "No such file or directory" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "bundle"]


def test_a_manifest_that_does_not_vouch_for_itself_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = _bundle(tmp_path / "bundle", preprocessing_from_fields({}, where="test"))
    module, manifest = _module(bundle), bundle / "manifest.json"
    tree = json.loads(manifest.read_text())
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    command = [str(tmp_path / "a.png"), "--output", str(tmp_path / "x.npz")]
    assert module.main(command) == 0
    capsys.readouterr()
    edited = tree | {"preprocessing": tree["preprocessing"] | {"divisor": 1}}
    for wrong, line in (
        (edited, "its own SHA-256 differs"),
        (tree | {"sha256": None}, "its own SHA-256 differs"),
        ({"format": 4, "preprocessing": tree["preprocessing"]}, "'sha256'"),
        ({"preprocessing": tree["preprocessing"]}, "'format'"),
    ):
        manifest.write_text(json.dumps(wrong))
        assert module.main(command) == 2
        assert capsys.readouterr().err == f"error: {manifest} is missing or damaged ({line}): copy the bundle anew\n"
        with pytest.raises(ValueError, match="is missing or damaged"):
            module.load(tmp_path / "a.png")
    # Manifests were not hashed then; check.py says so.
    manifest.write_text(json.dumps({"format": 2, "preprocessing": tree["preprocessing"]}))
    assert module.main(command) == 0


def test_the_memory_that_the_command_takes_does_not_grow_with_the_images(tmp_path: Path) -> None:
    module = _module(_bundle(tmp_path / "bundle", preprocessing_from_fields({"height": 224}, where="test")))
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    tracemalloc.start()
    try:
        assert module.main([*[str(tmp_path / "a.png")] * 80, "--output", str(tmp_path / "x.npz")]) == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    with np.load(tmp_path / "x.npz") as written:
        assert written["inputs"].nbytes > 2 * peak, "NumPy writes 16 MiB at a time"


def test_of_many_files_the_broken_are_named_counted_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = _module(_bundle(tmp_path / "bundle", preprocessing_from_fields({"height": 16}, where="test")))
    folder, output = tmp_path / "photos", tmp_path / "x.npz"
    folder.mkdir()
    for name in "abcd":
        Image.new("RGB", (20, 20), "red").save(folder / f"{name}.png")
    (folder / "b.png").write_bytes(b"no image")
    (folder / "d.png").write_bytes((folder / "d.png").read_bytes()[:60])
    assert module.main([str(folder), "--output", str(output)]) == 1
    said = capsys.readouterr()
    assert [line.partition(" cannot be read")[0] for line in said.err.splitlines()] == [
        f"left out: {folder / name}" for name in ("b.png", "d.png")
    ]
    assert said.out == f"{output}: inputs float32 [2, 3, 16, 16], 2 images left out\n"
    with np.load(output) as written:
        assert written["names"].tolist() == [str(folder / name) for name in ("a.png", "c.png")]
        assert np.array_equal(written["inputs"], module.load([folder / "a.png", folder / "c.png"]))


def test_arrays_and_pictures_are_taken_as_files_are(tmp_path: Path) -> None:
    module = _module(_bundle(tmp_path / "bundle", preprocessing_from_fields({"height": 16}, where="test")))
    array = np.random.default_rng(1).integers(0, 256, (4, 20, 30, 3), np.uint8)
    whole = module.load(array)
    assert whole.shape == (4, 3, 16, 16)
    assert np.array_equal(module.load(array.transpose(0, 3, 1, 2)), whole)
    assert np.array_equal(module.load(list(array)), whole)
    assert np.array_equal(module.load([Image.fromarray(image) for image in array]), whole)
    Image.fromarray(array[2]).save(tmp_path / "2.png")
    assert np.array_equal(module.load(tmp_path / "2.png"), whole[2:3])
    prepared = array[:, :16, :16]  # of the network's own size: taken as they are
    by_hand = (prepared.transpose(0, 3, 1, 2) / 255 - np.reshape([0.485, 0.456, 0.406], (1, 3, 1, 1))) / np.reshape(
        [0.229, 0.224, 0.225], (1, 3, 1, 1)
    )
    assert np.allclose(module.load(prepared), by_hand, atol=1e-6)
    wrong: Any
    for wrong in (array.astype(np.float32), array[..., :2], []):
        with pytest.raises(ValueError, match=r"uint8|no images"):
            module.load(wrong)


def _letterbox_by_hand(width: int, height: int, rule: Preprocessing) -> tuple[int, int, int, int]:
    """Left, top, right and bottom border of Ultralytics' LetterBox, with its own arithmetic of halves and tenths."""
    ratio = min(rule.height / height, rule.width / width)
    half_width, half_height = (rule.width - round(width * ratio)) / 2, (rule.height - round(height * ratio)) / 2
    left, right = round(half_width - 0.1), round(half_width + 0.1)
    top, bottom = round(half_height - 0.1), round(half_height + 0.1)
    return left, top, right, bottom


@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (333, 499), (640, 384), (641, 97), (10, 11), (7, 700), (1, 1)]
)
def test_letterboxes_lie_where_ultralytics_has_them(size: tuple[int, int]) -> None:
    rule = preprocessing_from_fields({"width": 640, "height": 384, "fit": "letterbox"}, where="test")
    white = Image.new("RGB", size, (255, 255, 255))
    pixels = device_preprocess.pixels_from_image(white, rule.settings)
    left, top, right, bottom = _letterbox_by_hand(*size, rule)
    expected = np.full((3, 384, 640), 114, np.uint8)
    expected[:, top : 384 - bottom, left : 640 - right] = 255
    assert np.array_equal(pixels, expected)


def _as_opencv(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """cv2.resize with INTER_LINEAR, number by number: shares of 2048, rows first, each product shifted by itself."""

    def between(place: int, stored: int, size: int) -> tuple[int, float]:
        at = np.float32((place + 0.5) * (stored / size) - 0.5)
        first = math.floor(at)
        return first, float(at - np.float32(first))

    def share(part: float) -> int:
        return round(float(np.float32(part) * np.float32(2048)))

    result = np.zeros((height, width), np.uint8)
    rows, columns = pixels.shape
    for y in range(height):
        top, down = between(y, rows, height)
        for x in range(width):
            left, across = between(x, columns, width)
            if left < 0 or left >= columns - 1:
                left, across = min(max(left, 0), columns - 1), 0.0
            total = 2
            for row, part in ((top, 1 - down), (top + 1, down)):
                line = pixels[min(max(row, 0), rows - 1)]
                value = int(line[left]) * share(1 - across) + int(line[min(left + 1, columns - 1)]) * share(across)
                total += (value >> 4) * share(part) >> 16
            result[y, x] = total >> 2
    return result


# SHA-256 of what opencv-python-headless 5.0.0 and 4.12.0 make of `_noise`, by size (height, width) before and after.
OPENCV_RESULTS = [
    ((48, 64), (35, 35), "92dcb90f488d10e4"),
    ((9, 8), (20, 31), "0a357f9b9fc1718a"),
    ((375, 500), (352, 352), "cfdb6be0b3ed2359"),
    ((64, 64), (32, 32), "53b0ca60c3098ae1"),
    ((30, 3), (4, 40), "72aa8a1ae1ed3b7e"),
    ((480, 640), (240, 320), "96d566eade5918c4"),
    ((1, 17), (5, 3), "a91f61b6dbd07aad"),
]


def _noise(height: int, width: int, channels: int) -> NDArray[np.uint8]:
    """The same bytes everywhere."""
    numbers = np.arange(height * width * channels, dtype=np.uint64)
    return ((numbers * 2654435761 % 4294967296) >> 11).astype(np.uint8).reshape(height, width, channels)


@pytest.mark.parametrize(("before", "after", "digest"), OPENCV_RESULTS)
def test_scaling_is_opencvs_to_the_bit(before: tuple[int, int], after: tuple[int, int], digest: str) -> None:
    settings = {"interpolation": "bilinear-opencv"}
    colour, size = _noise(*before, 3), (after[1], after[0])
    scaled = np.asarray(device_preprocess.scaled(Image.fromarray(colour), size, settings))
    assert hashlib.sha256(scaled.tobytes()).hexdigest()[:16] == digest
    grey = Image.fromarray(np.ascontiguousarray(colour[:, :, 1]))
    assert np.array_equal(np.asarray(device_preprocess.scaled(grey, size, settings)), scaled[:, :, 1])
    if after[0] * after[1] < 5000:
        assert np.array_equal(_as_opencv(colour[:, :, 1], *size), scaled[:, :, 1])
    # A part is what it would be alone.
    box = (1, 0, before[1], before[0])
    alone = device_preprocess.scaled(Image.fromarray(colour[:, 1:]), size, settings)
    assert device_preprocess.scaled(Image.fromarray(colour), size, settings, box) == alone


def test_a_letterbox_by_hand() -> None:
    """4 x 2 pixels in a frame of 5 x 5 scale by 1.25 to 5 x 2 (2.5 rounds to even): one row above, two below."""
    rule = preprocessing_from_fields(
        {"height": 5, "fit": "letterbox", "fill": [1, 2, 3], "channel_order": "BGR"}, where="test"
    )
    image = Image.new("RGB", (4, 2), (30, 20, 10))
    pixels = device_preprocess.pixels_from_image(image, rule.settings)
    assert pixels[:, :, 0].T.tolist() == [[1, 2, 3], [10, 20, 30], [10, 20, 30], [1, 2, 3], [1, 2, 3]]


def test_deep_grey_keeps_the_upper_bits_that_are_stored() -> None:
    deep = Image.fromarray(np.array([[0, 15, 16, 4095, 4096, 65535]], np.uint16))
    assert np.asarray(device_preprocess.plain_image(deep, 12)).tolist() == [[0, 0, 1, 255, 255, 255]]
    assert np.asarray(device_preprocess.plain_image(deep, 16)).tolist() == [[0, 0, 0, 15, 16, 255]]
