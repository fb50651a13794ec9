"""What outputs hold, the losses that follow from it, and how far two columns of them say the same."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from pipeline.distillation.losses.logits import kl_loss
from pipeline.distillation.losses.of_outputs import output_loss, uninformed, value_loss
from pipeline.networks.outputs.agreement import OutputTally, parity_of
from pipeline.networks.outputs.described import describe_outputs
from pipeline.networks.outputs.meaning import OUTPUT_KINDS, Output, parse_kinds, primary, said_aloud
from pipeline.validation.score import ScoredImages, score


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


def test_words_say_what_outputs_hold(graph: Any) -> None:
    kinds = parse_kinds(["boxes=classes-last", "logits=labels", "map=classes", "depth=values"])
    described_outputs = {o.name: (o.holds, o.axis, o.decisions) for o in describe_outputs(graph, kinds, source="net")}
    assert described_outputs == {
        "map": ("classes", 1, 36),
        "depth": ("values", 1, None),
        "boxes": ("classes", -1, 36),
        "logits": ("labels", 1, 4),
    }
    described = describe_outputs(graph, kinds | {"map": "values"}, source="net")
    assert described[primary(described)].name == "boxes", "the first that holds classes"


def test_maps_rows_and_vectors_among_others_are_asked_for(graph: Any) -> None:
    with pytest.raises(UserError) as caught:
        describe_outputs(graph, {"boxes": "values"}, source="net")
    line = str(caught.value)
    assert line.startswith(
        "net: the shape of map [batch, 4, 6, 6], depth [batch, 1, 6, 6], logits [batch, 4] does not say what it"
        " holds: add --output-kinds map=KIND,depth=KIND,logits=KIND, with KIND classes (logits"
    )
    assert all(word in line for word in OUTPUT_KINDS)
    values = describe_outputs(graph, {}, source="net", features=True)
    assert {output.holds for output in values} == {"values"}, "features need no word"


class Last(nn.Module):
    """A linear layer and what a test puts behind it."""

    def __init__(self, function: Any, size: int = 5) -> None:
        super().__init__()
        self.conv, self.head, self.function = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, size), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.head(self.conv(x).mean((2, 3))))


def described(function: Any, *, size: int = 5, kinds: Any = None, like: Any = ()) -> tuple[Output, ...]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Last(function, size).eval()
    example = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    captured = capture(module, example, source="net")
    return describe_outputs(captured, kinds or {}, source="net", like=like, example=example)


@pytest.mark.parametrize(
    ("function", "size", "expected"),
    [
        (lambda z: z, 5, ("classes", 1, None, False)),
        (lambda z: z.softmax(1), 5, ("classes", 1, "softmax", True)),
        (lambda z: z.log_softmax(-1), 5, ("classes", 1, "log-softmax", True)),
        (lambda z: z.softmax(1).log(), 5, ("classes", 1, "log-softmax", True)),
        (lambda z: z.reshape(-1, 2, 3).softmax(2), 6, ("classes", 2, "softmax", True)),
        (lambda z: z.reshape(-1, 2, 3).softmax(1).transpose(1, 2), 6, ("classes", 2, "softmax", True)),
        (lambda z: z.exp() / z.exp().sum(1, keepdim=True), 5, ("classes", 1, "softmax", False)),
        (lambda z: z.sigmoid(), 5, ("labels", 1, "sigmoid", True)),
        (lambda z: z.sigmoid().squeeze(1), 1, ("labels", 1, "sigmoid", True)),
        (lambda z: z, 1, ("values", 1, None, False)),
        (lambda z: nn.functional.normalize(z), 5, ("values", 1, None, False)),
        (lambda z: z.softmax(1)[:, 1], 5, ("values", 1, None, False)),
    ],
)
def test_what_a_graph_shows_of_a_single_output(function: Any, size: int, expected: tuple[Any, ...]) -> None:
    (shown,) = described(function, size=size)
    assert (shown.holds, shown.axis, shown.activation, shown.shown) == expected


def test_what_is_assumed_and_what_ends_in_an_activation_is_said() -> None:
    def lines(function: Any, *known: str) -> str:
        return "\n".join(said_aloud(described(function), known))

    assert "output [batch, 5] is taken to hold logits of 5 classes" in lines(lambda z: z)
    assert "--output-kinds output=embedding" in lines(lambda z: z)
    assert lines(lambda z: z, "output") == "", "who has said it is not told"
    assert "embeddings, since its vectors have unit length" in lines(nn.functional.normalize)
    assert "ends in a softmax and so holds probabilities" in lines(lambda z: z.softmax(1), "output")
    assert "since it ends in a sigmoid" in lines(torch.sigmoid)
    assert "log p, which are its logits" in lines(lambda z: z.exp() / z.exp().sum(1, keepdim=True))
    assert "logit of a yes or no: --output-kinds output=labels" in lines(lambda z: z.sum(1))


@pytest.mark.parametrize(
    ("function", "kinds", "message"),
    [
        (lambda z: z.softmax(1), {"output": "labels"}, "ends it in a softmax over axis 1"),
        (
            lambda z: z.reshape(-1, 1, 5).softmax(2),
            {"output": "labels"},
            "one entry there is right: output=classes-last",
        ),
    ],
)
def test_words_that_the_graph_contradicts_are_refused(function: Any, kinds: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        described(function, kinds=kinds)


def test_another_network_is_described_like_the_teacher() -> None:
    teacher = described(lambda z: z.reshape(-1, 5, 1).softmax(1))
    (student,) = described(lambda z: z.reshape(-1, 5, 1), like=teacher)
    assert (student.holds, student.axis, student.activation) == ("classes", 1, None), "its activation is its own affair"
    said = described(lambda z: z.exp() / z.exp().sum(1, keepdim=True), kinds={"output": "probabilities"})
    (student,) = described(lambda z: z, like=said)
    assert student.activation == "softmax", "what was said of the output's name holds of both"


def test_what_activations_make_of_logits_is_undone() -> None:
    logits = torch.randn(4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    for activation, axis in (("softmax", 1), ("softmax", -1), ("log-softmax", 1), ("sigmoid", 1), (None, 1)):
        activated = Output(name="o", holds="classes", axis=axis, shape=(3, 5), activation=activation)  # type: ignore[arg-type]
        undone = activated.logits(activated.activated(logits))
        for temperature in (0.5, 1.0, 4.0):
            expected = (logits / temperature).softmax(axis)
            torch.testing.assert_close((undone / temperature).softmax(axis), expected, atol=1e-4, rtol=1e-4)
        assert torch.equal(activated.decided(activated.activated(logits)), logits.argmax(axis))
    labels = Output(name="o", holds="labels", axis=1, shape=(3, 5), activation="sigmoid")
    assert torch.equal(labels.decided(labels.activated(logits)), (logits > 0).long())
    assert labels.to_json() == {"holds": "labels", "activation": "sigmoid", "threshold": 0.5}
    assert labels.logits(torch.tensor([0.0, 1.0])).abs().max() < 14, "an integer sigmoid is 0 or 1 now and then"
    # 3/4 against 1/4: log(p) differs by ln 3, and logit(3/4) is ln 3 as well.
    pair = torch.tensor([[0.75, 0.25]])
    softmax = Output(name="o", holds="classes", axis=1, shape=(2,), activation="softmax")
    assert (softmax.logits(pair)[0, 0] - softmax.logits(pair)[0, 1]).item() == pytest.approx(math.log(3), rel=1e-6)
    assert labels.logits(pair)[0, 0].item() == pytest.approx(math.log(3), rel=1e-6)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["mask=values"], "net has no output of that name; it has map, depth, boxes, logits"),
        (["depth=classes"], "no two classes there to choose from"),
        (["map=boxes"], "--output-kinds map=boxes: must be NAME=KIND, with KIND classes, classes-last, labels, prob"),
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
    means = uninformed([logits, boxes], [output(shape=(3, 4)), output("values", shape=(5,))])
    torch.testing.assert_close(means[0], logits.mean((0, 2), keepdim=True).expand(2, 3, 4))
    torch.testing.assert_close(means[1], boxes.mean().expand(2, 5))


def tally(kind: Output, target: Tensor, runtime: Tensor, oracle: Tensor | None = None) -> OutputTally:
    tallied = OutputTally(kind)
    for part in range(len(target)):  # two batches count as one
        columns = {"target": target, "oracle": target if oracle is None else oracle, "runtime": runtime}
        tallied.add({name: values[part : part + 1] for name, values in columns.items()})
    return tallied


def test_dense_decisions_by_hand() -> None:
    # Two images of two positions: the classes are 0 1 / 1 2, the runtime says 0 1 / 0 2.
    target = torch.eye(3)[torch.tensor([[0, 1], [1, 2]])].movedim(-1, 1)
    runtime = torch.eye(3)[torch.tensor([[0, 1], [0, 2]])].movedim(-1, 1)
    scores = tally(output(shape=(3, 2)), target, runtime)
    entry = scores.score()
    assert entry.metric == "agreement" and entry.runtime == entry.runtime_vs_oracle == 0.75
    assert entry.oracle == 1.0
    assert entry.mean_iou == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)
    assert entry.exact_fraction == pytest.approx(10 / 12) and entry.max_difference == 1.0
    parity = parity_of([scores, tally(output("values", shape=(2,)), torch.ones(1, 2), torch.ones(1, 2))])
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
    assert entry.runtime == pytest.approx(1 - ((target - runtime) ** 2).sum() / ((target - target.mean(0)) ** 2).sum())


@pytest.mark.parametrize("last", [False, True])
def test_dead_scores_beside_boxes_are_not_drowned_by_them(last: bool) -> None:
    """[B, 4 + 2, N] as detectors give it: boxes in pixels are exact to a hundredth, scores say nothing any more."""
    generator = torch.Generator().manual_seed(0)
    boxes, scores = 640 * torch.rand(8, 4, 50, generator=generator), torch.rand(8, 2, 50, generator=generator)
    target = torch.cat([boxes, scores], 1)
    dead = torch.cat([boxes + torch.randn(boxes.shape, generator=generator), torch.full_like(scores, 0.5)], 1)
    faint = torch.cat([boxes, scores + 0.01 * torch.randn(scores.shape, generator=generator)], 1)
    if last:
        target, dead, faint = (values.transpose(1, 2) for values in (target, dead, faint))
    kinds = output("values", shape=tuple(target.shape[1:]))
    tallied = OutputTally(kinds)
    for part in (slice(0, 3), slice(3, 8)):
        tallied.add({"target": target[part], "teacher": target[part], "oracle": target[part], "runtime": dead[part]})
    assert 1 - float((target - dead).square().sum() / (target - target.mean()).square().sum()) > 0.9999
    explained = tallied.score().runtime
    assert explained is not None and explained < 0.01
    lost = tallied.lost("runtime")
    # A constant loses all, and 8/7 of it where 8 images say what the mean of each score is.
    assert lost is not None and lost.mean() == pytest.approx(8 / 7, abs=0.05)
    # Hand-worked: of values spread evenly over 1, noise of 0.01 on 8 images leaves 1 - 0.01**2 * 12 * 8/7.
    assert tally(kinds, target, faint).score().runtime == pytest.approx(1 - 0.0012 * 8 / 7, abs=2e-4)
    assert tally(kinds, target, target).score().runtime == 1.0


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
