"""The list of networks itself: reproducible, alive, and shallow copies that leave no kind of block out."""

from __future__ import annotations

import pytest
import torch

from tests.zoo import ZOO


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1"])
def test_random_weights_are_reproducible_and_sane(name: str) -> None:
    network = ZOO[name]
    first, second = network.build(shallow=True), network.build(shallow=True)
    states = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(mine, other) for mine, other in states)
    with torch.no_grad():
        logits = first(network.images(8))
    assert 0.1 < float(logits.std()) < 10.0
    assert float(logits.std(0).mean()) > 0.01  # the images are told apart


def test_a_shallow_copy_keeps_what_does_not_repeat() -> None:
    deep, shallow = ZOO["resnet50"].build(), ZOO["resnet50"].build(shallow=True)
    assert [len(getattr(deep, f"layer{i}")) for i in range(1, 5)] == [3, 4, 6, 3]
    assert [len(getattr(shallow, f"layer{i}")) for i in range(1, 5)] == [2, 2, 2, 2]
    assert {type(module) for module in deep.modules()} == {type(module) for module in shallow.modules()}


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    ZOO["squeezenet1_1"].build(shallow=True)
    assert torch.equal(torch.rand(1), expected)
