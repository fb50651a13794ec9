"""Captured graphs compute what their modules compute, name what they come from, and say where they cannot be made."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from calibration.graph.interface import interface_of
from calibration.graph.operators import kind
from calibration.normal_form.mutation import is_in_place

if TYPE_CHECKING:
    from tests.calibration.conftest import MakeNet, Noise


def conv(inputs: int = 3, outputs: int = 4) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def assert_equal(graph_module: GraphModule, module: nn.Module, images: Tensor) -> None:
    """The graph's outputs are the tensors among the module's, up to float32 rounding."""
    with torch.no_grad():
        expected = [leaf for leaf in pytree.tree_leaves(module.eval()(images.clone())) if leaf is not None]
        outputs = graph_module(images.clone())
    assert len(outputs) == len(expected) == len(interface_of(graph_module).outputs)
    for ours, theirs in zip(outputs, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def kinds(graph_module: GraphModule) -> list[str]:
    return [kind(node) for node in graph_module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_torchvision_networks_are_captured_for_any_batch(
    name: str, noise: Noise, resemble_trained: Callable[[nn.Module], nn.Module]
) -> None:
    module = resemble_trained(torchvision.models.get_model(name))
    graph_module = capture(module, noise(2, 3, 64, 64), source=name)
    for batch in (1, 3, 7):
        assert_equal(graph_module, module, noise(batch, 3, 64, 64, seed=batch))
    assert "other" not in kinds(graph_module)
    assert not any(isinstance(child, nn.Dropout) for child in graph_module.modules())


def _relu_in_place(n: Any, x: Tensor) -> Tensor:
    y: Tensor = n.a(x)
    F.relu_(y)
    return y + 1


def _alias_in_place(n: Any, x: Tensor) -> Tensor:
    y: Tensor = n.a(x)
    alias = y
    alias += 1
    return y * 2


def _slice_in_place(n: Any, x: Tensor) -> Tensor:
    y = n.a(x)
    y[:, :2] += 1
    result: Tensor = y * 2
    return result


def _view_in_place(n: Any, x: Tensor) -> Tensor:
    y = n.norm(n.a(x))
    y.view(y.shape[0], -1).relu_()
    return F.max_pool2d(y, 2)


def _chunk_in_place(n: Any, x: Tensor) -> Tensor:
    y: Tensor = n.a(x)
    y.chunk(2, 1)[0].relu_()
    return y


def _input_in_place(n: Any, x: Tensor) -> Tensor:
    x -= 0.5
    result: Tensor = n.a(x)
    return result


def _same_memory_in_place(n: Any, x: Tensor) -> Tensor:
    y: Tensor = n.a(x)
    y.contiguous().float().relu_()
    return y + 1


def _copy_in_place(n: Any, x: Tensor) -> Tensor:
    y: Tensor = n.a(x)
    return y + y.clone().relu_()


def _part_in_place(n: Any, x: Tensor) -> Tensor:
    y: Tensor = n.a(x).view(-1, 4, 8, 8).permute(0, 2, 3, 1).contiguous()
    y[..., 0:2] = y[..., 0:2] * 2 - 0.5
    y[..., -1] = y[..., 2] * 3
    y[:, 1:3] += 1
    return y


def _dropout_in_place(n: Any, x: Tensor) -> Tensor:
    y: Tensor = n.a(x)
    return y + F.dropout(y, 0.5, training=False, inplace=True).relu_()


IN_PLACE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    function.__name__: function
    for function in (
        _relu_in_place,
        _alias_in_place,
        _slice_in_place,
        _view_in_place,
        _chunk_in_place,
        _input_in_place,
        _same_memory_in_place,
        _copy_in_place,
        _part_in_place,
        _dropout_in_place,
    )
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_operators_keep_their_effect(name: str, net: MakeNet, noise: Noise) -> None:
    layers = {"a": conv(), **({"norm": nn.BatchNorm2d(4)} if name == "_view_in_place" else {})}
    module = net(IN_PLACE[name], **layers)
    graph_module = capture(module, noise(2, 3, 8, 8), source=name)
    assert_equal(graph_module, module, noise(3, 3, 8, 8, seed=1))
    assert not any(is_in_place(node) for node in graph_module.graph.nodes)


def test_functionalisation_leaves_batch_norm_as_it_was(net: MakeNet, noise: Noise) -> None:
    graph_module = capture(net(_view_in_place, a=conv(), norm=nn.BatchNorm2d(4)), noise(2, 3, 8, 8), source="test")
    assert kinds(graph_module) == ["conv", "batch_norm", "reshape", "relu", "reshape", "max_pool"]
    assert "norm" in [node.name for node in graph_module.graph.nodes]


def test_what_does_nothing_in_inference_is_gone(net: MakeNet, noise: Noise) -> None:
    def compute(n: Any, x: Tensor) -> Tensor:
        y: Tensor = n.drop(n.a(x)).float().to(torch.float32).to(x.device).to(x).type_as(x).contiguous().detach()
        y = n.whole(n.identity(y[:, :]))
        torch._check(y.shape[0] > 0)
        assert y.shape[1] == 4
        return y.clone()

    module = net(compute, a=conv(), drop=nn.Dropout(), whole=nn.Dropout2d(), identity=nn.Identity())
    graph_module = capture(module, noise(2, 3, 8, 8), source="test")
    assert kinds(graph_module) == ["conv"]
    assert_equal(graph_module, module, noise(1, 3, 8, 8))


def test_a_dropout_that_never_stops_is_refused(net: MakeNet, noise: Noise) -> None:
    with pytest.raises(UserError, match="my network: dropout drops values in evaluation mode too"):
        capture(net(lambda n, x: F.dropout(n.a(x)), a=conv()), noise(2, 3, 8, 8), source="my network")


def test_what_is_drawn_at_random_is_refused_by_name(net: MakeNet, noise: Noise) -> None:
    module = net(lambda n, x: n.a(x) + torch.rand(1), a=conv())
    with pytest.raises(UserError, match=r"my network: rand \(aten.rand.default\) draws random numbers"):
        capture(module, noise(2, 3, 8, 8), source="my network")


def test_what_is_tagged_for_a_dropout_that_drops_nothing_is_not_called_random(net: MakeNet, noise: Noise) -> None:
    def compute(n: Any, x: Tensor) -> Tensor:
        result: Tensor = n.b(n.a(x).flatten(2))[0]
        return result

    module = net(compute, a=conv(), b=nn.GRU(64, 4, num_layers=2, dropout=0.5, batch_first=True))
    assert "other" in kinds(capture(module, noise(2, 3, 8, 8), source="test"))


def test_the_places_of_maxima_are_refused_by_name(net: MakeNet, noise: Noise) -> None:
    module = net(lambda n, x: n.a(x).max(1).indices.float(), a=conv())
    with pytest.raises(UserError, match=r"my network: max \(aten.max.dim\) is read for the places"):
        capture(module, noise(2, 3, 8, 8), source="my network")


def test_a_trial_call_leaves_the_networks_buffers_as_they_are(noise: Noise) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls: Tensor
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x * 2

    module = Counting()
    capture(module, noise(2, 3, 8, 8), source="my network")
    assert module.calls == 0


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (lambda y: y, ("output",)),
        (lambda y: (y,), ("output_0",)),
        (lambda y: (y, y + 1), ("output_0", "output_1")),
        (lambda y: {"out": y, "aux": y + 1}, ("out", "aux")),
        (lambda y: OrderedDict(out=y, aux=y + 1), ("out", "aux")),
        (lambda y: Pair(y, y + 1), ("first", "second")),
        (lambda y: {"out": y, "maps": [y + 1, y + 2]}, ("out", "maps_0", "maps_1")),
        (lambda y: {"out": y, "loss": None}, ("out",)),
        (lambda y: {"out_0": y, "out": [y + 1]}, ("out_0", "out_0_1")),
    ],
)
def test_outputs_keep_their_names(
    result: Callable[[Tensor], Any], names: tuple[str, ...], net: MakeNet, noise: Noise
) -> None:
    module = net(lambda n, x: result(n.a(x)), a=conv())
    graph_module = capture(module, noise(2, 3, 8, 8), source="test")
    assert interface_of(graph_module).outputs == names
    assert_equal(graph_module, module, noise(3, 3, 8, 8, seed=1))


@pytest.mark.parametrize(("result", "word"), [(lambda x: (x, 3), "int"), (lambda x: (x, x.shape[0]), "number")])
def test_an_output_that_is_no_tensor_is_named(
    result: Callable[[Tensor], Any], word: str, net: MakeNet, noise: Noise
) -> None:
    with pytest.raises(UserError, match=f"my network: the network's output output_1 is no tensor but a {word}"):
        capture(net(lambda n, x: result(x)), noise(2, 3, 8, 8), source="my network")


def test_nodes_are_named_after_modules(noise: Noise) -> None:
    graph_module = capture(torchvision.models.resnet18(), noise(2, 3, 64, 64), source="resnet18")
    names = [node.name for node in graph_module.graph.nodes]
    for expected in ("conv1", "bn1", "layer1_0_conv1", "layer1_0_relu", "layer1_0_add", "layer2_0_downsample_0", "fc"):
        assert expected in names
    # A module that is called again is numbered.
    assert "layer1_0_relu_1" in names


def test_parameters_are_trainable_and_in_the_memory_of_a_module_that_stays_as_it_is(noise: Noise) -> None:
    module = nn.Sequential(conv(), nn.BatchNorm2d(4)).requires_grad_(False)
    graph_module = capture(module, noise(2, 3, 8, 8), source="test")
    captured = dict(graph_module.named_parameters())
    assert all(captured[name].data_ptr() == value.data_ptr() for name, value in module.named_parameters())
    assert all(parameter.requires_grad for parameter in captured.values())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert module.training  # capture evaluates a copy


def test_a_shared_parameter_is_stored_once(net: MakeNet, noise: Noise) -> None:
    first, second = conv(3, 3), conv(3, 3)
    second.weight = first.weight
    module = net(lambda n, x: n.b(n.a(n.b(x))), a=first, b=second)
    graph_module = capture(module, noise(2, 3, 8, 8), source="test")
    assert [name for name in graph_module.state_dict() if name.endswith("weight")] in (["a.weight"], ["b.weight"])
    assert_equal(graph_module, module, noise(3, 3, 8, 8))


@pytest.mark.parametrize(
    "compute",
    [
        lambda n, x: n.a(x).reshape(x.shape[0], -1),
        lambda n, x: n.a(x).view(x.size(0), 2, 2, 8, 8).transpose(1, 2).reshape(x.size(0), -1, 8, 8),
        lambda n, x: n.a(x).flatten(2).permute(0, 2, 1).unflatten(1, (8, 8)),
        lambda n, x: n.a(x).unsqueeze(1).squeeze(1).reshape(-1, 64).reshape(-1, 4, 8, 8),
        lambda n, x: n.a(x).reshape(len(x), -1),
        lambda n, x: n.a(x).flatten(1) if len(x) > 1 else n.a(x).reshape(1, -1),
    ],
)
def test_the_batch_stays_free_through_reshapes(
    compute: Callable[[Any, Tensor], Tensor], net: MakeNet, noise: Noise
) -> None:
    module = net(compute, a=conv())
    graph_module = capture(module, noise(2, 3, 8, 8), source="test")
    assert "other" not in kinds(graph_module)
    for batch in (1, 3, 7):
        assert_equal(graph_module, module, noise(batch, 3, 8, 8, seed=batch))


def test_the_length_of_the_images_is_their_number(net: MakeNet, noise: Noise) -> None:
    module = net(
        lambda n, x: torch.cat([n.a.bias[None, :, None].expand(len(x), -1, -1), n.a(x).flatten(2)], 2), a=conv()
    )
    graph_module = capture(module, noise(2, 3, 8, 8), source="test")
    for batch in (1, 3, 7):
        assert_equal(graph_module, module, noise(batch, 3, 8, 8, seed=batch))
    assert type(len(noise(2, 3, 8, 8))) is int and len.__module__ == "builtins"


def test_a_squeeze_of_all_axes_keeps_the_images(net: MakeNet, noise: Noise) -> None:
    module = net(lambda n, x: n.a(x).mean((2, 3), keepdim=True)[:, :1].squeeze(), a=conv())
    graph_module = capture(module, noise(2, 3, 8, 8), source="test")
    assert "other" not in kinds(graph_module)
    assert_equal(graph_module, module, noise(3, 3, 8, 8))
    (single,) = graph_module(noise(1, 3, 8, 8))
    assert single.shape == (1,)


class Derived(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.doubled = self.weight * 2

    def forward(self, x: Tensor) -> Tensor:
        return x * self.doubled[:, None, None]


def test_what_a_module_keeps_of_its_weights_is_copied_with_it(noise: Noise) -> None:
    assert_equal(capture(Derived(), noise(2, 3, 8, 8), source="test"), Derived(), noise(3, 3, 8, 8))
