"""What one answer for all images gives explains nothing, and passes nothing: of boxes, decisions and copied images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from backends.base import Census
from backends.device.bundle_check.compare import same_share
from backends.device.bundle_check.manifest import OutputEntry
from backends.device.bundle_check.value_tally import Spread, ValueTally
from calibration.errors import UserError
from pipeline.cli import main
from pipeline.config import ValidationConfig
from pipeline.networks.outputs.meaning import Output
from pipeline.report.gate import Gate, verdict
from pipeline.report.schema import read_report
from pipeline.report.wording import undecided_words
from pipeline.validation.gates import gates_of, repetitions
from pipeline.validation.score import ScoredImages, Scores, no_latency, score

BOXES = Output(name="boxes", holds="values", axis=1, shape=(2, 3))


def tallied(exact: Tensor, other: Tensor, axis: int | None = None) -> ValueTally:
    tally = ValueTally(Spread(axis))
    for one, two in zip(torch.split(exact, 2), torch.split(other, 2), strict=True):
        tally.add(one, two)
        tally.spread.add(one)
    return tally


def test_anchors_explain_nothing_by_hand() -> None:
    """Three anchors, which four images move by -1 or 1: their variance of 1 is all that there is to explain."""
    anchors = torch.tensor([0.0, 100.0, 200.0])
    moves = torch.tensor([[1.0, -1, 1], [-1, 1, -1], [1, -1, -1], [-1, 1, 1]])
    exact = anchors + moves
    assert tallied(exact, anchors.expand(4, 3)).fraction() == 0, "one answer for every image"
    # Half of each move is left: errors of 0.5, squared 0.25, of a variance of 1.
    for other, explained in ((anchors + 0.5 * moves, 0.75), (exact, 1.0), (exact + 0.1, 0.99), (anchors - moves, 0.0)):
        assert tallied(exact, other).fraction() == pytest.approx(explained, abs=1e-5)
        assert same_share(
            other.numpy(), exact.numpy(), OutputEntry(name="y", holds="values", embedding=True)
        ) == pytest.approx(explained, abs=1e-5)
    # One image moves nothing: whether it is the same is told by what its numbers spread among each other.
    assert tallied(exact[:1], exact[:1] + 1).fraction() == pytest.approx(
        1 - 3 / float((exact[0] - exact[0].mean()).square().sum())
    )


def test_the_spread_is_numpys_however_far_from_0_the_numbers_lie() -> None:
    values = torch.randn(31, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = values + 1e4 * torch.arange(20.0).reshape(4, 5)
    spread = Spread(1)
    for batch in torch.split(values, 7):
        spread.add(batch)
    expected = ((values.numpy() - values.numpy().mean(0)) ** 2).sum((0, 2))
    assert spread.deviations.tolist() == pytest.approx(expected.tolist(), rel=1e-9) and spread.moved


def scored(output: Output, teacher: Tensor, student: Tensor, images: Tensor | None = None) -> Scores:
    columns = {"target": teacher, "teacher": teacher, "simulated": student, "oracle": student, "runtime": student}
    made = {name: lambda _, values=values: [values] for name, values in columns.items()}
    shown = torch.arange(len(teacher))[:, None] if images is None else images
    return score(made, [ScoredImages(images=shown, labels=None)], (output,), step=lambda _: None)


def gates(scores: Scores, **settings: float) -> dict[str, Gate]:
    census = Census(integer=("conv",), floating=())
    config = ValidationConfig(**settings)  # type: ignore[arg-type]
    made = gates_of(config, scores, census, no_latency(1, 1), least=1.0)
    return {gate.name: gate for gate in made}


SAME = {
    "classes": (Output(name="y", holds="classes", axis=1, shape=(3,)), torch.tensor([0.0, 5.0, 1.0])),
    "a map": (
        Output(name="y", holds="classes", axis=1, shape=(2, 4)),
        9.0 * torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1]]),
    ),
    "labels": (Output(name="y", holds="labels", axis=1, shape=(30,)), torch.full((30,), -4.0)),
    "values": (Output(name="y", holds="values", axis=1, shape=(6,)), torch.arange(6.0)),
    "embedding": (Output(name="y", holds="values", axis=1, shape=(6,), embedding=True), torch.arange(6.0)),
}


@pytest.mark.parametrize("kind", SAME)
def test_where_the_float_network_says_one_thing_agreement_says_nothing(kind: str) -> None:
    output, values = SAME[kind]
    teacher = values.expand(400, *values.shape).clone()
    if output.holds != "values":  # logits move, decisions do not
        teacher += 0.1 * torch.rand(teacher.shape, generator=torch.Generator().manual_seed(0))
    judged = gates(scored(output, teacher, teacher))
    assert judged["max-drop"].says_nothing and judged["max-drop"].undecided and judged["max-drop"].passed is None
    assert verdict(list(judged.values()), on_target=True) == "undecided"
    assert all(gate.says_nothing for name, gate in judged.items() if name == "worst")
    # Another answer is lost all the same; and what one image moves is something to agree on.
    assert gates(scored(output, teacher, -teacher))["max-drop"].passed is False
    teacher[7] = -teacher[7]
    assert gates(scored(output, teacher, teacher))["max-drop"].passed is True


def test_copies_of_an_image_are_one_image() -> None:
    output, _ = SAME["classes"]
    teacher = torch.eye(3)[torch.arange(400) % 3]
    few = scored(output, teacher, teacher, images=(torch.arange(400) % 30)[:, None])
    gate = gates(few)["max-drop"]
    assert (gate.undecided, gate.says_nothing, gate.images, gate.images_needed) == (True, False, 30, 299)
    assert repetitions(few) == ("370 of the 400 scored images repeat others to the bit: 30 count as evidence",)
    assert repetitions(scored(output, teacher, teacher)) == ()


@pytest.mark.parametrize("limit", [-1.0, 100.5, 101.0])
def test_no_gate_is_one_that_cannot_fail(limit: float) -> None:
    with pytest.raises(UserError, match=f"--max-drop {limit:g}: must be 0 to 100 percentage points"):
        ValidationConfig(max_drop=limit)


NETWORKS = """
import torch
from torch import nn

IMAGES = {"height": 16, "resize": None, "channels": 1, "mean": (0.5,), "std": (0.25,)}


class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
        y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        self.register_buffer("grid", torch.stack([x, y]).flatten(1)[None])

    def forward(self, x):
        maps = self.body(x)
        if self.kind == "grid":
            return (torch.sigmoid(4 * maps[:, :2].flatten(2)) + self.grid) * 2
        pooled = maps.mean((2, 3))
        return pooled * 0.1 + 5 if self.kind == "embedding" else pooled - 50


def made(kind):
    torch.manual_seed(0)
    return Net(kind), IMAGES


def grid():
    return made("grid")


def embedding():
    return made("embedding")


def never():
    return made("never")
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decide")
    (folder / "decide_nets.py").write_text(NETWORKS)
    blocks = np.random.default_rng(0).integers(0, 255, (130, 1, 4, 4), np.uint8)
    np.savez(folder / "images.npz", images=blocks.repeat(4, 2).repeat(4, 3))
    return folder


def run(desk: Path, monkeypatch: pytest.MonkeyPatch, network: str, kind: str, bits: int) -> int:
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(str(desk))
    widths = [word for flag in ("bits", "first-bits", "last-bits") for word in (f"--{flag}", str(bits))]
    flags = ["--teacher", f"python:decide_nets:{network}", "--data", "npz:images.npz#images", "--steps", "0"]
    flags += ["--backend", "onnxruntime", "--output-kinds", f"output={kind}", "--output", network, "--overwrite"]
    return main(["run", "--quiet", *flags, *widths])


@pytest.mark.parametrize(("network", "kind"), [("grid", "values"), ("embedding", "embedding")])
def test_what_all_images_share_saves_no_network(
    network: str, kind: str, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded boxes and embeddings with a common mean: of one bit they say little of an image, of eight nearly all."""
    assert run(desk, monkeypatch, network, kind, 8) == 0
    assert run(desk, monkeypatch, network, kind, 1) == 1
    report = read_report(Path(network) / "report.json")
    (gate,) = [gate for gate in report.gates if gate.name == "max-drop"]
    assert gate.value is not None and gate.value > 5
    if kind == "embedding":
        assert report.outputs[0].cosine is not None and report.outputs[0].cosine > 0.999
    assert main(["validate", f"{network}/bundle", "--quiet", "--report", "again.json"]) == 1


def test_a_run_on_a_network_that_says_one_thing_is_undecided(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(desk, monkeypatch, "never", "labels", 8) == 4
    report = read_report(Path("never/report.json"))
    words = undecided_words(report)
    assert words is not None and words.startswith("the float network gives one and the same output for all of these")
    assert "--output-max-drop output=none" in words
    assert main(["validate", "never/bundle", "--quiet", "--report", "again.json"]) == 4
    assert any(gate.says_nothing and gate.judged_by == "run" for gate in read_report(Path("again.json")).gates)
