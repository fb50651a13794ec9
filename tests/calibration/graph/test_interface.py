"""What a graph says of itself goes wherever the graph goes, and is never another's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from backends.facts.onnxruntime_rules import X64
from backends.facts.widths import Widths
from backends.onnx_file.emit import emit
from backends.placement.place import place
from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from calibration.graph.interface import Interface, interface_of, make_graph_module, set_free_size
from calibration.graph.sharing import sharing_copy
from calibration.graph.training_mode import in_training
from calibration.ranges.observation import choose_ranges, observe
from calibration.rewrites.fold import fold
from calibration.rewrites.rewrite import rewritten
from calibration.simulation.freeze import freeze
from calibration.simulation.insert import insert
from tests.one_line_net import Net


def two_outputs() -> nn.Module:
    return Net(
        lambda n, x: {"map": (y := torch.relu(n.bn(n.a(x)))), "mean": y.mean((2, 3))},
        a=nn.Conv2d(3, 16, 3),
        bn=nn.BatchNorm2d(16),
    ).eval()


def captured_at(noise: Callable[..., Tensor], height: int, *, one_image: bool = False) -> GraphModule:
    return capture(two_outputs(), noise(2, 3, height, 12), source="test", one_image=one_image)


Step = Callable[[GraphModule, Tensor], GraphModule]


def inserted(graph: GraphModule, images: Tensor) -> GraphModule:
    plan = place(graph, X64, Widths())
    return insert(graph, plan, choose_ranges(observe(graph, plan, [images]), plan, "minmax")).graph


def frozen(graph: GraphModule, images: Tensor) -> GraphModule:
    plan = place(graph, X64, Widths())
    prepared = insert(graph, plan, choose_ranges(observe(graph, plan, [images]), plan, "minmax"))
    return freeze(prepared, graph).graph_module


MADE_OF_IT: dict[str, Step] = {
    "copied": lambda graph, images: copy.deepcopy(graph),
    "copied on the same memory": lambda graph, images: sharing_copy(graph),
    "in training": lambda graph, images: in_training(graph),
    "folded": lambda graph, images: fold(graph),
    "folded, with nothing to fold": lambda graph, images: fold(fold(graph)),
    "rewritten": lambda graph, images: rewritten(fold(graph), X64.rewrites_for(Widths(activations=4))),
    "with integers": lambda graph, images: inserted(fold(graph), images),
    "frozen": lambda graph, images: frozen(fold(graph), images),
}


@pytest.mark.parametrize("one_image", [False, True])
@pytest.mark.parametrize("way", MADE_OF_IT)
def test_every_graph_made_of_another_says_the_same(way: str, one_image: bool, noise: Callable[..., Tensor]) -> None:
    graph = captured_at(noise, 12, one_image=one_image)
    assert interface_of(graph) == Interface(outputs=("map", "mean"), one_image=one_image)
    made = MADE_OF_IT[way](graph, noise(4, 3, 12, 12))
    assert made is not graph and interface_of(made) is interface_of(graph)


def test_free_sizes_go_with_the_graph_into_the_file(noise: Callable[..., Tensor]) -> None:
    module = two_outputs()
    folded, other = (fold(capture(module, noise(2, 3, height, 12), source="test")) for height in (12, 20))
    before = interface_of(folded)
    set_free_size(folded, other)
    assert before.free_size is None  # it belongs to whoever had the graph before, and cannot change
    free = interface_of(folded).free_size
    assert free is not None and free.sizes["relu"][1:] == ((16, 16), (10, 18), (10, 10))
    for graph in (folded, copy.deepcopy(folded), frozen(folded, noise(4, 3, 12, 12))):
        assert interface_of(graph).free_size is free
    (image,) = emit(folded, opset=20).graph.input
    assert [size.dim_param != "" for size in image.type.tensor_type.shape.dim] == [True, False, True, False]


def test_a_layer_that_depends_on_the_size_changes_nothing(noise: Callable[..., Tensor]) -> None:
    flat = Net(lambda n, x: n.l(n.a(x).flatten(1).relu()), a=nn.Conv2d(3, 4, 3), l=nn.Linear(4 * 100, 5)).eval()
    folded = fold(capture(flat, noise(2, 3, 12, 12), source="test"))
    with pytest.raises(UserError, match="--dynamic-size: "):
        set_free_size(folded, fold(captured_at(noise, 20)))
    assert interface_of(folded) == Interface(outputs=("output",))


def test_other_graph_modules_say_nothing() -> None:
    with pytest.raises(ValueError, match="says nothing of itself"):
        interface_of(GraphModule(nn.Module(), Graph()))


@pytest.mark.parametrize("names", [(), ("map",), ("map", "mean", "more")])
def test_names_and_results_are_as_many(names: tuple[str, ...], noise: Callable[..., Tensor]) -> None:
    graph = captured_at(noise, 12)
    with pytest.raises(ValueError, match="does not return a tuple"):
        make_graph_module(graph, graph.graph, Interface(outputs=names))


def test_it_is_valid_at_birth_and_stays_so() -> None:
    with pytest.raises(ValueError, match="two outputs are called mean"):
        Interface(outputs=("mean", "map", "mean"))
    with pytest.raises(FrozenInstanceError):
        Interface(outputs=("mean",)).one_image = True  # type: ignore[misc]


def test_no_two_outputs_get_one_name(noise: Callable[..., Tensor]) -> None:
    # The paths "a_b" and "a", "b" are written alike, and the name that tells them apart may be taken as well.
    module = Net(lambda n, x: {"a_b_2": x + 1, "a_b": x + 2, "a": {"b": x + 3}}).eval()
    assert interface_of(capture(module, noise(2, 3, 8, 8), source="test")).outputs == ("a_b_2", "a_b", "a_b_2_2")
