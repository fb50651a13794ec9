"""The whole loss: its sum, its parts, and what it refuses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from calibration.errors import UserError
from pipeline.distillation.affinity import fa_loss, ffa_loss
from pipeline.distillation.logits import kl_loss, mse_loss
from pipeline.distillation.objective import (
    ObjectiveConfig,
    affinity_form,
    distillation_loss,
    uninformed_loss,
)
from pipeline.outputs import Output

Maps = dict[str, Tensor]
LOGITS = (Output(name="output", holds="classes", axis=1, shape=(5,)),)


def outputs(seed: int = 0) -> tuple[Tensor, Tensor, Maps, Maps]:
    """Logits of student and teacher, then maps: one for each of the Gram form, FFA and FA."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    shapes = {"early": (4, 3, 12, 12), "wide": (4, 60, 10, 10), "late": (4, 20, 3, 3)}
    student_maps = {tap: draw(*shape) for tap, shape in shapes.items()}
    teacher_maps = {tap: draw(*shape) for tap, shape in shapes.items()}
    return draw(4, 5), draw(4, 5), student_maps, teacher_maps


def loss_of(
    config: ObjectiveConfig, given: tuple[Tensor, Tensor, Maps, Maps], seed: int = 1
) -> tuple[Tensor, dict[str, Tensor]]:
    student, teacher, *maps = given
    return distillation_loss(
        [student], [teacher], *maps, outputs=LOGITS, config=config, generator=torch.Generator().manual_seed(seed)
    )


def test_total_is_the_weighted_sum_of_the_named_parts() -> None:
    given = outputs()
    student_logits, teacher_logits, student_maps, teacher_maps = given
    config = ObjectiveConfig(affinity="fa", affinity_order="1", logit_weight=2.0, affinity_weight=3.0)
    total, parts = loss_of(config, given)
    expected = {
        f"affinity/{tap}": fa_loss(student_maps[tap], teacher_maps[tap], order="1").item() for tap in student_maps
    }
    expected["affinity"] = sum(expected.values())
    expected["logits"] = kl_loss(student_logits, teacher_logits, temperature=4.0).item()
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(expected)
    assert total.item() == pytest.approx(2 * expected["logits"] + 3 * expected["affinity"])


def test_logits_alone_look_at_no_map() -> None:
    student_logits, teacher_logits, student_maps, _ = outputs()
    config = ObjectiveConfig(logit_loss="mse", affinity="none", affinity_order="1", affinity_weight=0.0)
    total, parts = loss_of(config, (student_logits, teacher_logits, student_maps, {}))
    assert total.item() == mse_loss(student_logits, teacher_logits).item()
    assert list(parts) == ["logits"]


def test_auto_takes_each_form_and_never_changes_the_meaning() -> None:
    given = outputs()
    config = ObjectiveConfig(affinity="auto")
    forms = {tap: affinity_form(tap, given[2][tap].shape, given[3][tap].shape, config=config) for tap in given[2]}
    assert forms == {"early": "gram", "wide": "ffa", "late": "fa"}
    _, parts = loss_of(config, given)
    for tap in ("early", "late"):
        exact = fa_loss(given[2][tap], given[3][tap], order="squared")
        assert parts[f"affinity/{tap}"].item() == pytest.approx(exact.item(), rel=1e-5)
    # The only tap that draws gets the first projections of the generator.
    fast = ffa_loss(
        given[2]["wide"],
        given[3]["wide"],
        order="squared",
        projections=15,
        generator=torch.Generator().manual_seed(1),
    )
    assert parts["affinity/wide"].item() == fast.item()


def test_taps_draw_projections_of_their_own_in_the_students_order() -> None:
    student_logits, teacher_logits, maps, teacher_maps = outputs()
    config = ObjectiveConfig(affinity="ffa", projections=3)
    same = {"a": maps["early"], "b": maps["early"]}
    same_teacher = {"b": teacher_maps["early"], "a": teacher_maps["early"]}
    given = (student_logits, teacher_logits, same, same_teacher)
    _, parts = loss_of(config, given)
    assert parts["affinity/a"] != parts["affinity/b"]
    _, again = loss_of(config, given)
    assert parts == again


def test_gradients_reach_the_student_alone_and_parts_are_detached() -> None:
    given = outputs()
    for tensor in (given[0], given[1], *given[2].values(), *given[3].values()):
        tensor.requires_grad_()
    total, parts = loss_of(ObjectiveConfig(), given)
    torch.autograd.backward(total)
    for tensor in (given[0], *given[2].values()):
        assert tensor.grad is not None and tensor.grad.isfinite().all() and tensor.grad.abs().sum() > 0
    for tensor in (given[1], *given[3].values()):
        assert tensor.grad is None
    assert not any(part.requires_grad for part in parts.values())


def test_the_batch_size_changes_nothing() -> None:
    given = outputs()
    twice: Any = [
        torch.cat([x, x]) if isinstance(x, Tensor) else {tap: torch.cat([m, m]) for tap, m in x.items()} for x in given
    ]
    config = ObjectiveConfig()
    assert loss_of(config, twice)[0].item() == pytest.approx(loss_of(config, given)[0].item(), rel=1e-5)


@pytest.mark.parametrize("where", ["logits", "map"])
def test_a_loss_that_is_not_finite_is_returned(where: str) -> None:
    given = outputs()
    spoilt = given[0] if where == "logits" else given[2]["late"]
    spoilt.view(-1)[0] = math.nan
    total, parts = loss_of(ObjectiveConfig(), given)
    assert total.isnan()
    assert parts["logits"].isnan() == (where == "logits")


def operations(work: Callable[[], object]) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    return {event.key for event in profile.key_averages()}


# What makes the host wait for the values on a device.
WAITING = {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero"}


@pytest.mark.parametrize(
    "config",
    [
        ObjectiveConfig(),
        ObjectiveConfig(affinity="fa", affinity_order="2"),
        ObjectiveConfig(logit_loss="mse", affinity="ffa", affinity_order="1", projections=4),
    ],
)
def test_nothing_waits_for_a_value(config: ObjectiveConfig) -> None:
    given = outputs()
    for tensor in (given[0], *given[2].values()):
        tensor.requires_grad_()
    used = operations(lambda: torch.autograd.backward(loss_of(config, given)[0]))
    assert "aten::bmm" in used
    assert not used & WAITING
    assert operations(lambda: loss_of(config, given)[0].item()) & WAITING


def test_uninformed_loss_is_that_of_a_constant_student() -> None:
    teacher = torch.tensor([[math.log(3), 0.0], [-math.log(3), 0.0]])
    # The mean is (0, 0): for each image KL = 0.13081 at T = 1 (see the logit losses), or ln(3)^2 / 2.
    config = ObjectiveConfig(temperature=1.0, logit_weight=2.0)
    assert uninformed_loss([teacher], LOGITS, config=config).item() == pytest.approx(2 * 0.13081, abs=2e-5)
    mse = dataclasses.replace(config, logit_loss="mse")
    assert uninformed_loss([teacher], LOGITS, config=mse).item() == pytest.approx(math.log(3) ** 2)
    dense = teacher.t()[None, :, :, None]
    assert uninformed_loss([dense], LOGITS, config=config).item() == pytest.approx(2 * 0.13081, abs=2e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"logit_loss": "l1"}, "--logit-loss l1: must be one of kl, mse"),
        ({"affinity": "cka"}, "--affinity cka: must be one of auto, fa, ffa, gram, none"),
        ({"affinity": "fa", "affinity_order": "3"}, "--affinity-order 3: must be one of 1, 2, squared"),
        ({"temperature": 0.0}, "--temperature 0: must be a finite number above 0"),
        ({"temperature": -4.0}, "--temperature -4: must be a finite number above 0"),
        ({"logit_weight": math.nan}, "--logit-weight nan: must be a finite number above 0"),
        (
            {"affinity_weight": math.inf},
            "--affinity-weight inf: must be a finite number above 0; --affinity none",
        ),
        ({"affinity_weight": 0.0}, "--affinity-weight 0: must be a finite number above 0; --affinity none"),
        ({"projections": 0}, "--projections 0: must be at least 1"),
        ({"affinity_order": "1"}, "--affinity-order 1 has no auto form: add --affinity fa or ffa"),
        ({"affinity": "gram", "affinity_order": "2"}, "--affinity-order 2 has no gram form"),
    ],
)
def test_a_setting_that_is_not_allowed_is_refused_at_birth(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        ObjectiveConfig(**settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_more_projections_than_positions_are_refused_with_the_tap() -> None:
    given = outputs()
    with pytest.raises(UserError) as caught:
        loss_of(ObjectiveConfig(affinity="ffa", projections=10), given)
    assert str(caught.value) == (
        "--projections 10 is more than the 9 positions (3x3) of tap late: use --projections 9 or fewer, "
        "or --affinity auto"
    )
    loss_of(ObjectiveConfig(affinity="ffa", projections=9), given)
    loss_of(ObjectiveConfig(affinity="auto", projections=5000), given)


def test_what_only_the_networks_show_is_refused() -> None:
    student_logits, teacher_logits, student_maps, teacher_maps = outputs()
    with pytest.raises(UserError, match="--affinity auto needs at least one tap"):
        loss_of(ObjectiveConfig(), (student_logits, teacher_logits, {}, {}))
    with pytest.raises(ValueError, match="differ"):
        loss_of(
            ObjectiveConfig(),
            (student_logits, teacher_logits, student_maps, {"early": teacher_maps["early"]}),
        )
    single = (torch.zeros(4, 1), torch.zeros(4, 1), student_maps, teacher_maps)
    with pytest.raises(UserError, match="1 output is always 0: use --logit-loss mse"):
        loss_of(ObjectiveConfig(), single)
    loss_of(ObjectiveConfig(logit_loss="mse"), single)
    with pytest.raises(ValueError, match="has no form"):
        affinity_form("a", torch.Size((1, 2, 3, 3)), torch.Size((1, 2, 3, 3)), config=ObjectiveConfig(affinity="none"))
