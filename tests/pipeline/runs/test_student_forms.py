"""A student in logits of a teacher in probabilities: a yes is a yes in either form, in the run and on devices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from backends.device.bundle_check.__main__ import main as check
from pipeline.cli import main
from pipeline.networks.outputs.common_form import answers_in_form, in_student_form
from pipeline.networks.outputs.meaning import Output
from pipeline.report.schema import Report, read_report
from tests.users_desk import at_a_desk, blocks_of_four

NETWORK = """
import torch
from torch import nn

class Tagger(nn.Module):
    def __init__(self, end):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.end = nn.Conv2d(3, 16, 3, 2, 1), nn.Linear(16, 6), end

    def forward(self, x):
        y = self.body(x).relu().mean((2, 3))
        return self.end(12 * self.head(y - y.mean(1, keepdim=True)))

def teacher():
    return Tagger(torch.sigmoid), {"height": 16}

def student():
    return Tagger(nn.Identity()), {"height": 16}
"""


@pytest.fixture(scope="module", autouse=True)
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with at_a_desk(tmp_path_factory.mktemp("forms"), "tagger_nets", NETWORK, blocks_of_four(120)) as folder:
        import tagger_nets  # type: ignore[import-not-found]  # written just now

        torch.save(tagger_nets.student()[0].state_dict(), folder / "same.pt")
        yield folder


def lost(report: Report) -> float:
    (gate,) = [gate for gate in report.gates if gate.name == "max-drop"]
    assert gate.value is not None
    return gate.value


def test_the_same_weights_answer_the_same_in_both_forms() -> None:
    """At a threshold of 0.5 for logits a tenth of the answers were lost, and two thirds in `faqd validate`."""
    photos = ("--eval-data", "npz:photos.npz#images")
    line = ("run", "--quiet", "--teacher", "python:tagger_nets:teacher", "--student", "python:tagger_nets:student")
    more = ("--student-weights", "same.pt", "--data", "npz:photos.npz#images", "--steps", "0", "--max-drop", "20")
    assert main([*line, *more, *photos, "--targets", "image", "--output", "made"]) == 0
    report = read_report(Path("made/report.json"))
    assert lost(report) < 2 and report.accuracy.teacher == 1
    assert main(["validate", "made/bundle", *photos, "--quiet", "--report", "again.json"]) == 0
    assert lost(read_report(Path("again.json"))) == lost(report)
    assert main(["validate", "made/bundle", "--quiet", "--report", "golden.json"]) == 0
    golden = read_report(Path("golden.json"))
    assert golden.accuracy.runtime is not None and golden.accuracy.runtime > 0.9
    assert check([], Path("made/bundle")) == 0
    (output,) = json.loads(Path("made/bundle/manifest.json").read_text())["outputs"]
    assert (output["threshold"], output["float_activation"]) == (0.0, "sigmoid")
    chosen = [note for note in report.notes if note.startswith("calibrated on")]
    assert all(float(part.split(" %")[0].split()[-1]) > 98 for note in chosen for part in note.split(", ")[1:3])


def test_forms_by_hand() -> None:
    probabilities = Output(name="y", holds="labels", axis=1, shape=(2,), activation="sigmoid", shown=True)
    logits = Output(name="y", holds="labels", axis=1, shape=(2,))
    (judged,) = in_student_form([probabilities], [logits])
    assert judged.activation is None and judged.threshold == 0 and in_student_form([logits], None) == (logits,)
    run = answers_in_form([judged], [probabilities], lambda x: [x])
    values = torch.tensor([[0.75, 0.2]])
    torch.testing.assert_close(run(values)[0], torch.tensor([[3.0, 0.25]]).log())
    assert answers_in_form([logits], [logits], lambda x: [x])(values)[0] is values
