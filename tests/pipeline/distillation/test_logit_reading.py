"""Losses see logits, whatever a network ends in: read in front of its softmax or sigmoid, or made of probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from backends.facts.onnxruntime_rules import X64
from backends.facts.openvino_rules import PROFILE as OPENVINO
from backends.facts.tensorrt_rules import PROFILE as TENSORRT
from backends.facts.widths import Widths
from backends.placement.place import place
from calibration.capture.graph_from_module import capture
from calibration.ranges.observation import choose_ranges, observe
from calibration.rewrites.fold import fold
from calibration.simulation.insert import insert
from calibration.simulation.prepared import PreparedNetwork
from pipeline.distillation.losses.logits import kl_loss
from pipeline.distillation.losses.of_outputs import output_loss
from pipeline.distillation.taps import tap_float, tap_prepared
from pipeline.networks.outputs.described import describe_outputs
from pipeline.networks.outputs.meaning import Output
from pipeline.stages.targets import joint_targets

PROFILES = {"onnxruntime": X64, "openvino": OPENVINO, "tensorrt": TENSORRT}
ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda z: z.softmax(1),
    "log-softmax": lambda z: z.log_softmax(1),
    "sigmoid": lambda z: z.sigmoid(),
    "moved": lambda z: z.sigmoid().unsqueeze(1).transpose(1, 2),
    "by hand": lambda z: z.exp() / z.exp().sum(1, keepdim=True),
}


class Net(nn.Module):
    def __init__(self, end: Callable[[Tensor], Tensor], factor: float = 1.0) -> None:
        super().__init__()
        self.conv, self.head, self.end, self.factor = nn.Conv2d(3, 8, 3), nn.Linear(8, 6), end, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.factor * self.head(self.conv(x).relu().mean((2, 3))))


IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@cache
def network(end: str | None, factor: float = 1.0) -> tuple[GraphModule, tuple[Output, ...]]:
    """The same weights with this end, or with none."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Net(ENDS[end] if end else lambda z: z, factor)
    folded = fold(capture(module.eval(), IMAGES[:2], source="net"))
    kinds = {"output": "label-probabilities"} if end == "moved" else {}
    return folded, describe_outputs(folded, kinds, source="net", example=IMAGES[:2])


def prepared(folded: GraphModule, profile: Any) -> PreparedNetwork:
    plan = place(folded, profile, Widths())
    return insert(folded, plan, choose_ranges(observe(folded, plan, [IMAGES]), plan, "minmax"))


def as_distributions(logits: Tensor, outputs: Sequence[Output]) -> Tensor:
    return outputs[0].as_two_sided(logits).softmax(1)


@pytest.mark.parametrize("end", ENDS)
def test_a_float_networks_logits_are_those_in_front_of_its_end(end: str) -> None:
    folded, outputs = network(end)
    plain, _ = network(None)
    (logits,), _ = tap_float(folded, [], outputs=outputs)(IMAGES)
    expected = plain(IMAGES)[0]
    if end == "moved":
        assert logits.shape == (16, 6, 1)
        expected = expected[:, :, None]
    torch.testing.assert_close(as_distributions(logits, outputs), as_distributions(expected, outputs))
    if end != "by hand":
        assert torch.equal(logits, expected), "read, not computed"
    # The probabilities themselves are none of a student's logits: this is what the loss was before.
    (raw,) = folded(IMAGES)
    if end not in ("log-softmax",):
        assert not torch.allclose(as_distributions(raw, outputs), as_distributions(logits, outputs), atol=1e-2)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("end", ["softmax", "log-softmax", "sigmoid", "moved"])
def test_a_students_logits_are_read_in_front_of_its_end(end: str, profile: str) -> None:
    folded, outputs = network(end)
    plain, _ = network(None)
    student = prepared(folded, PROFILES[profile]).train()
    (logits,), _ = tap_prepared(student, [], folded=folded, outputs=outputs)(IMAGES)
    expected = plain(IMAGES)[0].detach().reshape(logits.shape)
    assert float((logits - expected).detach().abs().max()) < 0.03 * float(expected.abs().max())
    torch.autograd.backward(logits.square().sum())
    weight = next(value for name, value in student.graph.named_parameters() if "head" in name)
    assert weight.grad is not None and float(weight.grad.abs().max()) > 0


def test_an_integer_sigmoid_that_is_saturated_still_teaches() -> None:
    """Behind a sigmoid on a grid of 1 / 255 the probability is 1 and its slope 0: the logits in front are not."""
    folded, outputs = network("sigmoid", 60.0)
    student = prepared(folded, X64)
    assert "sigmoid" in student.integers, "the end itself is on integers here"
    tapped = tap_prepared(student.train(), [], folded=folded, outputs=outputs)
    (logits,), _ = tapped(IMAGES)
    assert float(logits.detach().abs().max()) > 20
    (values,) = student(IMAGES)
    assert set(values.detach().mul(255).round().unique().tolist()) & {0.0, 255.0}


def slow_bernoulli(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """KL of each pair of coins with probabilities sigmoid(z / T), image by image, times T squared."""
    total = 0.0
    for mine, theirs in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True):
        q, p = (1 / (1 + math.exp(-z / temperature)) for z in (mine, theirs))
        total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    return temperature**2 * total / student.numel()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_of_probabilities_is_that_of_the_logits_that_they_come_from(temperature: float) -> None:
    def loss(end: str | None, as_labels: bool = False) -> float:
        sides = []
        for factor in (1.0, 1.5):
            folded, outputs = network(end, factor)
            (logits,), _ = tap_float(folded, [], outputs=outputs)(IMAGES)
            sides.append((logits.detach(), outputs))
        (mine, outputs), (theirs, _) = sides
        if as_labels:
            outputs = (Output(name="output", holds="labels", axis=1, shape=(6,)),)
        metric = lambda a, b: kl_loss(a, b, temperature=temperature)  # noqa: E731
        return output_loss([mine], [theirs], outputs, metric).item()

    expected = loss(None)
    for end in ("softmax", "log-softmax", "by hand"):
        assert loss(end) == pytest.approx(expected, rel=1e-3), end
    plain = [network(None, factor)[0](IMAGES)[0] for factor in (1.0, 1.5)]
    slow = slow_bernoulli(plain[0], plain[1], temperature)
    assert loss("sigmoid") == pytest.approx(slow, rel=1e-3)
    assert loss("moved") == pytest.approx(slow, rel=1e-3)
    assert loss(None, as_labels=True) == pytest.approx(slow, rel=1e-3)


def test_targets_of_several_teachers_come_in_the_form_of_the_first() -> None:
    """A softmax, logits and log-probabilities of the same weights agree, and so their mean is each of them."""
    teachers = [network(end) for end in ("softmax", None, "log-softmax")]
    graphs, outputs = [graph for graph, _ in teachers], [own for _, own in teachers]
    for temperature in (None, 4.0):
        (joint,) = joint_targets(graphs[::2], outputs[::2], mirror=False, temperature=temperature)(IMAGES)
        if temperature is not None:
            (joint,) = joint_targets(graphs, outputs, mirror=False, temperature=temperature)(IMAGES)
        assert bool((joint >= 0).all())
        torch.testing.assert_close(joint, graphs[0](IMAGES)[0].detach(), atol=1e-5, rtol=1e-4)
    (mirrored,) = joint_targets(graphs[:1], outputs[:1], mirror=True, temperature=None)(IMAGES)
    torch.testing.assert_close(mirrored.sum(1), torch.ones(16))
