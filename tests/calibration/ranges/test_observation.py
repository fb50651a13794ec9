"""Every tensor that a plan rounds is seen, and its range follows from what was seen."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from backends.facts.onnxruntime_rules import X64
from backends.facts.widths import Widths
from backends.placement.place import place
from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from calibration.plan import Plan
from calibration.ranges.observation import choose_ranges, observe
from calibration.ranges.observers import RangeObserver
from calibration.rewrites.fold import fold
from tests.one_line_net import values_of

if TYPE_CHECKING:
    from tests.calibration.conftest import MakeNet, Noise


def _two_branches(n: Any, x: Tensor) -> Tensor:
    result: Tensor = n.c(torch.cat([F.relu6(n.a(x)), F.relu6(n.b(x))], 1))
    return result


@pytest.fixture
def network(net: MakeNet, noise: Noise) -> tuple[GraphModule, Plan]:
    module = net(_two_branches, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(3, 4, 3), c=nn.Conv2d(8, 4, 1))
    folded = fold(capture(module, noise(2, 3, 8, 8), source="test"))
    return folded, place(folded, X64, Widths())


def test_each_group_has_one_observer_that_saw_its_tensors(network: tuple[GraphModule, Plan], noise: Noise) -> None:
    folded, plan = network
    images = noise(8, 3, 8, 8)
    observers = observe(folded, plan, torch.split(images, 3))
    assert observers.keys() == {placement.group for placement in plan.activations}
    values = values_of(folded, images)
    for group, observer in observers.items():
        members = [placement.tensor for placement in plan.activations if placement.group == group]
        seen = torch.cat([values[member].flatten() for member in members])
        assert observer.minimum == float(seen.min()) and observer.maximum == float(seen.max())
        assert observer.batches == 3 * len(members)
        assert observer.counts is not None and float(observer.counts.sum()) == len(seen)
    assert sorted(len([p for p in plan.activations if p.group == group]) for group in observers) == [1, 1, 2]


def test_the_order_of_batches_does_not_matter(network: tuple[GraphModule, Plan], noise: Noise) -> None:
    folded, plan = network
    batches = [noise(2, 3, 8, 8, seed=seed) * scale for seed, scale in enumerate((0.1, 5.0, 1.0))]
    chosen = [choose_ranges(observe(folded, plan, order), plan, "auto") for order in itertools.permutations(batches)]
    assert all(ranges == chosen[0] for ranges in chosen)


def test_a_batch_that_runs_in_parts_is_seen_as_one(network: tuple[GraphModule, Plan], noise: Noise) -> None:
    folded, plan = network
    batches = [noise(37, 3, 8, 8, seed=seed) * (seed + 1) for seed in range(3)]
    values = [values_of(folded, batch) for batch in batches]
    for group, observer in observe(folded, plan, batches).items():
        whole = RangeObserver()
        for batch in values:
            for node in folded.graph.nodes:
                if any(p.tensor == node.name and p.group == group for p in plan.activations):
                    whole.observe(batch[node.name])
        assert observer.batches == whole.batches and observer.reach == whole.reach
        # A convolution of fewer images may give other last bits: a value at the edge of a bin then lies beside it.
        for name in ("minimum", "maximum", "average_minimum", "average_maximum"):
            assert getattr(observer, name) == pytest.approx(getattr(whole, name), rel=1e-6, abs=1e-7)
        assert observer.counts is not None and whole.counts is not None
        assert observer.counts.sum() == whole.counts.sum()
        assert (observer.counts.cumsum(0) - whole.counts.cumsum(0)).abs().max() <= 3


def test_a_limit_ends_the_range(network: tuple[GraphModule, Plan], noise: Noise) -> None:
    folded, plan = network
    (limited,) = {placement.group for placement in plan.activations if placement.limit is not None}
    observers = observe(folded, plan, [noise(4, 3, 8, 8) * 100])
    for method in ("minmax", "auto"):
        ranges = choose_ranges(observers, plan, method)
        assert ranges[limited].scale <= 6 / 255 and ranges[limited].zero_point == 0
        assert all(ranges[group].scale > 6 / 255 for group in ranges if group != limited)


def test_observing_leaves_the_graph_as_it_was(network: tuple[GraphModule, Plan], noise: Noise) -> None:
    folded, plan = network
    before = {name: value.clone() for name, value in folded.state_dict().items()}
    observe(folded, plan, [noise(4, 3, 8, 8)])
    assert all(torch.equal(before[name], value) for name, value in folded.state_dict().items())
    assert all(parameter.grad is None for parameter in folded.parameters())


def test_the_first_tensor_that_is_not_finite_is_named(
    network: tuple[GraphModule, Plan], noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    folded, plan = network
    with torch.no_grad():
        # The second tensor of a group: it is named, not the group or its first tensor.
        folded.get_parameter("b.weight")[0, 0, 0, 0] = float("nan")
    names = [placement.tensor for placement in plan.activations]
    bad = next(name for name in names if name not in {"x", "relu6"} and name.startswith("relu6"))
    with pytest.raises(UserError, match=f"^{bad}: the network computes values there that are not finite"):
        observe(folded, plan, [noise(2, 3, 8, 8)])


def test_images_that_are_not_finite_are_named(network: tuple[GraphModule, Plan], noise: Noise) -> None:
    folded, plan = network
    with pytest.raises(UserError, match=r"^x: the network computes values there that are not finite"):
        observe(folded, plan, [noise(2, 3, 8, 8), noise(2, 3, 8, 8) / 0.0])


def test_outputs_that_are_no_numbers_for_some_image_are_named(net: MakeNet, noise: Noise) -> None:
    # No tensor that a plan rounds lies behind the division: only the output shows that a black image has no answer.
    module = net(lambda n, x: n.a(x).mean((2, 3)) / x.abs().mean((1, 2, 3))[:, None], a=nn.Conv2d(3, 4, 3))
    folded = fold(capture(module, noise(2, 3, 8, 8), source="test"))
    plan = place(folded, X64, Widths())
    images = noise(4, 3, 8, 8)
    observe(folded, plan, [images])
    images[2] = 0
    with pytest.raises(UserError, match=r"NaN or infinite for images that calibrate \(.*first behind div"):
        observe(folded, plan, [images])
