"""The report's page in a real browser: nothing is cut, nothing scrolls sideways, names stay legible on a telephone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.report.html import page
from pipeline.report.schema import FloatLayer, Kernels, Layer, Report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
WIDTHS = (390, 768, 1440)
LONG = "features.denseblock4.denselayer16.inverted_residual_bottleneck.attention.relative_position_bias_table_conv2"
UNBROKEN = "x" * 70

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no headless browser here, such as Debian's chromium"),
]

#: Measures every frame and leaves the figures as the document's text.
MEASURE = """
addEventListener("load", () => {
  const found = {}, box = element => element.getBoundingClientRect();
  for (const frame of document.querySelectorAll("iframe")) {
    const inner = frame.contentDocument, width = inner.documentElement.clientWidth;
    const shown = [...inner.querySelectorAll("td, th, li, p, dd, dt, h1, code")].filter(e => e.getClientRects().length);
    found[frame.id] = {
      width,
      scroll: inner.documentElement.scrollWidth,
      scrolling: [...inner.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth).length,
      outside: shown.filter(e => box(e).right > width + 1).map(e => e.textContent.slice(0, 60)),
      kernels: [...inner.querySelectorAll("[data-label=Kernel]")].filter(e => box(e).width > 40).length,
      names: [...inner.querySelectorAll("td > code")].map(
        e => [e.textContent.length, new Set([...e.getClientRects()].map(part => Math.round(part.top))).size]
      ),
      labels: [...inner.querySelectorAll("svg text")].filter(e => box(e).left < box(e.ownerSVGElement).left - 1).length,
      chart: [...inner.querySelectorAll("svg text")].map(e => box(e).height),
    };
  }
  document.body.textContent = JSON.stringify(found);
});
"""


def _long_report(make_report: Callable[..., Report]) -> Report:
    plain = make_report()
    layers = (
        *plain.layers,
        Layer(name=LONG, kind="conv", weight_bits=8, sqnr_db=31.5, integer=True, reason="a remark " * 12),
        Layer(name=UNBROKEN, kind="linear", weight_bits=None, sqnr_db=None, integer=False, reason=UNBROKEN),
    )
    floats = (FloatLayer(name=LONG, reason="the runtime has no integer kernel for it " * 3),)
    return make_report(
        teacher=f"python:{LONG}",
        student=f"python:{LONG}",
        layers=layers,
        kernels=Kernels(integer=19, float=1, float_layers=floats),
        notes=(f"{LONG}: {UNBROKEN}", "classes " + ", ".join(["a very long class name"] * 20)),
        versions={"faqd": "0.1.0", "torch": "2.15.0+cu130.a-local-build-with-a-long-tag", LONG: "1"},
    )


def _measured(report: Report, folder: Path) -> dict[str, Any]:
    text = html.escape(page(report), quote=True)
    frames = "".join(
        f'<iframe id="{width}" style="width:{width}px;height:900px;border:0" srcdoc="{text}"></iframe>'
        for width in WIDTHS
    )
    (folder / "all.html").write_text(
        f"<!doctype html><body><script>{MEASURE}</script>{frames}</body>", encoding="utf-8"
    )
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={folder / 'profile'}",
    ]
    done = subprocess.run(
        [*command, "--window-size=1600,1200", "--dump-dom", (folder / "all.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (body,) = re.findall(r"<body>(.*)</body>", done.stdout, re.DOTALL)
    figures: dict[str, Any] = json.loads(html.unescape(body))
    return figures


def test_nothing_is_cut_and_names_stay_legible(make_report: Callable[..., Report], tmp_path: Path) -> None:
    report = _long_report(make_report)
    measured = _measured(report, tmp_path)
    assert list(measured) == [str(width) for width in WIDTHS]
    for width, figures in measured.items():
        assert figures["width"] == int(width)
        assert figures["scroll"] <= figures["width"], width
        assert figures["scrolling"] == 0, width
        assert figures["outside"] == [], width
        assert figures["kernels"] == len(report.layers), width
        for length, lines in figures["names"]:
            assert lines <= -(-length // 14), (width, length, lines)  # at least 14 letters on each
        assert min(figures["chart"]) > 9 and figures["labels"] == 0, width


def test_an_ordinary_report_needs_no_scrolling_either(
    make_report: Callable[..., Report], elsewhere: Report, tmp_path: Path
) -> None:
    for number, report in enumerate((make_report(), elsewhere)):
        (tmp_path / str(number)).mkdir()
        for width, figures in _measured(report, tmp_path / str(number)).items():
            assert (figures["scroll"], figures["scrolling"], figures["outside"]) == (int(width), 0, []), width
