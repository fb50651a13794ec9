"""Every gate there is fails on a real bundle for a planted fault, and report, exit status, table and advice say so."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from backends.base import Census, Runner
from calibration.simulation.prepared import PreparedNetwork
from pipeline.bundle.bundle import read_bundle
from pipeline.cli import main
from pipeline.images.preprocessing import normalise
from pipeline.report.schema import read_report
from pipeline.report.wording import GATES, gate_words
from pipeline.validation.running import runner_outputs
from pipeline.validation.score import Outputs, count_kernels
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
        self.boxes, self.classes, self.vector = nn.Conv2d(16, 4, 1), nn.Linear(16, 10), nn.Linear(16, 8)

    def forward(self, x):
        y = self.body(x)
        pooled = y.mean((2, 3))
        return {"classes": self.classes(pooled), "boxes": self.boxes(y).flatten(2), "vector": self.vector(pooled)}

def heads():
    return Heads(), {"height": 16}

def embedder():
    net = Heads()
    net.forward = lambda x: net.vector(net.body(x).mean((2, 3)))
    return net, {"height": 16}
"""
KINDS = "classes=classes,boxes=values,vector=embedding"
Change = Callable[[list[NDArray[Any]]], list[NDArray[Any]]]


@pytest.fixture(scope="module", autouse=True)
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the bundle of a network of three outputs for any size of images, and labelled images."""
    pixels = blocks_of_four(40)
    with at_a_desk(tmp_path_factory.mktemp("failing"), "failing_nets", NETWORK, pixels) as folder:
        for builder, more in (("heads", ("--output-kinds", KINDS, "--dynamic-size")), ("embedder", EMBEDDER)):
            line = ("run", "--quiet", "--teacher", f"python:failing_nets:{builder}", "--data", "npz:photos.npz#images")
            assert main([*line, *more, "--steps", "0", "--max-drop", "20", "--output", builder]) in (0, 4)
        preprocessing = read_bundle(folder / "heads" / "bundle").preprocessing
        images = normalise(torch.from_numpy(pixels.transpose(0, 3, 1, 2)), preprocessing).numpy()
        session = onnxruntime.InferenceSession("heads/float.onnx", providers=["CPUExecutionProvider"])
        labels = session.run(["classes"], {session.get_inputs()[0].name: images})[0].argmax(1)
        np.savez(folder / "labelled.npz", images=pixels, labels=labels)
        yield folder


EMBEDDER = ("--output-kinds", "output=embedding")


def session_answers(patch: pytest.MonkeyPatch, change: Change, *, size: int | None = None) -> None:
    """A fault of ONNX Runtime itself: what it gives of images of that height is changed, of any where none is named."""
    own = onnxruntime.InferenceSession.run

    def run(session: Any, names: Any, feeds: Any, *more: Any) -> list[Any]:
        results = list(own(session, names, feeds, *more))
        height = next(iter(feeds.values())).shape[2]
        return change(results) if size is None or height == size else results

    patch.setattr(onnxruntime.InferenceSession, "run", run)


def one_of_ten_is_another(results: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """Every tenth image's embedding points the other way."""
    changed = results[-1].copy()
    changed[::10] *= -1
    return [*results[:-1], changed]


def others(index: int) -> Change:
    """One output of every image is that of its opposite."""
    return lambda results: [-values if place == index else values for place, values in enumerate(results)]


def float_kernels(bundle: Path) -> None:
    """An option in the manifest by which ONNX Runtime computes all that is quantised in float."""
    vouch(bundle, session_options={"session.disable_quant_qdq": "1"})


def last_bits(patch: pytest.MonkeyPatch, bundle: Path) -> None:
    """Integers vouched for, and a runtime whose every number is the next one of float32."""
    vouch(bundle, exact=True)
    session_answers(patch, lambda results: [np.nextafter(values, np.float32(np.inf)) for values in results])


def fault(change: Change, *, size: int | None = None) -> Callable[[pytest.MonkeyPatch, Path], None]:
    return lambda patch, _: session_answers(patch, change, size=size)


PHOTOS, LABELLED = ("--eval-data", "npz:photos.npz#images"), ("--eval-data", "npz:labelled.npz#images,labels")
RAISED = "another faqd run, cheapest first"
#: Gate as it is called, with NAME for any output -> its failing gate, the network, flags, the fault, what is advised.
CASES: dict[str, tuple[str, str, tuple[str, ...], Callable[[pytest.MonkeyPatch, Path], None], str]] = {
    "max-drop": ("max-drop", "heads", PHOTOS, fault(others(0)), RAISED),
    "max-drop by labels": ("max-drop", "heads", LABELLED, fault(others(0)), RAISED),
    "max-drop:NAME": ("max-drop:boxes", "heads", PHOTOS, fault(others(1)), RAISED),
    "worst": ("worst", "embedder", (*PHOTOS, "--max-drop", "10"), fault(one_of_ten_is_another), RAISED),
    "worst:NAME": ("worst:vector", "heads", (*PHOTOS, "--max-drop", "10"), fault(one_of_ten_is_another), RAISED),
    "parity": ("parity", "heads", (), fault(others(0)), "faqd compare"),
    "parity-values": ("parity-values", "heads", (), fault(others(1)), "faqd compare"),
    "golden": ("golden", "heads", (), last_bits, "faqd compare"),
    "dynamic-size": ("dynamic-size", "heads", (), fault(others(1), size=48), "--image-size"),
    "kernels": ("kernels", "heads", (), lambda _, bundle: float_kernels(bundle), "try another version of it"),
    "min-speedup": ("min-speedup", "heads", ("--min-speedup", "1000"), lambda *_: None, "a smaller --min-speedup"),
}


def simulation_a_millionth_off(patch: pytest.MonkeyPatch) -> None:
    """A fault of the simulation that changes no answer."""
    own = PreparedNetwork.forward

    def forward(network: PreparedNetwork, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(values * (1 + 1e-6) for values in own(network, images))

    patch.setattr(PreparedNetwork, "forward", forward)


@pytest.mark.parametrize("case", CASES)
def test_a_planted_fault_fails_its_gate(
    case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, network, flags, plant, advised = CASES[case]
    monkeypatch.setattr("pipeline.cli.TABLE_COLUMNS", 120)  # rich 14.2 folds a gate's words where newer ones do not
    bundle = Path(network) / f"{case.partition(' ')[0].replace(':', '-')}-bundle"
    shutil.copytree(Path(network) / "bundle", bundle)
    plant(monkeypatch, bundle)
    assert main(["validate", str(bundle), *flags, "--quiet", "--report", "out.json"]) == 1
    report = read_report(Path("out.json"))
    (gate,) = [gate for gate in report.gates if gate.name == name]
    assert gate.passed is False and gate.value is not None and report.status == "gate-failed"
    assert report.exit_status == 1
    shown = " ".join(capsys.readouterr().out.split())
    what, value, outcome = gate_words(gate)
    assert outcome.startswith("FAIL") and f"{what} {value} {outcome}" in shown
    assert "a gate failed (exit status 1)" in shown
    assert any(advised in note for note in report.notes), report.notes
    assert advised in shown
    shutil.rmtree(bundle)


def test_simulated_numbers_that_are_not_the_oracles_fail_their_gate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a run: behind its bundle nothing is simulated."""
    simulation_a_millionth_off(monkeypatch)
    line = ("run", "--quiet", "--teacher", "python:failing_nets:heads", "--data", "npz:photos.npz#images")
    assert main([*line, "--output-kinds", KINDS, "--steps", "0", "--max-drop", "20", "--output", "simulated"]) == 1
    report = read_report(Path("simulated/report.json"))
    failed = [gate for gate in report.gates if gate.passed is False]
    assert [gate.name for gate in failed] == ["parity-values", "simulation"], "all classes are the same"
    gate = failed[-1]
    assert gate.value == pytest.approx(1e-6, rel=0.2)
    assert gate.value == max(output.simulated_difference or 0.0 for output in report.outputs)
    what, value, outcome = gate_words(gate)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{what} {value} {outcome}" in shown and outcome == "FAIL" and value == f"{gate.value:.3g}"
    (advised,) = [note for note in report.notes if note.startswith("for the gate of simulated numbers")]
    assert f"boxes by {report.outputs[1].simulated_difference:.2g}" in advised
    assert "the scores of oracle and runtime hold" in shown
    assert main(["validate", "simulated/bundle", "--quiet", "--report", "out.json"]) in (0, 4)
    assert "simulation" not in {gate.name for gate in read_report(Path("out.json")).gates}


def test_a_run_fails_by_every_gate_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All gates that a run of these outputs has, by a runtime that answers otherwise and keeps a layer in float."""

    def otherwise(runner: Runner, fixed: int | None) -> Outputs:
        return lambda images: [-values for values in runner_outputs(runner, fixed)(images)]

    def refusing(*arguments: Any) -> tuple[Census | None, str | None]:
        census, remark = count_kernels(*arguments)
        assert census is not None
        return replace(census, integer=census.integer[1:], floating=census.integer[:1]), remark

    simulation_a_millionth_off(monkeypatch)
    monkeypatch.setattr("pipeline.validation.measurement.runner_outputs", otherwise)
    monkeypatch.setattr("pipeline.validation.measurement.count_kernels", refusing)
    line = (
        "run",
        "--quiet",
        "--teacher",
        "python:failing_nets:heads",
        "--data",
        "npz:photos.npz#images",
        "--steps",
        "0",
    )
    more = ("--output-kinds", KINDS, "--dynamic-size", *PHOTOS, "--max-drop", "10", "--min-speedup", "1000")
    assert main([*line, *more, "--output", "failing"]) == 1
    report = read_report(Path("failing/report.json"))
    assert {gate.name.partition(":")[0] for gate in report.gates} == set(GATES) - {"golden"}
    assert [gate.name for gate in report.gates if gate.passed is not False] == []
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("FAIL") == len(report.gates) and "a gate failed (exit status 1)" in shown
    for advised in ("training: --strategy distil", "faqd compare", "--image-size", "try another version of it"):
        assert any(advised in note for note in report.notes), advised
    assert any("a smaller --min-speedup" in note for note in report.notes)
    assert read_report(Path("failing/bundle/report.json")) == report, "the bundle is made all the same"


def test_no_gate_is_without_a_case(repository: Path) -> None:
    """Names of gates as the code makes them, and as the table of words has them."""
    assert {case.partition(" ")[0].partition(":")[0] for case in CASES} | {"simulation"} == set(GATES)
    named = set()
    for path in (repository / "pipeline" / "validation").glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Gate":
                named |= {
                    keyword.value.value
                    for keyword in call.keywords
                    if keyword.arg == "name" and isinstance(keyword.value, ast.Constant)
                }
    assert named and named <= set(GATES)
