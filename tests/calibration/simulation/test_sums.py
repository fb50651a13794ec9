"""What a layer adds must fit int32: told from its weights before images are read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from backends.facts.onnxruntime_rules import X64, X64_WITHOUT_VNNI
from backends.facts.profile import Profile
from backends.facts.widths import Widths
from backends.placement.place import place
from calibration.errors import UserError
from calibration.simulation.sums import INT32_MAX, check_first_sums, check_sums
from tests.chain import folded_graph
from tests.one_line_net import Net

#: 2147483647 / (255 x 127) = 66311.0: so many products of the largest integers fit, one more does not.
FITTING = 66311


def check(inputs: int, weight: float, profile: Profile = X64, bits: int = 8) -> None:
    """A linear layer of so many inputs whose weights are all of one size, behind a small layer."""
    wide = nn.Linear(inputs, 2)
    with torch.no_grad():
        wide.weight.fill_(weight)
        wide.weight[:, 0] = 1.0
    network = Net(lambda n, x: n.b(n.a(x).flatten(1)), a=nn.Conv2d(1, inputs, 2, bias=False), b=wide)
    folded = folded_graph(network, torch.zeros(2, 1, 2, 2))
    check_first_sums(folded, place(folded, profile, Widths(weights=bits, last=bits)))


def test_so_many_products_of_the_largest_integers_fit_and_one_more_does_not() -> None:
    assert FITTING * 255 * 127 <= INT32_MAX < (FITTING + 1) * 255 * 127
    check(FITTING, 1.0)
    with pytest.raises(UserError) as raised:
        check(FITTING + 1, 1.0)
    line = str(raised.value)
    assert line.startswith(f"b: each of its outputs adds {FITTING + 1} products, which at 8 bits may reach")
    assert f"{(FITTING + 1) * 255 * 127}, beyond int32's 2147483647; {FITTING} are sure to fit" in line
    assert "fewer bits" in line and "\n" not in line


@pytest.mark.parametrize(("profile", "bits"), [(X64_WITHOUT_VNNI, 8), (X64, 4)])
def test_smaller_integers_leave_room_for_more(profile: Profile, bits: int) -> None:
    check(2 * FITTING, 1.0, profile, bits)


def test_weights_that_are_small_beside_the_largest_fit_whatever_their_number() -> None:
    check(2 * FITTING, 0.25)


def test_what_training_leaves_is_checked_with_its_bias() -> None:
    layer = torch.fx.Graph().placeholder("x")
    weight = np.full((1, FITTING), 127, np.int8)
    room = INT32_MAX - FITTING * 255 * 127
    check_sums(layer, weight, 0, np.array([room], np.int32))
    with pytest.raises(UserError, match=f"x: its integer sums may reach {INT32_MAX + 1}, beyond int32's"):
        check_sums(layer, weight, 0, np.array([-room - 1], np.int32))
