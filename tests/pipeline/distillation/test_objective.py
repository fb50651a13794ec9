"""The whole loss: its sum, its parts, what it builds for real networks, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from calibration.graph.interface import interface_of
from calibration.rewrites.fold import fold
from pipeline.config import DistillationConfig
from pipeline.config.affinity_points import POINTS
from pipeline.distillation.build import build_objective
from pipeline.distillation.losses.affinity import fa_loss, ffa_loss
from pipeline.distillation.losses.feed import feed_loss
from pipeline.distillation.losses.logits import class_loss, cosine_loss, kl_loss, mse_loss
from pipeline.distillation.objective import (
    Objective,
    affinity_form,
    uninformed_loss,
)
from pipeline.distillation.taps import tap_float
from pipeline.distillation.terms import Seen, Signals
from pipeline.networks.outputs.described import describe_outputs
from pipeline.networks.outputs.meaning import Output

LOGITS = (Output(name="output", holds="classes", axis=1, shape=(5,)),)


class Net(nn.Module):
    """Maps at 12x12, 6x6 and 3x3, pooled features, a classifier."""

    def __init__(self, widths: tuple[int, int, int] = (3, 60, 20), classes: int = 5, size: int = 24) -> None:
        super().__init__()
        channels = (2, *widths)
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(channels, widths, strict=False))
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x).relu()
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def graph(seed: int, **changes: Any) -> GraphModule:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = Net(**changes)
    return fold(capture(module, torch.zeros(2, 2, 24, 24), source="net"))


@pytest.fixture(scope="module")
def student() -> GraphModule:
    return graph(0)


@pytest.fixture(scope="module")
def teacher() -> GraphModule:
    return graph(1)


@pytest.fixture(scope="module")
def other() -> GraphModule:
    """A teacher of other widths."""
    return graph(2, widths=(4, 7, 9))


IMAGES = torch.randn(4, 2, 24, 24, generator=torch.Generator().manual_seed(0))
TAPS = ("relu", "relu_1", "relu_2")


def signals(
    objective: Objective,
    student: GraphModule,
    *teachers: GraphModule,
    images: Tensor = IMAGES,
    step: int = 0,
    steps: int = 1,
    **more: Any,
) -> Signals:
    def seen(graph: GraphModule, pairs: Mapping[str, str]) -> Seen:
        outputs, features = tap_float(graph, list(pairs.values()), list(pairs))(images)
        return Seen(outputs=outputs, features=features)

    taps = objective.student_taps
    with torch.no_grad():
        taught = tuple(seen(t, pairs) for t, pairs in zip(teachers, objective.taps, strict=True))
    return Signals(
        student=seen(student, dict(zip(taps, taps, strict=True))),
        teachers=taught,
        step=step,
        steps=steps,
        generator=torch.Generator().manual_seed(1),
        **more,
    )


def built(config: DistillationConfig, student: GraphModule, *teachers: GraphModule, **more: Any) -> Objective:
    kinds = {"output": "classes"} if interface_of(student).outputs == ("output",) else {}
    settings: dict[str, Any] = {"outputs": describe_outputs(student, kinds, source="net"), "seed": 0}
    return build_objective(config, student, teachers, **settings | more)


def test_total_is_the_weighted_sum_of_the_named_parts(student: GraphModule, teacher: GraphModule) -> None:
    config = DistillationConfig(affinity="fa", affinity_order="1", logit_weight=2.0, affinity_weight=3.0)
    objective = built(config, student, teacher)
    compared = signals(objective, student, teacher)
    total, parts = objective(compared)
    features = compared.teachers[0].features
    expected = {
        f"affinity/{tap}": fa_loss(compared.student.features[tap], features[tap], order="1").item() for tap in TAPS
    }
    expected["affinity"] = sum(expected.values())
    expected["logits"] = kl_loss(compared.student.outputs[0], compared.teachers[0].outputs[0], temperature=4.0).item()
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(expected)
    assert total.item() == pytest.approx(2 * expected["logits"] + 3 * expected["affinity"])


def test_logits_alone_look_at_no_map(student: GraphModule, teacher: GraphModule) -> None:
    objective = built(DistillationConfig(logit_loss="mse", affinity="none"), student, teacher)
    assert objective.student_taps == ()
    compared = signals(objective, student, teacher)
    total, parts = objective(compared)
    assert total.item() == mse_loss(compared.student.outputs[0], compared.teachers[0].outputs[0]).item()
    assert list(parts) == ["logits"]


def test_auto_takes_the_cheapest_form_and_never_changes_the_meaning(student: GraphModule, teacher: GraphModule) -> None:
    config = DistillationConfig()
    sizes = {"early": (4, 3, 12, 12), "wide": (4, 60, 10, 10), "late": (4, 20, 3, 3)}
    forms = {tap: affinity_form(tap, torch.Size(s), torch.Size(s), config=config) for tap, s in sizes.items()}
    assert forms == {"early": "gram", "wide": "ffa", "late": "fa"}
    objective = built(config, student, teacher)
    compared = signals(objective, student, teacher)
    _, parts = objective(compared)
    for tap in TAPS:
        exact = fa_loss(compared.student.features[tap], compared.teachers[0].features[tap], order="squared")
        assert parts[f"affinity/{tap}"].item() == pytest.approx(exact.item(), rel=1e-4)


def test_taps_draw_projections_of_their_own(student: GraphModule, teacher: GraphModule) -> None:
    objective = built(DistillationConfig(affinity="ffa", projections=3), student, teacher)
    compared = signals(objective, student, teacher)
    _, parts = objective(compared)
    first, second = (compared.student.features["relu"], compared.teachers[0].features["relu"])
    generator = torch.Generator().manual_seed(1)
    expected = ffa_loss(first, second, order="squared", projections=3, generator=generator)
    assert parts["affinity/relu"].item() == expected.item()
    assert parts == objective(signals(objective, student, teacher))[1]


def test_every_term_adds_its_loss(student: GraphModule, teacher: GraphModule, other: GraphModule) -> None:
    config = DistillationConfig(
        affinity="rkd-d",
        label_weight=0.5,
        class_weight=0.25,
        feed_weight=0.1,
        sakd_weight=2.0,
        speq_weight=3.0,
        temperature=2.0,
    )
    objective = built(config, student, teacher, other)
    assert objective.wants_ensemble and objective.reals
    labels = torch.tensor([0, 4, 2, 1])
    ensemble = (torch.randn(4, 5, generator=torch.Generator().manual_seed(5)),)
    compared = signals(objective, student, teacher, other, labels=labels, ensemble=ensemble)
    total, parts = objective(compared)
    logits, targets = compared.student.outputs[0], [seen.outputs[0] for seen in compared.teachers]
    mean = torch.stack([(z / 2).softmax(1) for z in targets]).mean(0)
    assert parts["logits"].item() == pytest.approx(kl_loss(logits, 2 * mean.log(), temperature=2.0).item(), rel=1e-5)
    assert parts["labels"].item() == pytest.approx(class_loss(logits, labels).item())
    classes = torch.stack([z.softmax(1) for z in targets]).mean(0).argmax(1)
    assert parts["classes"].item() == pytest.approx(class_loss(logits, classes).item())
    assert parts["ensemble"].item() == pytest.approx(cosine_loss(logits, ensemble[0], temperature=2.0).item())
    transforms: Any = objective.terms["feed"].transforms
    by_hand = [
        feed_loss(transforms[i]["relu_2"](compared.student.features["relu_2"]), seen.features["relu_2"]).item()
        for i, seen in enumerate(compared.teachers)
    ]
    assert parts["feed"].item() == pytest.approx(sum(by_hand), rel=1e-5)
    weights = {"labels": 0.5, "classes": 0.25, "affinity": 25, "feed": 0.1, "branches": 2, "ensemble": 3, "logits": 1}
    assert total.item() == pytest.approx(sum(weights[name] * parts[name].item() for name in weights), rel=1e-5)


def test_adapters_and_transforms_are_trained_and_the_teachers_branches_are_not(
    student: GraphModule, other: GraphModule
) -> None:
    config = DistillationConfig(affinity="auto", adapters="trained", feed_weight=0.1, sakd_weight=1.0)
    objective = built(config, student, other)
    torch.autograd.backward(objective(signals(objective, student, other))[0])
    for name, parameter in objective.named_parameters():
        assert parameter.requires_grad == ("branches.teacher" not in name)
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    again = built(config, student, other)
    for first, second in zip(objective.parameters(), again.parameters(), strict=True):
        assert torch.equal(first, second)
    different = built(config, student, other, seed=1)
    assert any(not torch.equal(a, b) for a, b in zip(objective.parameters(), different.parameters(), strict=True))


def test_the_teachers_branches_learn_the_teachers_logits(student: GraphModule, teacher: GraphModule) -> None:
    objective = built(DistillationConfig(affinity="none", sakd_weight=1.0), student, teacher)
    term, (seen,) = objective.branches, signals(objective, student, teacher).teachers
    assert term is not None
    parameters = [parameter.requires_grad_() for parameter in term.teacher.parameters()]
    optimiser, losses = torch.optim.Adam(parameters, lr=0.05), []
    for _ in range(60):
        loss = term.teach(seen)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_weights_and_temperatures_follow_their_schedules(student: GraphModule, teacher: GraphModule) -> None:
    config = DistillationConfig(
        affinity="none", logit_weight="linear:1:0", class_weight="linear:0:1", temperature="cosine:4:1"
    )
    objective = built(config, student, teacher)
    totals = []
    for step, expected in ((0, {"logits"}), (5, {"logits", "classes"}), (10, {"classes"})):
        compared = signals(objective, student, teacher, step=step, steps=11)
        total, parts = objective(compared)
        assert set(parts) == expected
        totals.append(total.item())
        if "logits" in parts:
            by_hand = kl_loss(
                compared.student.outputs[0], compared.teachers[0].outputs[0], temperature=4 if step == 0 else 2.5
            )
            assert parts["logits"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert totals[1] == pytest.approx(0.5 * (parts["classes"].item() + by_hand.item()), rel=1e-5)


def test_gradients_reach_the_student_alone_and_parts_are_detached(student: GraphModule, teacher: GraphModule) -> None:
    objective = built(DistillationConfig(), student, teacher)
    for parameter in student.parameters():
        parameter.grad = None
    total, parts = objective(signals(objective, student, teacher))
    torch.autograd.backward(total)
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(part.requires_grad for part in parts.values())


def test_the_batch_size_changes_nothing(student: GraphModule, teacher: GraphModule) -> None:
    objective = built(DistillationConfig(), student, teacher)
    twice = objective(signals(objective, student, teacher, images=torch.cat([IMAGES, IMAGES])))[0]
    assert twice.item() == pytest.approx(objective(signals(objective, student, teacher))[0].item(), rel=1e-5)


def test_a_loss_that_is_not_finite_is_returned(student: GraphModule, teacher: GraphModule) -> None:
    objective = built(DistillationConfig(), student, teacher)
    compared = signals(objective, student, teacher)
    compared.student.features["relu_2"].data[0, 0, 0, 0] = math.nan
    total, parts = objective(compared)
    assert total.isnan() and not parts["logits"].isnan()


def operations(work: Callable[[], object]) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        work()
    return {event.key for event in profile.key_averages()}


# What makes the host wait for the values on a device.
WAITING = {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"}


@pytest.mark.parametrize(
    "config",
    [
        DistillationConfig(),
        DistillationConfig(affinity="fa", affinity_order="2"),
        DistillationConfig(logit_loss="mse", affinity="ffa", affinity_order="1", projections=4),
        *(DistillationConfig(affinity=name, feed_weight=1.0) for name in POINTS),  # type: ignore[arg-type]  # its names are choices
    ],
)
def test_nothing_waits_for_a_value(config: DistillationConfig, student: GraphModule, teacher: GraphModule) -> None:
    objective = built(config, student, teacher)
    compared = signals(objective, student, teacher)
    used = operations(lambda: torch.autograd.backward(objective(compared)[0]))
    assert used and not used & WAITING


def test_uninformed_loss_is_that_of_a_constant_student() -> None:
    teacher = torch.tensor([[math.log(3), 0.0], [-math.log(3), 0.0]])
    # The mean is (0, 0): for each image KL = 0.13081 at T = 1 (see the logit losses), or ln(3)^2 / 2.
    config = DistillationConfig(temperature=1.0)
    assert uninformed_loss([teacher], LOGITS, config=config).item() == pytest.approx(0.13081, abs=1e-5)
    mse = DistillationConfig(temperature=1.0, logit_loss="mse")
    assert uninformed_loss([teacher], LOGITS, config=mse).item() == pytest.approx(math.log(3) ** 2 / 2)
    dense = teacher.t()[None, :, :, None]
    assert uninformed_loss([dense], LOGITS, config=config).item() == pytest.approx(0.13081, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logit_loss": "l1"}, "--logit-loss l1: must be kl or mse"),
        ({"affinity": "cka"}, "--affinity cka: must be auto, fa, ffa, gram, none, sp"),
        ({"affinity": "fa", "affinity_order": "3"}, "--affinity-order 3: must be squared, 1 or 2"),
        ({"temperature": 0.0}, "--temperature 0.0: must be a finite number above 0"),
        ({"temperature": -4.0}, "--temperature -4.0: must be a finite number above 0"),
        ({"temperature": "cosine:4:0"}, "--temperature cosine:4:0: every value must be a finite number above 0"),
        ({"logit_weight": math.nan}, "--logit-weight nan: must be a number or text"),
        ({"affinity_weight": math.inf}, "--affinity-weight inf: must be a number or text"),
        ({"affinity_weight": 0.0}, "--affinity-weight 0.0: must be a finite number above 0; --affinity none"),
        ({"feed_weight": 0.0}, "--feed-weight 0.0: must be a finite number above 0"),
        ({"label_weight": "linear:1"}, "--label-weight linear:1: must be a number, linear:A:B"),
        ({"projections": 0}, "--projections 0: must be 1 or more"),
        ({"affinity_order": "1"}, "--affinity-order 1 has no auto form: add --affinity fa or ffa"),
        ({"affinity": "gram", "affinity_order": "2"}, "--affinity-order 2 has no gram form"),
        ({"affinity": "pkt", "affinity_order": "1"}, "--affinity-order 1 belongs to --affinity fa and ffa, not pkt"),
        ({"affinity": "pkt", "adapters": "trained"}, "--adapters trained belongs to losses over pixels"),
        ({"affinity": "none", "adapters": "trained"}, "--adapters trained belongs to losses over pixels"),
        ({"affinity": "sp", "distance": "l1"}, "--distance l1: --affinity sp leaves no choice of it"),
        ({"speq_bits": 1}, "--speq-bits 1: must be 2 to 8"),
        ({"speq_probability": 0.0}, "--speq-probability 0: must be above 0 and at most 1"),
    ],
)
def test_a_setting_that_is_not_allowed_is_refused_at_birth(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        DistillationConfig(**settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_more_projections_than_positions_are_refused_with_the_tap(student: GraphModule, teacher: GraphModule) -> None:
    with pytest.raises(UserError) as caught:
        built(DistillationConfig(affinity="ffa", projections=10), student, teacher)
    assert str(caught.value) == (
        "--projections 10 is more than the 9 positions (3x3) of tap relu_2: use --projections 9 or fewer, "
        "or --affinity auto"
    )
    built(DistillationConfig(affinity="ffa", projections=9), student, teacher)
    built(DistillationConfig(affinity="auto", projections=5000), student, teacher)


class Dense(nn.Module):
    """A network of maps alone."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.conv(x)
        return maps


def test_what_only_the_networks_show_is_refused(student: GraphModule, teacher: GraphModule) -> None:
    dense = fold(capture(Dense(3), torch.zeros(2, 2, 24, 24), source="net"))
    with pytest.raises(UserError, match=r"needs pooled features.*the student has none"):
        built(DistillationConfig(affinity="rkd-d"), dense, dense)
    for term in ("label_weight", "class_weight", "sakd_weight", "speq_weight"):
        weight: dict[str, Any] = {term: 1.0}
        with pytest.raises(UserError, match=f"--{term.replace('_', '-')} needs a classifier"):
            built(DistillationConfig(affinity="none", **weight), dense, dense)
    with pytest.raises(
        UserError, match=r"--taps nowhere: the student has no feature map of that name; it has stages_0, relu"
    ):
        built(DistillationConfig(taps=("nowhere",)), student, teacher)
    with pytest.raises(UserError, match=r"compares pixels, and tap \w+ is a vector"):
        built(DistillationConfig(taps=("pooled",)), student, teacher)
    with pytest.raises(ValueError, match="has no form"):
        affinity_form(
            "a", torch.Size((1, 2, 3, 3)), torch.Size((1, 2, 3, 3)), config=DistillationConfig(affinity="none")
        )
