"""Prepared networks as things that are copied, saved, and refused: what inserting owns, and what it will not do."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from backends.facts.tensorrt_rules import PROFILE
from backends.facts.widths import Widths
from backends.placement.place import place
from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from calibration.graph.operators import kind
from calibration.plan import ActivationPlacement, Plan
from calibration.ranges.observation import choose_ranges, observe
from calibration.rewrites.fold import fold
from calibration.simulation.insert import FirstScales, insert
from calibration.simulation.prepared import PreparedNetwork
from tests.one_line_net import c3, shared_layer
from tests.one_line_net import residual as residual_block

if TYPE_CHECKING:
    from tests.calibration.conftest import BuildChain, Chain, MakeNet, Noise

conv = nn.Conv2d
relu = torch.relu


def nodes_of(prepared: PreparedNetwork) -> dict[str, torch.fx.Node]:
    return {node.name: node for node in prepared.graph.graph.nodes}


@pytest.fixture(scope="module")
def residual(chain: BuildChain, net: MakeNet, noise: Noise) -> Chain:
    module = net(residual_block, a=c3(3, 16), b=c3(16, 16), c=c3(16, 16), d=c3(16, 8))
    return chain(module, noise(8, 3, 9, 9), bits=4)


def train(prepared: PreparedNetwork, images: Tensor, steps: int = 3) -> None:
    optimiser = torch.optim.Adam(prepared.parameters(), lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.autograd.backward(prepared.train()(images)[0].square().mean())
        optimiser.step()


def outputs(prepared: PreparedNetwork, images: Tensor) -> Tensor:
    with torch.no_grad():
        (output,) = prepared.eval()(images)
    assert isinstance(output, Tensor)
    return output


def test_training_a_copy_leaves_everything_else_untouched(residual: Chain) -> None:
    folded, prepared = residual.folded, residual.prepared
    before = copy.deepcopy([folded.state_dict(), prepared.state_dict()])
    expected = outputs(prepared, residual.images)
    other = copy.deepcopy(prepared)
    storages = {value.data_ptr() for value in prepared.state_dict().values()}
    assert storages.isdisjoint(value.data_ptr() for value in other.state_dict().values())
    assert torch.equal(outputs(other, residual.images), expected)
    train(other, residual.images)
    changed = [name for name, value in other.state_dict().items() if not torch.equal(value, before[1][name])]
    assert len(changed) == len(list(other.parameters()))  # every parameter is trained; zero points stay
    assert not torch.equal(outputs(other, residual.images), expected)
    for old, module in zip(before, (folded, prepared), strict=True):
        assert all(torch.equal(old[name], value) for name, value in module.state_dict().items())
    assert torch.equal(outputs(prepared, residual.images), expected)
    # The copy's own parts belong together: its scales are those that its operations read.
    assert {id(p) for p in other.scale_parameters(activations=True, weights=True)} <= {
        id(p) for p in other.parameters()
    }
    assert other.plan is prepared.plan


def test_inserting_leaves_the_folded_graph_untouched(residual: Chain) -> None:
    before = residual.folded.code, copy.deepcopy(residual.folded.state_dict())
    ranges = choose_ranges(observe(residual.folded, residual.plan, [residual.images]), residual.plan, "auto")
    train(insert(residual.folded, residual.plan, ranges), residual.images)
    assert residual.folded.code == before[0]
    assert all(torch.equal(before[1][name], value) for name, value in residual.folded.state_dict().items())
    assert all(parameter.grad is None for parameter in residual.folded.parameters())


def test_parameters_divide_into_weights_and_scales(residual: Chain) -> None:
    prepared = residual.prepared
    weights, scales = prepared.weight_parameters(), prepared.scale_parameters(activations=True, weights=True)
    assert {id(p) for p in weights} | {id(p) for p in scales} == {id(p) for p in prepared.parameters()}
    assert len(weights) + len(scales) == len(list(prepared.parameters()))
    assert len(weights) == len(list(residual.folded.parameters()))
    assert len(prepared.scale_parameters(activations=False, weights=True)) == 4
    groups = {placement.group for placement in residual.plan.activations}
    assert len(prepared.scale_parameters(activations=True, weights=False)) == len(groups)


def test_a_second_copy_begins_with_the_scales_that_the_first_searched(
    chain: BuildChain, residual: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = chain(residual.folded, residual.images, bits=4, trained=True)
    first_scales, ranges = FirstScales(), ranges_of(built)
    alone, first, second = (
        insert(built.folded, built.plan, ranges, first_scales=scales) for scales in (None, first_scales, first_scales)
    )
    assert len(first_scales) == 4
    train(first, built.images)  # what learns from them leaves them as they were
    monkeypatch.setattr("calibration.simulation.insert.weight_scale", lambda *arguments: pytest.fail("searched again"))
    third = insert(built.folded, built.plan, ranges, first_scales=first_scales)
    for other in (second, third):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in alone.state_dict().items())


def test_a_saved_state_loads_into_a_network_with_other_ranges(residual: Chain, tmp_path: Path) -> None:
    trained = copy.deepcopy(residual.prepared)
    train(trained, residual.images)
    save_file(trained.state_dict(), tmp_path / "state.safetensors")
    others = [residual.images.abs() * 3, residual.images * 0.1 + 1]
    ranges = choose_ranges(observe(residual.folded, residual.plan, others), residual.plan, "minmax")
    fresh = insert(residual.folded, residual.plan, ranges)
    expected = outputs(trained, residual.images)
    assert not torch.equal(outputs(fresh, residual.images), expected)
    fresh.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert torch.equal(outputs(fresh, residual.images), expected)
    # And it goes on training as the original does.
    for prepared in (fresh, trained):
        train(prepared, residual.images, steps=1)
    assert torch.equal(outputs(fresh, residual.images), outputs(trained, residual.images))


# Plans that do not fit.


def ranges_of(built: Chain) -> Any:
    return choose_ranges(observe(built.folded, built.plan, [built.images]), built.plan, "minmax")


@pytest.mark.parametrize("field", ["activations", "readers", "weights", "absorbed", "passthrough", "float_nodes"])
def test_a_plan_for_another_network_is_refused(field: str, residual: Chain) -> None:
    first = residual.plan.activations[0]
    changes: dict[str, Any] = {
        "activations": {
            "activations": (
                *residual.plan.activations,
                ActivationPlacement(tensor="nowhere", grid=first.grid, readers=(), group="nowhere"),
            )
        },
        "readers": {"activations": (dataclasses.replace(first, readers=("nowhere",)), *residual.plan.activations[1:])},
        "weights": {"weights": (dataclasses.replace(residual.plan.weights[0], layer="nowhere"),)},
        "absorbed": {"absorbed": {"nowhere": "a"}},
        "passthrough": {"passthrough": {"relu": "nowhere"}},
        "float_nodes": {"float_nodes": {"nowhere": "no kernel"}},
    }
    plan = dataclasses.replace(residual.plan, **changes[field])
    with pytest.raises(ValueError, match=r"the plan names nodes that the graph does not have: \['nowhere'\]"):
        insert(residual.folded, plan, ranges_of(residual))


def test_a_tensor_without_a_range_is_refused(residual: Chain) -> None:
    ranges = ranges_of(residual)
    del ranges["relu"]
    with pytest.raises(ValueError, match=r"there is no range for the tensors \['relu'\]"):
        insert(residual.folded, residual.plan, ranges)


def test_an_integer_layer_with_a_float_input_is_refused(residual: Chain) -> None:
    def without(*readers: str) -> Plan:
        kept = tuple(
            dataclasses.replace(placement, readers=tuple(r for r in placement.readers if r not in readers))
            for placement in residual.plan.activations
        )
        return dataclasses.replace(residual.plan, activations=kept)

    with pytest.raises(ValueError, match=r"^b has integer weights but its input is not quantised"):
        insert(residual.folded, without("b"), ranges_of(residual))


def test_grids_of_a_shared_weight_that_contradict_each_other_are_refused(
    net: MakeNet, noise: Noise, chain: BuildChain
) -> None:
    module = net(shared_layer, a=c3(3, 16), b=c3(16, 16), d=c3(16, 16))
    built = chain(module, noise(8, 3, 9, 9))
    narrower = dataclasses.replace(built.plan.weights[1], grid=dataclasses.replace(built.plan.weights[1].grid, bits=4))
    weights = tuple(narrower if placement.layer == narrower.layer else placement for placement in built.plan.weights)
    with pytest.raises(ValueError, match="b_1 shares its weight with a layer that the plan gives another grid"):
        chain(module, noise(8, 3, 9, 9), plan=dataclasses.replace(built.plan, weights=weights))


def test_taken_names_are_not_overwritten(net: MakeNet, noise: Noise, chain: BuildChain) -> None:
    class Taken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.conv_1 = c3(3, 8, bias=False), c3(8, 8)
            self.conv_requantise = c3(8, 8)
            self.conv_bias = nn.Parameter(torch.linspace(-1, 1, 8))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv_1(relu(self.conv_requantise(self.conv(x))) + self.conv_bias.view(1, -1, 1, 1))
            return y

    built = chain(Taken(), noise(8, 3, 9, 9))
    assert torch.equal(built.simulate()[0], built.oracle()[0])
    assert set(dict(built.folded.named_parameters())) <= set(dict(built.prepared.graph.named_parameters()))


def test_a_network_without_layers_is_the_users_mistake(net: MakeNet, noise: Noise) -> None:
    folded = fold(capture(net(lambda n, x: torch.tanh(x)), noise(2, 3, 9, 9), source="test"))
    with pytest.raises(UserError, match="no layer that this backend can quantise"):
        place(folded, PROFILE, Widths())


def test_prepared_layers_keep_their_kinds(residual: Chain) -> None:
    nodes = nodes_of(residual.prepared)
    assert [kind(nodes[name]) for name in ("a", "b", "c", "d")] == ["conv"] * 4
