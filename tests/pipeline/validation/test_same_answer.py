"""A run's gates, `faqd validate` and the bundle's own check.py call the same answers the same, up to the same limit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from backends.device.bundle_check.__main__ import main as check
from backends.device.bundle_check.same_answer import (
    EXACT,
    NEGLIGIBLE_PROBABILITY,
    WITH_FLOAT,
    answers,
    largest_difference,
    limit_on,
)
from backends.device.bundle_check.value_tally import Spread
from calibration.graph.nearness import LARGEST_DIFFERENCE, LEAST_PROBABILITY
from pipeline.bundle.bundle import read_bundle
from pipeline.bundle.golden import Golden
from pipeline.cli import main
from pipeline.networks.outputs.meaning import Output
from pipeline.report.schema import read_report
from pipeline.validation.score import no_latency
from tests.users_desk import at_a_desk, blocks_of_four
from tests.vouched import vouch

NETWORK = """
import torch
from torch import nn

class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU())
        self.mask, self.boxes, self.heat = nn.Conv2d(16, 5, 1), nn.Conv2d(16, 6, 1), nn.Conv2d(16, 1, 1)
        self.classes, self.tags, self.vector = nn.Linear(16, 10), nn.Linear(16, 6), nn.Linear(16, 8)
        self.register_buffer("anchors", 100 * torch.arange(12.0).reshape(1, 3, 4))

    def forward(self, x):
        y = self.body(x)
        pooled, boxes = y.mean((2, 3)), self.boxes(y).flatten(2)
        logits = self.tags(pooled)
        return {
            "classes": self.classes(pooled),
            "mask": self.mask(y),
            "tags": torch.sigmoid(logits),
            "boxes": torch.cat([640 * boxes[:, :4], torch.sigmoid(boxes[:, 4:])], 1),
            "vector": self.vector(pooled),
            "heat": torch.sigmoid(self.heat(y)),
            "rare": torch.sigmoid(logits - 20),
            "anchors": self.anchors + 0 * pooled[:, :1, None],
        }

def heads():
    return Heads(), {"height": 16}
"""
KINDS = (
    "classes=classes,mask=classes,tags=label-probabilities,boxes=values,vector=embedding,heat=values,rare=values,"
    "anchors=values"
)
Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module", autouse=True)
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the bundle of a network of every kind of output, `made`, with float operators inside."""
    with at_a_desk(tmp_path_factory.mktemp("same"), "heads_net", NETWORK, blocks_of_four(48)) as folder:
        line = ("run", "--quiet", "--teacher", "python:heads_net:heads", "--output-kinds", KINDS, "--output", "made")
        assert main([*line, "--data", "npz:photos.npz#images", "--steps", "0", "--max-drop", "100"]) == 4
        (folder / "made" / "bundle" / "golden.npz").write_bytes(golden().to_bytes())
        with_limit(WITH_FLOAT)
        yield folder


def golden() -> Golden:
    """Outputs of which each kind moves as it does in a trained network, or does not move at all."""
    draw = np.random.default_rng(1).normal
    exact = {
        "classes": draw(size=(16, 10)),
        "mask": draw(size=(16, 5, 8, 8)),
        "tags": 1 / (1 + np.exp(-3 * draw(size=(16, 6)))),
        "boxes": np.concatenate([100 * draw(size=(16, 4, 64)), 0.3 * draw(size=(16, 2, 64))], 1),
        "vector": draw(size=(16, 8)),
        "heat": 1 / (1 + np.exp(-draw(size=(16, 1, 8, 8)))),
        "rare": 1e-8 * np.exp(draw(size=(16, 6))),
        "anchors": np.tile(100 * np.arange(12.0).reshape(1, 3, 4), (16, 1, 1)),
    }
    outputs = {name: values.astype(np.float32) for name, values in exact.items()}
    return Golden(inputs=draw(size=(16, 3, 16, 16)).astype(np.float32), outputs=outputs, teacher=outputs)


def with_limit(least: float) -> None:
    """The bundle with another limit in its manifest, which vouches for itself."""
    vouch(Path("made/bundle"), least_parity=least, exact=False)


def answer_with(outputs: Arrays, patch: pytest.MonkeyPatch) -> None:
    """Let ONNX Runtime give these outputs for the golden images, whoever asks it."""
    own, count = onnxruntime.InferenceSession.run, len(next(iter(outputs.values())))

    def run(session: Any, names: Any, feeds: Any, *more: Any) -> list[Any]:
        results = own(session, names, feeds, *more)
        if len(results) != len(outputs) or len(results[0]) != count:
            return list(results)
        return [outputs[output.name].astype(np.float32) for output in session.get_outputs()]

    patch.setattr(onnxruntime.InferenceSession, "run", run)


def untimed(patch: pytest.MonkeyPatch) -> None:
    """No latency is measured: what is answered is what counts here."""
    figures = {"batch": 1, "median_ms": 1.0, "p90_ms": 1.0, "calls": 1}
    patch.setattr("backends.device.bundle_check.__main__.latency", lambda *_: figures)
    patch.setattr(
        "pipeline.validation.measurement.measure_latency",
        lambda _backend, _model, _float, images, threads: no_latency(len(images), threads),
    )


def flipped(output: Output, exact: NDArray[Any], count: int) -> NDArray[Any]:
    """The output with so many decisions fallen apart, those that are the nearest to a tie."""
    if output.holds == "labels":
        made = exact.copy().reshape(-1)
        nearest = np.abs(made - output.threshold).argsort()[:count]
        made[nearest] = output.threshold - 1e-3 * np.sign(made[nearest] - output.threshold)
        return made.reshape(exact.shape)
    rows = np.moveaxis(exact, output.axis, -1).copy()
    shape, rows = rows.shape, rows.reshape(-1, rows.shape[-1])
    places, first = np.arange(len(rows)), rows.argmax(1)
    others = rows.copy()
    others[places, first] = -np.inf
    nearest = (rows[places, first] - others.max(1)).argsort()[:count]
    rows[nearest, others.argmax(1)[nearest]] = rows[nearest, first[nearest]] + 1e-3
    return np.moveaxis(rows.reshape(shape), -1, output.axis)


def lessened(exact: NDArray[Any], share: float, places: slice = slice(None)) -> NDArray[Any]:
    """Numbers of which each image's move keeps so much that 1 - `share` of its variance is explained."""
    made = exact.astype(np.float64)
    made[:, places] -= share**0.5 * (made[:, places] - made[:, places].mean(0))
    return made


def planted(output: Output, exact: NDArray[Any], *, beyond: bool) -> NDArray[Any]:
    """An answer just within the limit of networks with float operators, or just beyond it."""
    if output.holds != "values":
        allowed = answers(exact, holds=output.holds, axis=output.axis, threshold=output.threshold).size // 100
        return flipped(output, exact, max(1, allowed) + beyond)
    if output.name == "rare":  # nothing is there, of which 1e-6 more is nothing too
        return exact + (1.1 if beyond else 0.9) * NEGLIGIBLE_PROBABILITY
    if output.name == "anchors":  # no image moves them: they are measured by their own variance
        shift = np.sqrt((0.0101 if beyond else 0.0099) * exact.astype(np.float64).var())
        return np.asarray(exact + shift)
    # Of boxes the numbers of the smaller kind alone: those of the larger would drown them.
    return lessened(exact, 0.0101 if beyond else 0.0099, slice(4, 6) if output.name == "boxes" else slice(None))


def judged(outputs: Arrays) -> tuple[int, bool]:
    """The exit status of the bundle's own check, and whether a gate of `faqd validate` fails, for what is answered."""
    with pytest.MonkeyPatch.context() as patch:
        answer_with(outputs, patch)
        untimed(patch)
        # The golden outputs here are invented: no model gives them.
        patch.setattr("pipeline.validation.validate.check_golden", lambda *_, **__: None)
        status = check([], Path("made/bundle"))
        main(["validate", "made/bundle", "--quiet", "--report", "again.json"])
    gates = {gate.name: gate for gate in read_report(Path("again.json")).gates}
    failed = [name for name, gate in gates.items() if gate.passed is False]
    assert set(failed) <= {"parity", "parity-values"}, failed
    return status, bool(failed)


@pytest.mark.parametrize("name", [pair.split("=")[0] for pair in KINDS.split(",")])
def test_both_judge_alike_just_within_and_just_beyond_the_limit(name: str) -> None:
    with_limit(WITH_FLOAT)
    bundle = read_bundle(Path("made/bundle"))
    exact = dict(bundle.golden.outputs)
    (output,) = [output for output in bundle.outputs if output.name == name]
    for beyond in (False, True):
        answer = planted(output, exact[name], beyond=beyond)
        assert judged(exact | {name: answer}) == (int(beyond), beyond), beyond
    # Without float operators every decision counts, and every bit of a value but for what is nothing.
    with_limit(EXACT)
    last_step = np.nextafter(exact[name], np.float32(np.inf)).astype(np.float32)
    wrong = flipped(output, exact[name], 1) if output.holds != "values" else last_step
    nothing = name in ("heat", "rare")
    assert judged(exact | {name: wrong}) == (int(not nothing), not nothing)
    assert name != "classes" or judged(exact) == (0, False)


@pytest.mark.parametrize("name", ["classes", "tags", "boxes", "rare"])
def test_no_number_is_the_same_as_a_number(name: str) -> None:
    with_limit(WITH_FLOAT)
    exact = dict(read_bundle(Path("made/bundle")).golden.outputs)
    for wrong in (np.nan, np.inf) if name in ("boxes", "rare") else (np.nan,):
        answer = exact[name].copy()
        answer[:2] = wrong
        assert judged(exact | {name: answer}) == (1, True)


def test_what_is_next_to_nothing_decides_nothing_and_loses_nothing() -> None:
    """Probabilities of 1e-9, which integers give as 0: R2 was 0, and the run had failed for a difference of nothing."""
    report = read_report(Path("made/report.json"))
    gates = {gate.name: gate for gate in report.gates}
    for name in ("rare", "anchors"):
        gate = gates[f"max-drop:{name}"]
        assert (gate.value, gate.passed, gate.says_nothing) == (0.0, None, True)
    assert gates["parity-values"].passed and report.status == "undecided"


def test_limits_by_hand() -> None:
    assert limit_on(WITH_FLOAT, same=15, total=16, numbers=0.995) == 15 / 16
    assert limit_on(WITH_FLOAT, same=15, total=16, numbers=0.985) == WITH_FLOAT
    assert limit_on(WITH_FLOAT, same=14, total=16, numbers=1.0) == WITH_FLOAT, "two of sixteen are no tie"
    assert limit_on(WITH_FLOAT, same=0, total=1, numbers=1.0) == 0
    assert limit_on(WITH_FLOAT, same=99, total=100, numbers=None) == WITH_FLOAT == 99 / 100
    assert limit_on(EXACT, same=15, total=16, numbers=1.0) == EXACT
    # What the float file's check calls nothing in a probability is nothing here.
    assert pytest.approx(LARGEST_DIFFERENCE * LEAST_PROBABILITY) == NEGLIGIBLE_PROBABILITY
    assert answers(np.array([[1.0, np.nan], [1, 2]]), holds="classes", axis=1, threshold=0).tolist() == [-1, 1]
    assert largest_difference(np.array([np.nan, 3.0, np.inf]), np.array([1.0, 1.0, np.inf])) == 2.0


def test_what_moves_by_next_to_nothing_does_not_move() -> None:
    values = np.array([[0.0, 1e-7], [9e-7, 2e-7]])
    for negligible, moved in ((0.0, True), (1e-6, False), (5e-7, True)):
        spread = Spread(None, negligible=negligible)
        for image in values:
            spread.add(image[None])
        assert spread.moved is moved
