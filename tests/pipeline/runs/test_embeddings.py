"""Embeddings are scored by the angle between vectors: the run, the bundle's validation and the device's check alike."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from backends.base import Census
from backends.device.bundle_check import compare as device
from backends.device.bundle_check.manifest import OutputEntry
from pipeline.cli import main
from pipeline.config import ValidationConfig
from pipeline.networks.outputs.cosine_tally import CosineTally, cosine_similarity
from pipeline.networks.outputs.meaning import Output
from pipeline.report.gate import Gate
from pipeline.report.schema import Report, read_report
from pipeline.report.wording import gate_words, metric_words, output_words
from pipeline.validation.gates import gates_of
from pipeline.validation.score import ScoredImages, Scores, no_latency, score

EMBEDDING = Output(name="face", holds="values", axis=1, shape=(4,), embedding=True)


def test_cosines_by_hand() -> None:
    one = torch.tensor([[1.0, 0], [1, 1], [3, 4], [2, 0], [0, 0], [0, 0], [1, math.nan]])
    two = torch.tensor([[0.0, 2], [1, 0], [6, 8], [-1, 0], [0, 0], [1, 0], [1, 1]])
    expected = [0, math.sqrt(0.5), 1, -1, 1, 0, 0]
    assert cosine_similarity(one, two).tolist() == pytest.approx(expected)
    with np.errstate(all="raise"):
        assert device.cosine_similarity(two[:-1].numpy(), one[:-1].numpy()).tolist() == pytest.approx(expected[:-1])


def test_centred_cosines_by_hand() -> None:
    """Four embeddings around (5, 5), whose neighbours are told by where they lie from there."""
    exact = torch.tensor([[6.0, 5], [4, 5], [5, 6], [5, 4]])
    other = torch.tensor([[6.0, 5], [5, 6], [6, 6], [5, 2]])
    tally, constant, same = CosineTally(), CosineTally(), CosineTally()
    for part in (slice(0, 3), slice(3, 4)):
        tally.add(exact[part], other[part])
        constant.add(exact[part], torch.full_like(exact[part], 5))
        same.add(torch.full_like(exact[part], 5), torch.full_like(exact[part], 4))
    # Equal; at a right angle; at half of one; the same way, three times as far.
    assert tally.similarities().tolist() == pytest.approx([1, 0, math.sqrt(0.5), 1])
    assert tally.fraction() == pytest.approx((2 + math.sqrt(0.5)) / 4) and tally.worst() == 0 and tally.moved
    assert constant.fraction() == 0 and constant.plain() > 0.98, "one answer for all says nothing of any"
    assert not same.moved and same.fraction() == pytest.approx(1), "nothing sets these apart"


def turned(values: Tensor, degrees: Tensor) -> Tensor:
    """Vectors [B, 4] turned by an angle each [B] towards one that is at a right angle to them."""
    across = torch.stack([-values[:, 1], values[:, 0], -values[:, 3], values[:, 2]], 1)
    angle = torch.deg2rad(degrees.double())[:, None]
    return (angle.cos() * values + angle.sin() * across).float()


def scored(degrees: Tensor, *, runtime: float = 1.0, common: float = 0.0) -> Scores:
    """Embeddings and their opposites, whose mean is 0, all turned; `common` is then added to each number of each."""
    half = torch.randn((len(degrees) + 1) // 2, 4, generator=torch.Generator().manual_seed(0))
    teacher = torch.cat([half, -half])[: len(degrees)]
    student = turned(teacher, degrees) + common
    teacher = teacher + common
    columns = {"target": teacher, "teacher": teacher, "simulated": student, "oracle": student}
    columns["runtime"] = runtime * student
    made = {name: lambda _, values=values: [values] for name, values in columns.items()}
    batch = ScoredImages(images=torch.arange(len(degrees))[:, None], labels=None)
    return score(made, [batch], (EMBEDDING,), step=lambda _: None)


def gates(scores: Scores, earlier: Report | None = None, **settings: float) -> dict[str, Gate]:
    config = ValidationConfig(**settings)  # type: ignore[arg-type]
    census = Census(integer=("conv",), floating=())
    made = gates_of(config, scores, census, no_latency(1, 1), least=1.0, earlier=earlier)
    return {gate.name: gate for gate in made}


def test_the_mean_and_the_worst_twentieth_are_judged() -> None:
    """By hand: cos 5 deg is 0.99619, so 0.381 points are lost; cos 10 deg is 0.98481: 1.519; cos 60 deg is a half."""
    judged = gates(scored(torch.full((40,), 5.0)))
    assert judged["max-drop"].passed and judged["max-drop"].value == pytest.approx(0.3805, abs=1e-3)
    assert judged["worst"].passed and judged["worst"].limit == 5.0
    assert gates(scored(torch.full((40,), 10.0)))["max-drop"].passed is False
    assert gates(scored(torch.full((40,), 10.0)), max_drop=2.0)["max-drop"].passed is True
    # One of 40 turned by 60 degrees is less than a twentieth; three of 100 are, six are not.
    for wrong, total, passed in ((1, 40, True), (3, 100, True), (6, 100, False)):
        degrees = torch.zeros(total)
        degrees[:wrong] = 60
        scores = scored(degrees)
        assert scores.outputs[0].metric == "centred-cosine" == scores.accuracy.metric
        assert scores.outputs[0].runtime == pytest.approx(1 - wrong / total / 2)
        gate = gates(scores, max_drop=4.0)["worst"]
        assert gate.passed is passed and gate.value == pytest.approx(0 if passed else 50, abs=1e-4)
    shared = scored(torch.full((40,), 10.0), common=50.0)
    # What all share hides nothing.
    assert shared.outputs[0].runtime == pytest.approx(math.cos(math.radians(10)), abs=1e-4)
    assert shared.outputs[0].cosine is not None and shared.outputs[0].cosine > 0.9999
    few = gates(scored(torch.full((6,), 5.0)))
    assert few["worst"].undecided and few["worst"].value == pytest.approx(0.3805, abs=1e-3)
    assert few["max-drop"].undecided and few["worst"].undecided and few["worst"].passed is None
    assert few["worst"].images_needed == few["max-drop"].images_needed == 8
    assert all(gate.passed for gate in gates(scored(torch.zeros(8))).values())


def test_a_length_that_only_the_runtime_gets_wrong_fails_parity() -> None:
    """The angle does not see it; the same numbers are asked of oracle and runtime all the same."""
    judged = gates(scored(torch.zeros(40), runtime=1.5))
    assert judged["max-drop"].passed is True and judged["parity-values"].passed is False
    exact = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)).numpy()
    line = device.compared(1.5 * exact, exact, OutputEntry(name="y", holds="values", embedding=True), 0.99)
    assert line["passed"] is False and line["cosine"] == pytest.approx(1) == line["least_cosine"]
    assert "cosine 100 % (least 100 %)" in device.golden_line("runtime vs oracle", "face", line)


def test_words(make_report_of_scores: Report) -> None:
    report = make_report_of_scores
    (output,) = report.outputs
    assert output_words(output).startswith(
        "embedding [batch, 4], centred cosine 99.62 %, of the worst twentieth 99.62 %"
    )
    assert metric_words(report) == "centred cosine"
    assert gate_words(Gate(name="worst", limit=5.0, value=0.38, passed=True))[0] == (
        "cosine lost by the worst twentieth, at most 5.00 points"
    )
    assert gate_words(Gate(name="worst:face", limit=5.0, value=9.0, passed=False))[2] == "FAIL"
    again = Report.from_json(json.loads(report.to_text()))
    assert again == report and again.outputs[0].worst == output.worst
    assert "entries" not in json.loads(report.to_text())["outputs"][0]


@pytest.fixture
def make_report_of_scores(make_report: object) -> Report:
    assert callable(make_report)
    scores = scored(torch.full((40,), 5.0))
    report = make_report(outputs=scores.outputs, accuracy=scores.accuracy)
    assert isinstance(report, Report)
    return report


def test_a_bundles_golden_images_repeat_what_its_run_measured(make_report_of_scores: Report) -> None:
    """Among few golden images one of the worst twentieth may lie; the run saw all."""
    degrees = torch.zeros(16)
    degrees[0] = 25
    judged = gates(scored(degrees), make_report_of_scores)
    assert (judged["worst"].judged_by, judged["worst"].passed) == ("run", True)
    assert judged["worst"].value == pytest.approx(0.3805, abs=1e-3)
    old = replace(make_report_of_scores, outputs=tuple(replace(o, worst=None) for o in make_report_of_scores.outputs))
    assert "worst" not in gates(scored(degrees), old), "a run that measured no such thing"
    plain = replace(
        make_report_of_scores,
        accuracy=replace(make_report_of_scores.accuracy, metric="cosine"),
        outputs=tuple(replace(o, metric="cosine", cosine=None) for o in make_report_of_scores.outputs),
    )
    assert gates(scored(degrees), plain)["max-drop"].judged_by == "runtime", (
        "the cosine of older runs says nothing here"
    )


NETWORK = """
import torch
from torch import nn


class Faces(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(16, 12)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def build():
    torch.manual_seed(0)
    return Faces(), {"height": 16, "resize": None, "channels": 1, "mean": (0.5,), "std": (0.25,)}
"""


def test_run_validation_and_device_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "face_nets.py").write_text(NETWORK)
    blocks = np.random.default_rng(0).integers(0, 255, (120, 1, 2, 2), np.uint8)
    images = blocks.repeat(8, 2).repeat(8, 3)
    np.savez(tmp_path / "images.npz", images=images)
    flags = ("--teacher", "python:face_nets:build", "--data", "npz:images.npz#images", "--steps", "0")
    kinds = ("--output-kinds", "output=embedding", "--max-drop", "5")
    assert main(["run", "--quiet", *flags, *kinds, "--output", "out"]) == 0
    report = read_report(Path("out/report.json"))
    assert report.accuracy.metric == "centred-cosine" and report.outputs[0].worst is not None
    assert [gate.name for gate in report.gates if gate.passed][:2] == ["max-drop", "worst"]
    assert report.accuracy.runtime is not None and report.outputs[0].worst <= report.accuracy.runtime <= 1
    assert "embedding [batch, 12], centred cosine" in Path("out/report.html").read_text()
    data = ("--eval-data", "npz:images.npz#images", "--report", "again.json")
    assert main(["validate", "out/bundle", "--quiet", *data]) == 0
    again = read_report(Path("again.json"))
    assert again.accuracy.metric == "centred-cosine" and again.accuracy.runtime == pytest.approx(
        report.accuracy.runtime, abs=0.01
    )
    checked = subprocess.run(
        [sys.executable, "check.py"], cwd="out/bundle", capture_output=True, text=True, check=True
    ).stdout
    assert "output: values alike, R2 100 %, cosine 100 % (least 100 %)" in checked
