"""A mean over a map is no finer than the integers that it is a mean of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends.facts.onnxruntime_rules import X64
from backends.facts.widths import Widths
from backends.placement.place import place
from calibration.plan import Plan
from calibration.ranges.means import resolvable_means
from calibration.ranges.observation import Range
from tests.chain import folded_graph
from tests.one_line_net import Net


def mean_behind(
    line: Callable[[Any, Tensor], Tensor] | None = None, *, size: int = 4
) -> tuple[torch.fx.GraphModule, Plan]:
    """A layer, a mean over a map [size, 2 * size] of its output, or what else a line makes of it, and a layer."""
    line = line or (lambda n, y: F.adaptive_avg_pool2d(y, 1))
    network = Net(lambda n, x: n.b(line(n, n.a(x))), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1))
    folded = folded_graph(network, torch.randn(2, 3, size, 2 * size))
    return folded, place(folded, X64, Widths())


def ranges_of(plan: Plan, **known: Range) -> dict[str, Range]:
    return {group: known.get(group, Range(scale=0.5, zero_point=0)) for group in {p.group for p in plan.activations}}


def widened(folded: torch.fx.GraphModule, plan: Plan, mean: Range) -> Range:
    (name,) = [p.group for p in plan.activations if "pool" in p.tensor]
    result = resolvable_means(folded, plan, ranges_of(plan, **{name: mean}))
    assert {group: kept for group, kept in result.items() if group != name} == {
        group: kept for group, kept in ranges_of(plan).items() if group != name
    }
    return result[name]


def test_the_step_of_a_mean_of_32_positions_is_a_32th_of_the_maps_by_hand() -> None:
    folded, plan = mean_behind()
    # 0.5 / (4 * 8) = 1 / 64; the middle of 0 to 255 was 127.5 - 128 = -0.5 steps of 1 / 1000, -0.03 of the new ones.
    assert widened(folded, plan, Range(scale=1e-3, zero_point=128)) == Range(scale=1 / 64, zero_point=128)
    # All that was seen lies from -0.255 to 0, its middle -0.1275 is 8.16 new steps below zero.
    assert widened(folded, plan, Range(scale=1e-3, zero_point=255)) == Range(scale=1 / 64, zero_point=136)


def test_a_mean_that_moves_in_larger_steps_stays_as_it_is() -> None:
    folded, plan = mean_behind()
    kept = Range(scale=1 / 64, zero_point=3)
    assert widened(folded, plan, kept) == kept


def test_a_symmetric_grid_stays_one() -> None:
    folded, plan = mean_behind(lambda n, y: F.adaptive_avg_pool2d(y.relu(), 1))
    assert widened(folded, plan, Range(scale=1e-9, zero_point=0)) == Range(scale=1 / 64, zero_point=0)


@pytest.mark.parametrize(
    ("line", "step"),
    [
        (lambda n, y: F.adaptive_avg_pool2d(y.flip(3), 1), 1 / 64),  # moved
        (lambda n, y: F.adaptive_avg_pool2d(y[:, :, 1:] * 0.25, 1), 0.25 * 0.5 / 24),  # and multiplied by a number
    ],
)
def test_what_lies_between_the_map_and_its_mean_counts(line: Callable[[Any, Tensor], Tensor], step: float) -> None:
    folded, plan = mean_behind(line)
    assert widened(folded, plan, Range(scale=1e-9, zero_point=128)).scale == pytest.approx(step)
