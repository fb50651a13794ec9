"""Which weights go on: paired differences beyond chance, and the warnings that go with them."""

from __future__ import annotations

import math

import pytest
import torch

from calibration.arithmetic.scales import SMALLEST_SCALE
from calibration.simulation.prepared import PreparedNetwork
from pipeline.distillation.training.verdict import HeldOut, Verdict, judged, remarks_on, verdict_on


def losses(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_standard_error_by_hand() -> None:
    verdict = verdict_on(losses(4, 6, 5, 9), losses(3, 4, 4, 5))
    # Differences 1, 2, 1, 4: mean 2, variance (1 + 0 + 1 + 4) / 3 = 2, standard error sqrt(2 / 4).
    assert (verdict.images, verdict.final, verdict.gain) == (4, 4.0, 2.0)
    assert verdict.error == pytest.approx(math.sqrt(0.5))
    # Of four images 3.182 standard errors are chance (Student's t of three degrees of freedom): 2.25.
    assert verdict.chance == pytest.approx(3.182 * math.sqrt(0.5), rel=1e-3)
    assert not verdict.improves and not verdict.worsens
    assert verdict_on(losses(4, 5, 5, 8), losses(2, 3, 3, 5)).improves  # 2, 2, 2, 3: 2.25 > 3.182 x 0.25
    assert verdict_on(losses(2, 3, 3, 5), losses(4, 5, 5, 8)).worsens


def test_pairs_tell_what_the_means_alone_would_not() -> None:
    generator = torch.Generator().manual_seed(0)
    each = 10 * torch.rand(100, generator=generator, dtype=torch.float64)
    better = each - 0.1 - 0.01 * torch.rand(100, generator=generator, dtype=torch.float64)
    assert verdict_on(each, better).improves
    assert not verdict_on(better, each).improves


@pytest.mark.parametrize("images", [2, 3, 9, 64])
def test_chance_improves_nothing_often(images: int) -> None:
    generator = torch.Generator().manual_seed(images)
    pairs = [torch.randn((2, images), generator=generator, dtype=torch.float64) for _ in range(200)]
    assert sum(verdict_on(*pair).improves for pair in pairs) <= 14  # 2.5 % of 200 are 5


def test_a_tie_one_image_and_no_number_keep_the_calibrated() -> None:
    assert not verdict_on(losses(1, 2), losses(1, 2)).improves
    one = verdict_on(losses(2), losses(1))
    assert one.error is None and not one.improves
    broken = verdict_on(losses(1, 2), losses(1, math.nan))
    assert broken.final is None and not broken.improves


def test_a_fall_beyond_chance_that_is_worth_nothing_keeps_the_calibrated(prepared: PreparedNetwork) -> None:
    """0.1190 -> 0.1186 in every one of 25 images: sure, and less than a hundredth."""
    before = torch.full((25,), 0.119, dtype=torch.float64) + torch.linspace(0, 1e-5, 25, dtype=torch.float64)
    nothing = verdict_on(before, before - 4e-4 - torch.linspace(0, 1e-6, 25, dtype=torch.float64))
    assert nothing.gain is not None and nothing.gain > nothing.chance and not nothing.improves
    assert "by less than 1 %" in said(nothing, prepared) and "calibrated weights are kept" in said(nothing, prepared)
    assert verdict_on(before, before * 0.98 + torch.linspace(0, 1e-6, 25, dtype=torch.float64)).improves


def test_decisions_that_turn_from_the_teachers_keep_the_calibrated(prepared: PreparedNetwork) -> None:
    """Two of eight turned away: 0.25 of the decisions, standard error sqrt(6 / 28 / 8) = 0.164; one of eight: both
    0.125."""
    before, after = losses(*[1.0] * 8), losses(*[0.5] * 7, 0.51)
    agreed, two, one = losses(*[1.0] * 8), losses(0, 0, 1, 1, 1, 1, 1, 1), losses(0, 1, 1, 1, 1, 1, 1, 1)

    def judgement(agreement: torch.Tensor | None) -> Verdict:
        first = HeldOut(losses=before, agreement=None if agreement is None else agreed, ignorant=9.0)
        return judged(first, HeldOut(losses=after, agreement=agreement, ignorant=9.0))

    turned = judgement(two)
    assert turned.decisions == -0.25 and turned.decisions_error == pytest.approx(math.sqrt(1.5 / 7 / 8))
    assert turned.turns and not turned.improves
    assert "turned 25 +- 16 % of their decisions from the teacher's" in said(turned, prepared)
    assert judgement(one).improves and judgement(agreed).improves and judgement(None).improves


def said(verdict: Verdict | None, network: PreparedNetwork, **changes: float) -> str:
    return " | ".join(remarks_on(network, verdict, **({"calibrated": 0.001, "ignorant": 1.0} | changes)))


def test_what_is_said_names_the_kind_of_failure(prepared: PreparedNetwork) -> None:
    worse = Verdict(images=9, final=0.323, gain=-0.3225, error=0.05)
    assert "has made worse what 9 held-out images lose (held-out loss 0.001 -> 0.323" in said(worse, prepared)
    tie = Verdict(images=9, final=0.00099, gain=0.00001, error=0.00002)
    assert "not improved beyond chance" in said(tie, prepared) and "--steps 0 gives at once" in said(tie, prepared)
    assert "one held-out image" in said(Verdict(images=1, final=0.1, gain=0.9, error=None), prepared)
    assert "not a finite number" in said(Verdict(images=2, final=None, gain=None, error=None), prepared)
    assert said(Verdict(images=9, final=0.0005, gain=0.0005, error=0.0001), prepared) == ""


def test_a_loss_beyond_that_of_a_blind_network_is_a_warning(prepared: PreparedNetwork) -> None:
    assert "WARNING: the held-out loss of the quantised network, 10" in said(None, prepared, calibrated=10.0)
    better = Verdict(images=9, final=0.5, gain=9.5, error=0.1)
    assert said(better, prepared, calibrated=10.0) == "", "the trained one is what goes on"


def test_a_scale_at_its_floor_is_a_warning_by_name(prepared: PreparedNetwork) -> None:
    name = next(iter(prepared.activation_grids))
    path = next(iter(prepared.weight_grids()))
    with torch.no_grad():
        prepared.activation_grid(name.removesuffix("_grid")).log_scale.fill_(math.log(SMALLEST_SCALE) - 1)
        prepared.weight_grid(path).log_scale.fill_(math.log(SMALLEST_SCALE))
    line = said(None, prepared)
    assert f"WARNING: the scale of {name.removesuffix('_grid')}, {path} is at its floor" in line


@pytest.mark.parametrize(("others", "told"), [(1e-5, True), (1e-5 * 250, True), (1e-5 * 260, False)])
def test_channels_at_the_floor_are_told_of_where_they_count(
    others: float, told: bool, prepared: PreparedNetwork
) -> None:
    """Two channels of small weights, and one of zeros, beside others."""
    path = next(iter(prepared.weight_grids()))
    grid, weight = prepared.weight_grid(path), prepared.graph.get_parameter(path)
    assert grid.grid.channel_axis == 0 and len(weight) > 4
    with torch.no_grad():
        weight.fill_(others)
        weight[:2] = 1e-5
        weight[2] = 0.0
        grid.log_scale.fill_(math.log(SMALLEST_SCALE) + 1)
        grid.log_scale[:3] = math.log(SMALLEST_SCALE)
    line = said(None, prepared)
    assert ("the scales of 2 of" in line and f"channels of {path} are at their floor" in line) is told
    assert bool(line) is told


@pytest.fixture
def prepared() -> PreparedNetwork:
    """The embedded network on ranges of one."""
    from backends.facts.widths import Widths
    from backends.onnxruntime.backend import OnnxRuntime
    from backends.placement.place import place
    from calibration.ranges.observation import Range
    from calibration.simulation.insert import insert
    from pipeline.stages.teacher import load_network

    folded = load_network("digits").folded
    plan = place(folded, OnnxRuntime().profile, Widths())
    return insert(folded, plan, {placement.group: Range(scale=0.1, zero_point=0) for placement in plan.activations})
