"""What results show: text in a terminal, a card in a notebook, and nothing of what they are called taken for HTML."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import faqd
from tests.pipeline.conftest import report_elsewhere, report_with

pytestmark = pytest.mark.usefixtures("all_digits_narrow")

EVIL = '<script>alert("1")</script>\x1b[31m\u202e'
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 3, 16, 16), np.uint8)


class Seen(HTMLParser):
    """The tags and the text of a card; a tag that is not closed is an error."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.open, self.text, self.pages = list[str](), list[str](), "", list[str]()
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("img", "meta", "line", "polyline", "wbr"):
            self.open.append(tag)
        self.pages += [value for name, value in attributes if name == "srcdoc" and value]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


def shown(result: Any) -> tuple[str, Seen]:
    """What a terminal and a notebook show of a result."""
    printed = list[str]()

    class Printer:
        """IPython's, as far as results know it."""

        def text(self, words: str) -> None:
            printed.append(words)

    result._repr_pretty_(Printer(), False)
    assert printed == [str(result)]
    assert all(len(line) <= 100 for line in str(result).splitlines()), str(result)
    return str(result), Seen(result._repr_html_())


@pytest.fixture(scope="module")
def network() -> faqd.Network:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    example = torch.zeros(2, 3, 16, 16)
    return faqd.capture(model, example, name=EVIL, classes=("cat", EVIL, "<b>dog</b>"), mean=(0.5,), std=(0.25,))


@pytest.fixture(scope="module")
def images(network: faqd.Network) -> faqd.Images:
    return faqd.open_images(PIXELS, network)


@pytest.fixture(scope="module")
def student(network: faqd.Network, images: faqd.Images) -> faqd.Student:
    calibrated = faqd.prepare(network, images, bits=4)
    return faqd.distil(calibrated, network, images, steps=3, batch_size=8, learning_rate=1e-4)


RESULTS: dict[str, Callable[[faqd.Network, faqd.Images, faqd.Student], object]] = {
    "network": lambda n, i, s: n,
    "images": lambda n, i, s: i,
    "student": lambda n, i, s: s,
    "artifact": lambda n, i, s: faqd.convert(s),
    "report": lambda n, i, s: faqd.validate(faqd.convert(s)),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_names_are_shown_and_never_obeyed(
    kind: str, network: faqd.Network, images: faqd.Images, student: faqd.Student
) -> None:
    result = RESULTS[kind](network, images, student)
    text, card = shown(result)
    assert not {"script", "b"} & set(card.tags)
    for words in (text, card.text):
        assert "\x1b" not in words and "\u202e" not in words
    if kind != "images":
        assert "<script>alert" in text.replace("\n", "") and "<script>alert" in card.text
    assert len(repr(result)) < 200 or kind == "report"


def test_each_says_what_it_is(network: faqd.Network, images: faqd.Images, student: faqd.Student) -> None:
    text, card = shown(network)
    for words in (text, card.text):
        assert "16x16 px" in words and "mean 0.5/0.5/0.5" in words and "batch x 3" in words and "cat" in words
    text, card = shown(images)
    for words in (text, card.text):
        assert "images at hand: 16 images" in words and "14, of which 14 calibrate" in words
    assert card.tags.count("img") == 1
    text, card = shown(student)
    for words in (text, card.text):
        assert "ONNX Runtime W4A8" in words and "2 of 2 weighted layers multiply integers" in words
        assert "on 14 images of images at hand" in words and "3 steps, held-out loss" in words
    assert "polyline" in card.tags and "svg" in card.tags  # the curve of its training
    artifact = faqd.convert(student)
    text, card = shown(artifact)
    for words in (text, card.text):
        assert "float32 [batch, 3, 16, 16]" in words and "output (classes)" in words
    assert card.tags.count("dl") == 1  # the two sizes


def test_a_report_shows_its_table_its_charts_and_its_page() -> None:
    report = report_with()
    text, card = shown(report)
    assert text.splitlines()[0] == "cifar:resnet20 -> ONNX Runtime W4A8, seed 7"
    assert "validated (exit status 0)" in text and "float teacher" in text
    assert card.tags.count("dl") == 3 and "polyline" in card.tags
    for words in ("validated", "91.64 %", "accuracy lost, at most 1.00 points", "head (<Gemm> [no] Q)", "2.12x"):
        assert words in card.text
    (page,) = card.pages
    assert page.startswith("<!doctype html>") and page.count("</html>") == 1
    text, card = shown(report_elsewhere())
    assert "not validated on target" in text and "not validated on target" in card.text


def test_a_card_leaves_the_notebook_around_it_alone(network: faqd.Network) -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", network._repr_html_(), re.DOTALL)
    selectors = [part.strip() for rule in re.findall(r"([^{}]+)\{", style) for part in rule.split(",")]
    assert selectors and all(selector.startswith(".faqd-card") for selector in selectors)


def test_a_bundle_and_a_comparison_show_themselves(tmp_path: Path) -> None:
    config = faqd.RunConfig(
        data=faqd.DataConfig(calibration_images=32),
        distillation=faqd.DistillationConfig(steps=0),
        output=faqd.OutputConfig(folder=tmp_path / "run"),
    )
    report = faqd.run(config)
    bundle = faqd.read_bundle(tmp_path / "run" / "bundle")
    text, card = shown(bundle)
    for words in (text, card.text):
        assert "digits, taught by digits, seed 0" in words and "weights 8, activations 8" in words
        assert "output (classes)" in words
    assert "validated" in card.text and repr(bundle).startswith("<Bundle ")
    for compared in (faqd.compare(bundle), faqd.compare(str(bundle.folder))):
        text, card = shown(compared)
        assert "status             equal (exit status 0)" in text
        assert "equal" in card.text and "rounded tensors" in card.text
    assert faqd.validate(bundle).status == report.status == faqd.validate(bundle.folder).status
    judged = faqd.validate(bundle, "digits")
    assert judged.accuracy.images == 450 and judged.accuracy.metric == "top1"
