"""FAQD's own weight quantisers: the formulas by hand and by loops, in a network, and what is left of them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from backends.facts.onnxruntime_rules import X64
from backends.facts.widths import Widths
from backends.placement.place import place
from calibration.ranges.observation import choose_ranges, observe
from calibration.simulation.closed_forms import FORMS, ClosedForms
from calibration.simulation.freeze import freeze
from calibration.simulation.insert import insert
from tests.one_line_net import folded_with_seed, small_images

WEIGHT = [0.1, -0.5, 0.9, -0.2]


@pytest.mark.parametrize(
    ("bits", "integers", "scale"),
    [
        (1, [1, -1, 1, -1], 0.425),  # the mean of the magnitudes
        (2, [0, -1, 1, 0], 0.7),  # above 0.7 x 0.425 lie 0.5 and 0.9
        (4, [1, -4, 7, -2], 8.8 / 70),  # steps of 0.12; (0.1 + 4 x 0.5 + 7 x 0.9 + 2 x 0.2) / (1 + 16 + 49 + 4)
    ],
)
def test_by_hand(bits: int, integers: list[int], scale: float) -> None:
    chosen, step = FORMS[bits](torch.tensor(WEIGHT))
    assert chosen.tolist() == integers
    assert float(step) == pytest.approx(scale, rel=1e-6)


def slowly(weight: list[float], bits: int) -> tuple[list[int], float]:
    """The formulas as the methods' description writes them, number by number."""
    magnitudes, signs = [abs(w) for w in weight], [math.copysign(1, w) for w in weight]
    mean = sum(magnitudes) / len(weight)
    if bits == 1:
        return [int(sign) for sign in signs], mean
    if bits == 2:
        kept = [w for w in magnitudes if w > 0.7 * mean]
        return [int(s) if w > 0.7 * mean else 0 for s, w in zip(signs, magnitudes, strict=True)], sum(kept) / len(kept)
    d = max(magnitudes) / 15
    q = [min(math.ceil(w / (2 * d) - 0.5), 7) for w in magnitudes]
    scale = sum(w * n for w, n in zip(magnitudes, q, strict=True)) / sum(n * n for n in q)
    return [int(s * n) for s, n in zip(signs, q, strict=True)], scale


@pytest.mark.parametrize("bits", FORMS)
@pytest.mark.parametrize("seed", range(5))
def test_by_loops(bits: int, seed: int) -> None:
    weight = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    integers, scale = FORMS[bits](weight)
    expected, step = slowly(weight.flatten().tolist(), bits)
    assert integers.flatten().tolist() == expected
    assert float(scale) == pytest.approx(step, rel=1e-12)


@pytest.mark.parametrize("bits", FORMS)
def test_a_weight_of_zeros_stays_finite(bits: int) -> None:
    integers, scale = FORMS[bits](torch.zeros(4))
    assert bool(integers.isfinite().all()) and bool(scale.isfinite())


class Net(nn.Module):
    """Convolutions whose channels differ in size by orders of magnitude, as folded ones may."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 5)
        with torch.no_grad():
            self.second.weight.mul_(torch.logspace(-2, 1, 32).reshape(-1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))
        return logits


@pytest.fixture(params=[1, 2, 4])
def made(request: pytest.FixtureRequest) -> SimpleNamespace:
    folded = folded_with_seed(Net)
    plan = place(folded, X64, Widths(weights=request.param))
    ranges = choose_ranges(observe(folded, plan, [small_images(1)]), plan, "auto")
    return SimpleNamespace(folded=folded, network=insert(folded, plan, ranges), bits=request.param)


def test_channels_share_one_formula_and_differ_by_their_calibrated_scales(made: SimpleNamespace) -> None:
    calibrated = made.network.weight_grid("second.weight").scale().detach()
    ClosedForms(made.network)
    grid, weight = made.network.weight_grid("second.weight"), made.network.graph.get_parameter("second.weight")
    ratio = grid.scale() / calibrated
    torch.testing.assert_close(ratio, ratio[:1].expand(32))
    expected, _ = FORMS[made.bits](weight.detach() / calibrated.reshape(-1, 1, 1, 1))
    assert torch.equal(grid(weight).round(), expected)


def test_what_integers_stand_for_has_the_weights_own_gradient(made: SimpleNamespace) -> None:
    ClosedForms(made.network)
    grid, weight = made.network.weight_grid("second.weight"), made.network.graph.get_parameter("second.weight")
    upstream = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    torch.autograd.backward(grid.reals(grid(weight)), upstream)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, upstream)


def test_a_channel_that_was_switched_off_takes_nothing_from_the_others(made: SimpleNamespace) -> None:
    weight = made.network.graph.get_parameter("second.weight")
    with torch.no_grad():
        weight[5] = 0.0
        made.network.weight_grid("second.weight").log_scale[5] = -15.0
        ClosedForms(made.network)
        grid, others = made.network.weight_grid("second.weight"), torch.arange(32) != 5
        before, scale = grid(weight).round()[others], grid.scale()[others]
        weight[5] += 1e-3 * torch.randn(weight[5].shape, generator=torch.Generator().manual_seed(1))
        if made.bits < 4:
            assert (grid(weight).round()[others] != before).double().mean() < 0.05
        # At 4 bits the largest weight counts: a channel may double it before it is held back.
        assert (grid.scale()[others] / scale).max() < (2.1 if made.bits == 4 else 1.1)


def test_it_settles_on_the_same_function_with_ordinary_grids(made: SimpleNamespace) -> None:
    network = made.network
    forms = ClosedForms(network)
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.01)
    before = network.graph.get_parameter("second.weight").detach().clone()
    for step in range(5):
        optimiser.zero_grad()
        torch.autograd.backward((network.train()(small_images(5 + step))[0] - 1).square().mean())
        optimiser.step()
    assert not torch.equal(before, network.graph.get_parameter("second.weight"))
    network.eval()
    with torch.no_grad():
        outputs = network(small_images(20))[0]
        integers = network.weight_grid("second.weight")(network.graph.get_parameter("second.weight")).round()
        forms.settle()
        assert torch.equal(network(small_images(20))[0], outputs)
    frozen = freeze(network, made.folded).weights["second"]
    assert torch.equal(torch.from_numpy(frozen.integers).float(), integers)
    assert frozen.bits == made.bits and frozen.scale.shape == (32,)


def test_a_network_without_narrow_weights_has_no_use_for_them(made: SimpleNamespace) -> None:
    plan = place(made.folded, X64, Widths(weights=8))
    ranges = choose_ranges(observe(made.folded, plan, [small_images(1)]), plan, "auto")
    with pytest.raises(ValueError, match="no weight has 1, 2 or 4 bits"):
        ClosedForms(insert(made.folded, plan, ranges))
