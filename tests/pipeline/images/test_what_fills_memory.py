"""Archives and images that unpack to more than memory are refused by what they say of themselves, before they are."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from backends.device.bundle_check import room
from backends.device.bundle_check.errors import DeviceError
from backends.device.bundle_check.golden import read_layers
from backends.device.bundle_check.images import _of_arrays
from backends.device.bundle_check.manifest import InputPixels
from calibration.errors import UserError
from pipeline.images.sources.arrays import open_npz
from pipeline.images.sources.decoding import decode_image
from pipeline.images.sources.image_source import UnreadableImage

HUGE = 1 << 45  # bytes: 35 TB
PIXELS = InputPixels(channels=1, height=4, width=4, channel_order="L", mean=(0.0,), std=(1.0,))
_READERS: dict[str, tuple[Callable[[Path], object], type[Exception], str]] = {
    "a run": (lambda path: open_npz(f"{path}#layers", labelled=False), UserError, "of memory are free; store images"),
    "labels of a run": (
        lambda path: open_npz(f"{path}#sound,layers", labelled=True), UserError, "'layers' unpacks to 3.518e.04 GB",
    ),
    "check.py": (
        lambda path: _of_arrays(f"{path}#layers", str(path), ["layers"], PIXELS), DeviceError, "memory are free: store",
    ),
    "what a bundle holds": (read_layers, DeviceError, r"unpacks to 351843720\d+ bytes, and 2147483648 at the most"),
}  # fmt: skip


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A small file whose directory says, as that of an honest one would, that 35 TB of zeros are in it."""
    header, sound = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 43, 1, 2, 2)})
    np.save(sound, np.zeros((2, 1, 4, 4), np.uint8))
    path = tmp_path / "images.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("sound.npy", sound.getvalue())
        written.writestr("tensors.npy", sound.getvalue())
        with written.open("layers.npy", "w", force_zip64=True) as part:
            part.write(header.getvalue() + bytes(1000))
        written.getinfo("layers.npy").file_size = HUGE
    return path


@pytest.mark.parametrize("reader", _READERS)
def test_an_array_is_refused_by_the_size_in_the_directory(reader: str, archive: Path) -> None:
    read, kind, words = _READERS[reader]
    with pytest.raises(kind, match=words):
        read(archive)


def test_an_array_beside_it_is_read(archive: Path) -> None:
    assert len(open_npz(f"{archive}#sound", labelled=False).images) == 2


@pytest.mark.parametrize(
    ("free", "kept", "limit", "fits"),
    [
        ("1000 kB", None, None, True),
        ("999 kB", None, None, False),
        ("1000 kB", "max", None, True),
        ("2000 kB", "1023999", None, False),
        ("2000 kB", None, "1024000", True),
        (None, "1023999", None, False),
    ],
)
def test_what_is_free_is_the_least_that_anybody_says(
    free: str | None, kept: str | None, limit: str | None, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"meminfo": free and f"MemTotal: 9 kB\nMemAvailable:   {free}\nSwap: 1 kB\n", "two": kept, "one": limit}
    for name, text in said.items():
        if text is not None:
            (tmp_path / name).write_text(f"{text}\n")
    monkeypatch.setattr(room, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(room, "_GROUPS", (tmp_path / "two", tmp_path / "one"))
    assert (room.lack_of_room(1_024_000) is None) == fits


def test_a_system_that_says_nothing_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_MEMORY", tmp_path / "absent")
    monkeypatch.setattr(room, "_GROUPS", ())
    assert room.free_memory() is None or room.free_memory() > 1 << 26  # type: ignore[operator]
    monkeypatch.delattr("os.sysconf")
    assert room.free_memory() is None and room.lack_of_room(HUGE) is None


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in (header, *chunks)
    )


def _tiff(width: int, height: int) -> bytes:
    entries = ((256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, height), (279, 99))
    packed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\x00" + struct.pack("<IH", 8, len(entries)) + packed + bytes(104)


_TOO_LARGE = {
    "PNG": _png(60_000, 60_000, (b"IDAT", zlib.compress(bytes(1000)))),
    "TIFF": _tiff(60_000, 60_000),
    "BMP": b"BM" + struct.pack("<IHHIIiiHHIIIIII", 99, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "GIF": b"GIF89a"
    + struct.pack("<HH", 60_000, 60_000)
    + b"\0\0\0,\0\0\0\0"
    + struct.pack("<HHBB", 60_000, 60_000, 0, 8)
    + bytes(9),
    "PPM": b"P6 60000 60000 255\n" + bytes(99),
    "TGA": struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 60_000, 60_000, 24, 0) + bytes(99),
}


@pytest.mark.parametrize("kind", _TOO_LARGE)
def test_an_image_is_refused_by_the_size_in_its_header(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{kind.lower()}"
    path.write_bytes(_TOO_LARGE[kind])
    with pytest.raises(UnreadableImage, match=r"3600000000 pixels\) exceeds limit of 178956970 pixels"):
        decode_image(path, path.name)
