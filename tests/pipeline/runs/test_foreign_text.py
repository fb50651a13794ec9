"""What images, libraries and warnings say reaches neither terminal nor page as it is: one run that meets all of it."""

from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, TiffImagePlugin

from tests.command_line import command

#: A colour, a window's title, a line drawn over, a direction turned round, another way of writing an escape.
NASTY = "a\x1b[31m\x1b]0;t\x07b\rc\u202egpj\x9b2J"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
NETWORK = f"""
import logging
import warnings

import torch
from torch import nn

NASTY = {NASTY!r}


class Net(nn.Sequential):
    def forward(self, x):
        warnings.warn(NASTY, stacklevel=1)
        logging.getLogger("library").warning("%s", NASTY)
        return super().forward(x)


def build():
    warnings.warn(NASTY, stacklevel=1)
    logging.getLogger("library").error("it said %s", NASTY)
    torch.manual_seed(0)
    return Net(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
"""


def _images(folder: Path) -> None:
    """Images whose EXIF data, text chunks, comments and tags are commands to a terminal; one of them is damaged."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(24):
        image = Image.fromarray(draw.integers(0, 255, (16, 16, 3), np.uint8))
        exif = Image.Exif()
        exif[0x010E] = exif[0x013B] = exif[0x8298] = NASTY  # description, artist, copyright
        text = PngImagePlugin.PngInfo()
        text.add_text("Comment", NASTY.encode("latin-1", "replace").decode("latin-1"), zip=number % 2 == 0)
        text.add_itxt("Title", NASTY, tkey=NASTY)
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[270] = NASTY.encode("ascii", "replace").decode()
        kinds: dict[str, dict[str, Any]] = {
            "a.jpg": {"exif": exif, "comment": NASTY.encode("utf-8"), "quality": 95},
            "b.png": {"pnginfo": text, "exif": exif},
            "c.tif": {"tiffinfo": tags},
            "d.webp": {"exif": exif, "xmp": NASTY.encode("utf-8"), "lossless": True},
        }
        name, settings = list(kinds.items())[number % 4]
        image.save(folder / f"{number}{name}", **settings)
    whole = (folder / "1b.png").read_bytes()
    (folder / f"{NASTY}.png").write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize("talk", ["--verbose", None])
@pytest.mark.filterwarnings("always")
@pytest.mark.usefixtures("little_time_for_latency")
def test_terminal_page_and_report_show_what_is_said_and_obey_none_of_it(talk: str | None, tmp_path: Path) -> None:
    _images(tmp_path / "photos")
    (tmp_path / "talking.py").write_text(NETWORK, encoding="utf-8")
    run = command(
        *("run", "--teacher", "python:talking:build", "--data", "images:photos", "--image-size", "16"),
        *("--mean", "0.5", "--std", "0.25", "--steps", "0", "--calibration-images", "8", "--output", "run"),
        *([talk] if talk else []),
        cwd=tmp_path,
    )
    logging.captureWarnings(False)
    assert run.status in (0, 4), run.err
    assert "it said a␛[31m␛]0;t" in run.err, "what a library logs is shown"
    assert ("UserWarning" in run.err) == (talk is not None), "and its warnings, where they are asked for"
    written = {path.name: path.read_text("utf-8") for path in (tmp_path / "run").rglob("*.json")}
    written |= {path.name: path.read_text("utf-8") for path in (tmp_path / "run").rglob("*.html")}
    assert "1 image" in written["report.html"] or "unreadable" in written["report.json"]
    for name, text in {"out": run.out, "err": run.err, **written}.items():
        assert not (obeyed := OBEYED.search(text)), f"{name}: {text[max(0, obeyed.start() - 60) : obeyed.end() + 20]!r}"
    checked = command("validate", str(tmp_path / "run" / "bundle"), *([talk] if talk else []))
    assert not OBEYED.search(checked.out + checked.err)


def test_what_a_library_logs_is_plain_in_commands_that_say_nothing_of_their_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loud() -> list[object]:
        warnings.warn(NASTY, stacklevel=1)
        logging.getLogger("library").warning("it said %s", NASTY)
        return []

    monkeypatch.setattr("pipeline.setup.machine.doctor.examine", loud)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        ended = command("doctor")
        logging.captureWarnings(False)
    assert "it said a␛[31m" in ended.err
    assert not OBEYED.search(ended.out + ended.err)
