"""What is no regular file is refused by one line wherever a user can name one: a pipe would be waited for for good."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backends.device.bundle_check.errors import DeviceError
from backends.device.bundle_check.images import _of_arrays
from backends.device.bundle_check.manifest import InputPixels
from calibration.errors import UserError
from pipeline.config.file import read_toml
from pipeline.images.data_names import with_kind
from pipeline.images.sources.arrays import open_npz
from pipeline.images.sources.decoding import decode_image, frame_count
from pipeline.images.sources.folder import class_lines, open_folder
from pipeline.images.sources.image_source import UnreadableImage
from pipeline.networks.checkpoints.files import read_checkpoint
from pipeline.setup.identity import path_identity
from pipeline.tools.regular_file import irregular

_READERS: dict[str, Callable[[Path], object]] = {
    "config": read_toml,
    "weights": read_checkpoint,
    "classes": lambda path: class_lines(path, "--classes"),
    "arrays": lambda path: open_npz(f"{path}#images", labelled=False),
    "data": lambda path: with_kind(str(path), ["npz", "images"]),
}


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    return path


@pytest.fixture
def listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)  # a socket's path may have about a hundred characters
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket")
        yield tmp_path / "socket"


@pytest.mark.parametrize("reader", [name for name in _READERS if name != "config"])
def test_a_pipe_is_not_waited_for(reader: str, pipe: Path) -> None:
    with pytest.raises(UserError, match=r"is a pipe, no regular file: save what it holds as a file"):
        _READERS[reader](pipe)


@pytest.mark.parametrize("reader", _READERS)
def test_a_device_and_a_link_to_it_are_not_read(reader: str, tmp_path: Path) -> None:
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (Path("/dev/zero"), tmp_path / "zero"):
        with pytest.raises(UserError, match="is a device, no regular file"):
            _READERS[reader](path)


def test_a_socket_is_named(listening: Path) -> None:
    assert str(irregular(listening)).startswith("is a socket")


def test_files_and_folders_and_nothing_are_no_fault_of_their_kind(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert [irregular(path) for path in (tmp_path, tmp_path / "file", tmp_path / "absent", Path("a\0b"))] == [None] * 4


def test_a_pipe_among_images_is_left_out_by_name(pipe: Path) -> None:
    Image.new("RGB", (4, 4)).save(pipe.with_name("sound.png"))
    images = open_folder(str(pipe.parent), labelled=False).images
    assert images.name == f"images:{pipe.parent}" and len(images) == 2
    with pytest.raises(UnreadableImage, match="no regular file"):
        decode_image(pipe, pipe.name)
    assert frame_count(pipe) == 1
    assert path_identity(pipe) is None and path_identity(pipe.parent) is not None


@pytest.mark.parametrize("stored", ["pipe", "array", "text", "zip without end"])
def test_the_check_on_a_device_refuses_what_is_no_archive_of_arrays(stored: str, pipe: Path, tmp_path: Path) -> None:
    path = pipe if stored == "pipe" else tmp_path / "images.npz"
    if stored == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif stored == "text":
        path.write_text("no archive")
    elif stored == "zip without end":
        path.write_bytes(b"PK\x03\x04" + bytes(60))
    pixels = InputPixels(channels=1, height=4, width=4, channel_order="L", mean=(0.0,), std=(1.0,))
    with pytest.raises(DeviceError, match="no regular file" if stored == "pipe" else "cannot be read"):
        _of_arrays(str(path), str(path), ["images"], pixels)
