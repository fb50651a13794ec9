"""What outputs hold, the losses that follow from it, and how far two columns of them say the same."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calibration.capture import capture
from calibration.errors import UserError
from pipeline.agreement import OutputTally, parity_of
from pipeline.distillation.logits import kl_loss
from pipeline.distillation.outputs import output_loss, uninformed, value_loss
from pipeline.outputs import Output, describe_outputs, guessed, parse_kinds, primary
from pipeline.stages.validate import ScoredImages, score


def output(holds: Any = "classes", *, axis: int = 1, shape: tuple[int, ...] = (3,), name: str = "out") -> Output:
    return Output(name=name, holds=holds, axis=axis, shape=shape)


class Heads(nn.Module):
    """Outputs of every shape that the rules tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.conv(x)
        return {"map": y, "depth": y[:, :1], "boxes": y.flatten(2).transpose(1, 2), "logits": y.mean((2, 3))}


@pytest.fixture(scope="module")
def graph() -> Any:
    return capture(Heads(), torch.randn(2, 3, 6, 6), source="test")


def test_shapes_and_words_say_what_outputs_hold(graph: Any) -> None:
    kinds = parse_kinds(["boxes=classes-last", "logits=labels"])
    found = {o.name: (o.holds, o.axis, o.decisions) for o in describe_outputs(graph, kinds, source="net")}
    assert found == {
        "map": ("classes", 1, 36),
        "depth": ("values", 1, None),
        "boxes": ("classes", -1, 36),
        "logits": ("labels", 1, 4),
    }
    described = describe_outputs(graph, {"map": "values"}, source="net")
    assert described[primary(described)].name == "boxes", "the first that holds classes"


def test_what_is_guessed_of_outputs_is_said(graph: Any) -> None:
    kinds = parse_kinds(["boxes=classes-last", "logits=labels"])
    assert guessed(describe_outputs(graph, kinds, source="net"), kinds) == (
        "by their shapes, outputs are taken to hold: map ['batch', 4, 6, 6] classes, depth ['batch', 1, 6, 6] values; "
        "--output-kinds NAME=KIND says otherwise"
    )
    assert guessed([output()], ()) is None, "a classifier needs no word"
    assert guessed([output(shape=(3, 6, 6))], {"out"}) is None
    assert "out ['batch', 3, 6, 6] classes" in (guessed([output(shape=(3, 6, 6))], ()) or "")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["mask=values"], "net has no output of that name; it has map, depth, boxes, logits"),
        (["depth=classes"], "no two classes there to choose from"),
        (["map=boxes"], "--output-kinds map=boxes: must be NAME=KIND, with KIND classes, classes-last, labels, values"),
        (["map"], "must be NAME=KIND"),
    ],
)
def test_words_that_do_not_fit_are_refused(graph: Any, pairs: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        describe_outputs(graph, parse_kinds(pairs), source="net")
    assert message in str(caught.value)


def test_the_loss_of_classes_is_the_same_on_every_axis_and_labels_are_two_classes_each() -> None:
    generator = torch.Generator().manual_seed(0)
    mine, theirs = (torch.randn(2, 3, 5, generator=generator) for _ in range(2))

    def kl(student: Tensor, teacher: Tensor) -> Tensor:
        return kl_loss(student, teacher, temperature=2.0)

    first = output_loss([mine], [theirs], [output(shape=(3, 5))], kl)
    last = output_loss([mine.transpose(1, 2)], [theirs.transpose(1, 2)], [output(axis=-1, shape=(5, 3))], kl)
    assert first.item() == pytest.approx(last.item(), rel=1e-6)
    # Binary cross entropy of sigmoids at T = 2, minus its least value, times T squared, in double precision.
    p, q = torch.sigmoid(theirs.double() / 2), torch.sigmoid(mine.double() / 2)
    slow = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert output_loss([mine], [theirs], [output("labels")], kl).item() == pytest.approx(slow.item(), rel=1e-4)


def test_values_are_learned_by_their_relative_error() -> None:
    teacher = torch.tensor([[3.0, -4.0]])
    assert value_loss(torch.tensor([[3.0, -3.0]]), teacher).item() == pytest.approx(1 / 25)
    assert value_loss(torch.zeros(1, 2), teacher).item() == pytest.approx(1.0)
    assert value_loss(1e3 * torch.tensor([[3.0, -3.0]]), 1e3 * teacher).item() == pytest.approx(1 / 25, rel=1e-5)
    assert value_loss(torch.zeros(1, 2), torch.zeros(1, 2)).item() == 0.0


def test_the_uninformed_say_the_mean() -> None:
    logits, boxes = torch.randn(2, 3, 4), torch.randn(2, 5)
    found = uninformed([logits, boxes], [output(shape=(3, 4)), output("values", shape=(5,))])
    torch.testing.assert_close(found[0], logits.mean((0, 2), keepdim=True).expand(2, 3, 4))
    torch.testing.assert_close(found[1], boxes.mean().expand(2, 5))


def tally(kind: Output, target: Tensor, runtime: Tensor, oracle: Tensor | None = None) -> OutputTally:
    found = OutputTally(kind)
    for part in range(len(target)):  # two batches count as one
        columns = {"target": target, "oracle": target if oracle is None else oracle, "runtime": runtime}
        found.add({name: values[part : part + 1] for name, values in columns.items()})
    return found


def test_dense_decisions_by_hand() -> None:
    # Two images of two positions: the classes are 0 1 / 1 2, the runtime says 0 1 / 0 2.
    target = torch.eye(3)[torch.tensor([[0, 1], [1, 2]])].movedim(-1, 1)
    runtime = torch.eye(3)[torch.tensor([[0, 1], [0, 2]])].movedim(-1, 1)
    found = tally(output(shape=(3, 2)), target, runtime)
    entry = found.score()
    assert entry.metric == "agreement" and entry.runtime == entry.runtime_vs_oracle == 0.75
    assert entry.oracle == 1.0
    assert entry.mean_iou == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    assert entry.exact_fraction == pytest.approx(10 / 12) and entry.max_difference == 1.0
    parity = parity_of([found, tally(output("values", shape=(2,)), torch.ones(1, 2), torch.ones(1, 2))])
    assert parity.argmax_agreement == 0.75 and parity.exact_fraction == pytest.approx(12 / 14)


def test_labels_and_values_by_hand() -> None:
    target, runtime = torch.tensor([[1.0, -1.0, 2.0, -3.0]]), torch.tensor([[0.5, 1.0, -2.0, -3.0]])
    entry = tally(output("labels", shape=(4,)), target, runtime).score()
    assert entry.runtime == 0.5 and entry.mean_iou == pytest.approx(1 / 3), "one yes of three in common"
    values = tally(output("values", shape=(4,)), target, runtime).score()
    errors = (target - runtime).square().sum().item()
    variance = (target - target.mean()).square().sum().item()
    assert values.runtime == pytest.approx(max(0.0, 1 - errors / variance))
    assert values.rms_error == pytest.approx(math.sqrt(errors / 4)) and values.mean_iou is None
    same = tally(output("values", shape=(4,)), target, target).score()
    assert same.runtime == same.exact_fraction == 1.0


def test_r2_is_numpys() -> None:
    generator = np.random.default_rng(0)
    target = generator.normal(3, 2, (6, 50))
    runtime = target + generator.normal(0, 0.5, target.shape)
    entry = tally(output("values", shape=(50,)), torch.from_numpy(target), torch.from_numpy(runtime)).score()
    assert entry.runtime == pytest.approx(1 - ((target - runtime) ** 2).sum() / ((target - target.mean()) ** 2).sum())


def test_a_network_is_scored_by_its_classes_and_every_output_has_an_entry() -> None:
    boxes, logits = torch.randn(4, 2), torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    columns = {name: (lambda images: [boxes, logits]) for name in ("target", "teacher", "simulated", "oracle")}
    worse = logits.clone()
    worse[0] = torch.tensor([0.0, 1.0, 0.0])
    columns["runtime"] = lambda images: [boxes, worse]
    outputs = [output("values", shape=(2,), name="boxes"), output(name="logits")]
    batch = SimpleNamespace(images=torch.zeros(4, 3, 8, 8))
    scores = score(columns, [ScoredImages(images=batch.images, labels=None)], outputs, step=lambda done: None)
    assert scores.accuracy.metric == "agreement" and scores.accuracy.runtime == 0.75
    assert [(entry.name, entry.metric, entry.runtime) for entry in scores.outputs] == [
        ("boxes", "r2", 1.0),
        ("logits", "agreement", 0.75),
    ]
    labelled = ScoredImages(images=batch.images, labels=np.array([1, 1, 2, 0]))
    scores = score(columns, [labelled], outputs, step=lambda done: None)
    assert scores.accuracy.metric == "top1"
    assert (scores.accuracy.teacher, scores.accuracy.runtime) == (0.75, 1.0)
    with pytest.raises(UserError, match="labels 0 to 7, but the network has 3 classes"):
        labelled = ScoredImages(images=batch.images, labels=np.array([0, 1, 2, 7]))
        score(columns, [labelled], outputs, step=lambda done: None)
