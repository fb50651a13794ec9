"""The report: stable JSON, a table of 100 columns, a page that needs nothing else."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from calibration.errors import UserError
from pipeline.report import wording
from pipeline.report.charts import line_chart
from pipeline.report.gate import Gate, verdict
from pipeline.report.html import page
from pipeline.report.printed_table import render_report
from pipeline.report.report_files import write_report
from pipeline.report.schema import Accuracy, Data, FloatLayer, Kernels, Parity, Report, read_report

SCHEMA_1 = {
    "schema": None,
    "status": None,
    "backend": None,
    "bits": ["weights", "activations"],
    "teacher": None,
    "student": None,
    "seed": None,
    "versions": None,
    "host": None,
    "accuracy": ["metric", "images", "teacher", "simulated", "oracle", "runtime"],
    "parity": ["argmax_agreement", "exact_fraction", "max_difference"],
    "kernels": ["integer", "float", "float_layers"],
    "latency": ["batch", "threads", "float_ms", "quantised_ms", "speedup"],
    "size": ["float_bytes", "quantised_bytes"],
    "seconds": None,
    "gates": None,
}


def test_the_keys_and_their_order_are_those_of_schema_1(make_report: Callable[..., Report], elsewhere: Report) -> None:
    for report in (make_report(), elsewhere):
        tree = json.loads(report.to_text())
        assert list(tree)[: len(SCHEMA_1)] == list(SCHEMA_1)
        for key, inner in SCHEMA_1.items():
            if inner is not None:
                assert list(tree[key]) == inner
        assert all(list(gate) == ["name", "limit", "value", "passed"] for gate in tree["gates"])
    assert list(json.loads(elsewhere.to_text())) == list(SCHEMA_1)
    full = make_report().to_json()
    assert list(full["latency"]["float_ms"]) == ["median", "p90"]
    assert list(full["kernels"]["float_layers"][0]) == ["name", "reason"]
    assert list(full)[len(SCHEMA_1) :] == ["distillation", "data", "preprocessing", "notes", "layers"]


def test_a_report_survives_its_file(make_report: Callable[..., Report], elsewhere: Report, tmp_path: Path) -> None:
    for report in (make_report(), elsewhere):
        write_report(report, tmp_path / "out")
        assert read_report(tmp_path / "out" / "report.json") == report
        assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8") == page(report)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "has schema 2: this version reads schema 1"),
        ({"status": "fine"}, "status is 'fine': must be validated, gate-failed, not-validated-on-target or undecided"),
        ({"sead": 3}, "unknown key 'sead', did you mean seed?"),
        ({"bits": {"weights": 4}}, "report.json: bits lacks the key 'activations'"),
        ({"seed": 1.5}, "seed is 1.5: must be a whole number"),
        ({"gates": [{"name": "max-drop", "limit": 1, "value": 3, "passed": False}]}, "status is 'validated'"),
        ({"accuracy": 3}, "accuracy is 3: must be a JSON object"),
    ],
)
def test_what_is_no_report_is_refused_by_name(
    change: dict[str, Any], words: str, make_report: Callable[..., Report], tmp_path: Path
) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps(make_report().to_json() | change), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_report(file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value) or words.startswith("status is")


def test_unreadable_reports_are_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        read_report(tmp_path / "absent.json")
    (tmp_path / "half.json").write_text('{"schema": 1, ', encoding="utf-8")
    with pytest.raises(UserError, match=r"half\.json is damaged: Expecting"):
        read_report(tmp_path / "half.json")


def test_impossible_values_cannot_exist() -> None:
    with pytest.raises(ValueError, match="must be a fraction"):
        Accuracy(metric="top1", images=1, teacher=91.6, simulated=None, oracle=None, runtime=None)
    with pytest.raises(ValueError, match="must be a number"):
        Parity(argmax_agreement=float("nan"), exact_fraction=None, max_difference=None)


def test_the_status_follows_from_the_gates() -> None:
    passed, failed, unknown = (Gate(name="g", limit=1.0, value=None, passed=p) for p in (True, False, None))
    assert verdict([passed], on_target=True) == "validated"
    assert verdict([passed], on_target=False) == "not-validated-on-target"
    assert verdict([passed, unknown], on_target=True) == "not-validated-on-target"
    assert verdict([passed, failed, unknown], on_target=False) == "gate-failed"


def test_an_undecided_report_says_how_many_images_decide(make_report: Callable[..., Report]) -> None:
    gate = Gate(
        name="max-drop", limit=1.0, value=0.0, passed=None, undecided=True, images=9, images_needed=299, at_most=28.3
    )
    report = make_report(gates=(gate,), status="undecided")
    assert report.exit_status == 4
    assert Report.from_json(json.loads(report.to_text())) == report
    said = " ".join(printed(report).split())
    assert "accuracy lost, at most 1.00 points 0.00 points undecided" in said
    assert "9 images cannot decide a limit of 1 point, 299 can: give them to faqd validate (--eval-data" in said
    assert "labels are not needed), or allow --max-drop 29" in said
    assert "undecided: the images cannot tell (exit status 4)" in said
    assert "299 can" in page(report) and "with 95 % confidence 28.30 at most" in page(report)
    with pytest.raises(ValueError, match="its gates and accuracy say 'undecided'"):
        make_report(gates=(gate,))
    alone = make_report(gates=(replace(gate, images=1, at_most=95.0),), status="undecided")
    assert "0.00 points on 1 image; with 95 % confidence 95.00 at most" in page(alone)


def test_the_page_says_that_there_is_no_gpu_and_names_facts_in_words(make_report: Callable[..., Report]) -> None:
    report = make_report()
    assert report.host["gpu"] is None
    assert "<th>gpu</th><td>none for torch</td>" in page(report)
    assert "<th>avx512 vnni</th><td>yes</td>" in page(report)


@pytest.mark.parametrize(
    ("metric", "data", "advised"),
    [
        ("agreement", Data(images=301, unreadable=1), True),
        ("agreement", Data(images=300, unreadable=1), False),  # one is to train on
        ("agreement", Data(images=3000, generated="iVBO"), False),
        ("agreement", None, False),  # faqd validate has no such flag
        ("top1", Data(images=3000), False),  # labelled images are scored, not held-out ones
    ],
)
def test_holding_more_out_is_advised_where_it_decides(
    make_report: Callable[..., Report], metric: str, data: Data | None, advised: bool
) -> None:
    gate = Gate(name="max-drop", limit=1.0, value=0.0, passed=None, undecided=True, images=9, images_needed=299)
    scores = Accuracy(metric=metric, images=9, teacher=1.0, simulated=1.0, oracle=1.0, runtime=1.0)  # type: ignore[arg-type]
    report = make_report(gates=(gate,), status="undecided", accuracy=scores, data=data)
    assert ("hold more out (--held-out-images 299)" in (wording.undecided_words(report) or "")) is advised


@pytest.mark.parametrize(("speedup", "words"), [(1.0, "NO FASTER than float"), (0.5, "SLOWER than float"), (2.0, None)])
def test_what_is_no_faster_is_said_aloud(
    speedup: float, words: str | None, make_report: Callable[..., Report], elsewhere: Report
) -> None:
    """It is no failed gate: that is what --min-speedup is for."""
    report = make_report(latency=replace(make_report().latency, speedup=speedup))
    assert report.status == "validated"
    for text in (" ".join(printed(report).split()), page(report)):
        assert (words is not None and words in text) or (words is None and "float on this machine" not in text)
    listed = words is not None and bool(report.kernels.float_layers)
    assert ("layers listed as float above" in " ".join(printed(report).split())) is listed
    whole = replace(report, kernels=Kernels(integer=3, float=0, float_layers=()))
    assert "listed as float" not in (wording.speed_words(whole) or "")
    assert "float on this machine" not in printed(elsewhere)
    alone = make_report(latency=replace(make_report().latency, float_ms=None, speedup=None))
    assert "float not run here, quantised 0.57 ms (p90 0.61); batch 1, threads 1" in " ".join(printed(alone).split())


def test_gates_name_their_output_and_their_judge(make_report: Callable[..., Report]) -> None:
    gates = (
        Gate(name="max-drop", limit=1.0, value=0.2, passed=True, judged_by="oracle"),
        Gate(name="max-drop:boxes", limit=1.0, value=17.0, passed=False, judged_by="run"),
    )
    said = " ".join(printed(make_report(gates=gates, status="gate-failed")).split())
    assert "0.20 points pass, by the oracle" in said
    assert "lost by output boxes, at most 1.00 points 17.00 points FAIL, in its run" in said


def printed(report: Report) -> str:
    file = io.StringIO()
    Console(file=file, width=100).print(render_report(report))
    return file.getvalue()


def test_the_table_fits_100_columns_and_holds_the_figures(make_report: Callable[..., Report]) -> None:
    long = "a/very/long/name/" * 8
    report = make_report(
        teacher="timm:" + "x" * 60,
        notes=(long,),
        kernels=Kernels(
            integer=1, float=9, float_layers=tuple(FloatLayer(name=f"l{i}", reason=long) for i in range(9))
        ),
        seconds={f"stage{i}": 100.0 + i for i in range(12)},
    )
    text = printed(report)
    assert max(map(len, text.splitlines())) <= 100
    assert "and 4 more, see the report" in text
    text = printed(make_report())
    for figure in (
        "91.64 %",
        "90.50 %",
        "92.23 %",
        "92.13 %",
        "2.12x",
        "0.17x",
        "1.09 MB",
        "b[/].jpg",
        "pass",
    ):
        assert figure in text
    # An agreement that is not complete is never shown as complete.
    assert "same argmax 99.99 %" in text


def test_a_value_that_is_missing_is_shown_as_missing(elsewhere: Report) -> None:
    text = printed(elsewhere)
    assert text.count(wording.NOT_HERE) >= 5
    assert " 0.00 %" not in text
    assert "not validated on target (exit status 3)" in text
    assert wording.NOT_HERE in page(elsewhere)


def test_percentages_never_claim_a_whole_that_is_not() -> None:
    assert wording.percentage(1.0) == "100.00 %"
    assert wording.percentage(0.999999) == "99.99 %"
    assert wording.percentage(0.91642) == "91.64 %"
    assert wording.percentage(0) == "0.00 %"
    assert wording.percentage(None) == "not run here"


class Page(HTMLParser):
    """Collects what a page refers to and checks that its elements are closed in order."""

    VOID = frozenset({"meta", "line", "polyline", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_needs_nothing_else(make_report: Callable[..., Report], elsewhere: Report) -> None:
    for report in (make_report(), elsewhere):
        text = page(report)
        parser = Page()
        parser.feed(text)
        parser.close()
        assert parser.open == []
        assert parser.references == []
        assert not parser.tags & {"script", "link", "img", "iframe"}
        assert not re.search(r"https?:|url\(|@import", text)


def test_the_page_shows_the_report(make_report: Callable[..., Report]) -> None:
    parser = Page()
    parser.feed(page(make_report()))
    for words in (
        "92.13 %",
        "<Gemm> [no] Q",
        "<32 px> assumed",
        "31.5",
        "asked for",
        "Divide the 8-bit values by 255.",
    ):
        assert words in parser.text
    assert "polyline" in parser.tags


def test_the_loss_curve_stays_inside_its_axes() -> None:
    for curve in ([(0, 1.0), (10, 0.5)], [(0, 5.0), (5, 0.1), (9, 0.01)], [(3, 0.0), (4, 0.0)]):
        chart = line_chart(curve)
        assert chart is not None
        for point in chart.points.split():
            x, y = map(float, point.split(","))
            assert chart.left <= x <= chart.right
            assert chart.top <= y <= chart.bottom
    assert line_chart([(0, 1.0)]) is None


def test_each_step_is_named_once_and_where_it_is() -> None:
    for last, labels in ((1, "0 1"), (2, "0 1 2"), (3, "0 1 2 3"), (4, "0 1 2 3 4"), (400, "0 100 200 300 400")):
        chart = line_chart([(0, 1.0), (last, 0.5)])
        assert chart is not None and " ".join(tick.label for tick in chart.across) == labels
        for tick in chart.across:
            place = chart.left + int(tick.label) / last * (chart.right - chart.left)
            assert tick.position == pytest.approx(place, abs=0.06)
