"""A captured graph is held against the user's own module; what it cannot say is refused by name."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from calibration.graph.operators import kind
from calibration.proof.module_and_graph import check_first_link, wide_images

if TYPE_CHECKING:
    from tests.calibration.conftest import MakeNet, Noise


def conv() -> nn.Conv2d:
    return nn.Conv2d(3, 4, 3, padding=1)


def check(module: nn.Module, noise: Noise) -> None:
    graph = capture(module, noise(2, 3, 8, 8), source="my network")
    check_first_link(module, graph, wide(), source="my network", shown="random images")


def wide() -> Tensor:
    return wide_images((3, 8, 8), torch.Generator().manual_seed(0))


def refusal(module: nn.Module, noise: Noise) -> str:
    with pytest.raises(UserError) as raised:
        check(module, noise)
    message = str(raised.value)
    assert message.startswith("my network: ") and "\n" not in message and "--teacher python:" in message
    return message


class Stateful(nn.Module):
    """A convolution, and in each call a line over what earlier ones left behind."""

    def __init__(self, line: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.line, self.inner = line, nn.Module()
        self.a, self.calls, self.first, self.seen = conv(), 0, None, list[Tensor]()
        self.inner.register_buffer("mean", torch.zeros(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.line(self, self.a(x))


def _running_mean(n: Any, y: Tensor) -> Tensor:
    n.inner.mean.mul_(0.9).add_(y.mean((0, 2, 3)).view(4, 1, 1) * 0.1)
    result: Tensor = y - n.inner.mean
    return result


def _first_call(n: Any, y: Tensor) -> Tensor:
    if n.first is None:
        n.first = y.mean()
    result: Tensor = y - n.first
    return result


def _growing_list(n: Any, y: Tensor) -> Tensor:
    n.seen.append(y)
    return y * len(n.seen)


STATE: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "a buffer": (_running_mean, "inner.mean"),
    "an attribute that holds a tensor": (_first_call, "first"),
    "a list": (_growing_list, "seen"),
    "a counter": (lambda n, y: y * n.calls, "calls"),
    "a counter that is looked at much later": (lambda n, y: y * 2 if n.calls > 1000 else y, "calls"),
}


@pytest.mark.parametrize("name", STATE)
def test_what_is_kept_from_call_to_call_is_refused_by_name(name: str, noise: Noise) -> None:
    line, kept = STATE[name]
    message = refusal(Stateful(line), noise)
    assert "another answer in a later call" in message or "in every call and reads it in the next" in message
    assert kept in message and "a.weight" not in message


def _remembered(n: Any, y: Tensor) -> Tensor:
    n.first, n.seen = y, [y]
    return y


def _made_once(n: Any, y: Tensor) -> Tensor:
    if n.first is None or n.first.shape[-1] != y.shape[-1]:
        n.first = torch.arange(y.shape[-1]).float()
    result: Tensor = y + n.first
    return result


@pytest.mark.parametrize("line", [lambda n, y: y, _remembered, _made_once], ids=["counter", "features", "table"])
def test_what_nobody_reads_again_may_be_kept(line: Callable[[Any, Tensor], Tensor], noise: Noise) -> None:
    check(Stateful(line), noise)


def _made_per_shape(n: Any, y: Tensor) -> Tensor:
    """As the anchors of YOLO's heads are."""
    if n.seen != y.shape:
        n.first, n.seen = torch.arange(y.shape[-1]).float(), y.shape
    result: Tensor = y + n.first
    return result


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_what_is_kept_per_shape_of_an_earlier_call_leaves_the_batch_size_free(batch: int, noise: Noise) -> None:
    module = Stateful(_made_per_shape)
    module(noise(batch, 3, 8, 8))
    kept = module.seen
    check(module, noise)
    assert module.seen is kept


def test_chance_outside_of_torch_is_refused(net: MakeNet, noise: Noise) -> None:
    message = refusal(net(lambda n, x: n.a(x) * random.random(), a=conv()), noise)
    assert "another answer in a later call" in message and "draws random numbers" in message


def test_chance_that_shows_in_single_images_alone_is_no_mixing(net: MakeNet, noise: Noise) -> None:
    message = refusal(net(lambda n, x: n.a(x) * (1 + random.random() if len(x) == 1 else 1.5), a=conv()), noise)
    assert "draws random numbers" in message and "mixes" not in message


MIXED: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "a mean over the batch": (lambda n, x: (lambda f: f - f.mean(0))(n.a(x)), "mixes the images of a batch"),
    "a trace of the batch's mean": (lambda n, x: n.a(x) * (1 + 1e-11 * x.mean()), "mixes the images of a batch"),
    "softmax along axis 0": (lambda n, x: n.a(x).softmax(0), "mixes the images of a batch"),
    "statistics of the batch": (lambda n, x: F.batch_norm(n.a(x), None, None, training=True), "first behind module b"),
    "the largest of all": (lambda n, x: n.a(x) / n.a(x).abs().max(), "mixes the images of a batch"),
    "a batch of one in the code": (lambda n, x: n.a(x).reshape(1, 4, -1).mean(-1), "output [1, 4] is not the image's"),
    "a table beside the answer": (lambda n, x: (n.a(x), torch.arange(3.0)), "output_1 is the same for every image"),
}


@pytest.mark.parametrize("name", MIXED)
def test_images_that_mix_are_refused(name: str, net: MakeNet, noise: Noise) -> None:
    compute, expected = MIXED[name]
    if "module b" in expected:
        module: nn.Module = nn.Sequential()
        module.add_module("a", conv())
        module.add_module("b", net(lambda n, x: F.batch_norm(x, None, None, training=True)))
    else:
        module = net(compute, a=conv())
    assert expected in refusal(module, noise)


#: What float32's rounding would hide: each changes an answer by a millionth of its largest value or less.
SLIGHTLY_MIXED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "the mean over the batch": lambda n, x: n.a(x) - 1e-6 * n.a(x).mean(0, keepdim=True),
    "the largest of all": lambda n, x: n.a(x) + 1e-7 * n.a(x).abs().max(),
    "the neighbour": lambda n, x: n.a(x) + 1e-6 * n.a(x).roll(1, 0),
    "code that insists on float32": lambda n, x: n.a(x.float()) + 1e-6 * n.a(x.float()).flip(0),
}


@pytest.mark.parametrize("name", SLIGHTLY_MIXED)
def test_images_that_mix_by_less_than_rounding_are_refused(name: str, net: MakeNet, noise: Noise) -> None:
    message = refusal(net(SLIGHTLY_MIXED[name], a=conv()), noise)
    assert "mixes the images of a batch" in message and "e-0" in message


def test_the_part_that_mixes_by_less_than_rounding_is_named(net: MakeNet, noise: Noise) -> None:
    mixing = net(lambda n, x: x - 1e-6 * x.mean(0, keepdim=True))
    assert "(first behind module 1)" in refusal(nn.Sequential(conv(), mixing, nn.ReLU()), noise)


#: Rounding that depends on the number of images, in networks that compute in float32 whatever they are given.
ROUNDED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a softmax of its own precision": lambda n, x: F.softmax(n.a(x).float() * 30, 1),
    "sums in float32": lambda n, x: (n.a(x).flatten(1).float() @ torch.ones(256, 5)).cumsum(1),
    "a table in float32": lambda n, x: n.a(x) * torch.linspace(0, 1, 8),
    "steps": lambda n, x: torch.floor(n.a(x) * 4),
    "a convolution in float32": lambda n, x: F.conv2d(n.a(x).float(), torch.ones(4, 4, 3, 3)).exp(),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_rounding_is_no_mixing(name: str, net: MakeNet, noise: Noise) -> None:
    module = net(ROUNDED[name], a=conv())
    graph = capture(module, noise(2, 3, 8, 8), source="my network")
    images = wide() if "convolution" not in name else wide() * 0.1  # no overflow
    check_first_link(module, graph, images, source="my network", shown="random images")


def test_a_network_is_as_it_was_after_it_was_tried_in_float64(net: MakeNet, noise: Noise) -> None:
    module = nn.Sequential(conv(), nn.BatchNorm2d(4)).eval()
    check(module, noise)
    assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.float32, torch.int64}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_what_hooks_compute_of_weights_and_keep_is_no_obstacle(noise: Noise) -> None:
    module = nn.Sequential(nn.utils.weight_norm(conv()), nn.utils.spectral_norm(nn.Conv2d(4, 4, 3))).eval()
    check(module, noise)
    assert not module[0].weight.is_leaf  # as it was


def test_a_batch_axis_that_is_dropped_for_one_image_is_no_mixing(net: MakeNet, noise: Noise) -> None:
    check(net(lambda n, x: F.adaptive_avg_pool2d(n.a(x), 1).squeeze(), a=conv()), noise)


def test_the_first_node_that_differs_is_named(net: MakeNet, noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    from calibration.normal_form import rules as normal_form

    def wrong(graph: Any, node: Any) -> Any:
        node.args = (node.args[0], 0.5)
        return node

    monkeypatch.setitem(normal_form._RULES, torch.ops.aten.leaky_relu.default, (wrong,))
    inner = net(lambda n, x: F.leaky_relu(n.a(x) * 3, 0.2) + 1, a=conv())
    message = refusal(nn.Sequential(nn.Identity(), inner), noise)
    assert "output output differs by" in message
    assert "the first node that differs is _1_leaky_relu (aten.leaky_relu.default, in module 1)" in message


def test_a_part_that_export_sees_otherwise_is_named(net: MakeNet, noise: Noise) -> None:
    inner = net(lambda n, x: x * (2 if torch.compiler.is_exporting() else 3))
    assert "the first part that differs is module 1" in refusal(nn.Sequential(conv(), inner, nn.ReLU()), noise)


def test_what_is_not_finite_in_both_is_the_same(net: MakeNet, noise: Noise) -> None:
    check(net(lambda n, x: (n.a(x) * 30).exp(), a=conv()), noise)
    check(net(lambda n, x: n.a(x.sqrt()), a=conv()), noise)


def test_a_network_that_amplifies_rounding_is_the_same_all_the_same(net: MakeNet, noise: Noise) -> None:
    def compute(n: Any, x: Tensor) -> Tensor:
        y = n.b(n.a(x))
        for _ in range(14):
            y = (y * 4).sin() * 3  # its last bit grows twelvefold each time
        result: Tensor = y
        return result

    norm = nn.BatchNorm2d(4)
    check(net(compute, a=conv(), b=norm), noise)


def test_batch_norm_counts_nothing_in_evaluation_and_the_module_stays_as_it_is(net: MakeNet, noise: Noise) -> None:
    module = net(lambda n, x: n.b(n.a(x)), a=conv(), b=nn.BatchNorm2d(4)).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = torch.get_rng_state()
    check(module, noise)
    assert torch.equal(torch.get_rng_state(), state) and module.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_wide_images_reach_far_beyond_photographs() -> None:
    images = wide()
    assert images.shape == (3, 3, 8, 8) and images[0].abs().max() < 1 and images[2].abs().max() > 16


@pytest.mark.parametrize("indices", [[0, -1], [-1, -2, -3], [3]])
def test_places_from_the_end_are_written_from_the_start(indices: list[int], net: MakeNet, noise: Noise) -> None:
    module = net(lambda n, x: n.a(x)[:, indices], a=conv()).eval()
    graph = capture(module, noise(2, 3, 8, 8), source="test")
    assert [kind(node) for node in graph.graph.nodes if node.op == "call_function"][-1] == "select"
    check_first_link(module, graph, wide(), source="test", shown="random images")


def _added_into(y: Tensor) -> Tensor:
    z = y.clone()
    torch.add(z, 2, out=y)
    return z * y


def _through_a_view(y: Tensor) -> Tensor:
    torch.sigmoid(y[:, 1:2], out=y[:, :1])
    return y


def _into_another_name(y: Tensor) -> Tensor:
    z = y
    torch.mul(y.sin(), 2, out=z)
    return y + z


def _into_a_new_tensor(y: Tensor) -> Tensor:
    return torch.mul(y, 2, out=torch.empty_like(y))


@pytest.mark.parametrize("written", [_added_into, _through_a_view, _into_another_name, _into_a_new_tensor])
def test_what_is_written_into_an_argument_is_written_there(
    written: Callable[[Tensor], Tensor], net: MakeNet, noise: Noise
) -> None:
    module = net(lambda n, x: written(n.a(x)), a=conv()).eval()
    graph = capture(module, noise(2, 3, 8, 8), source="test")
    assert not [node for node in graph.graph.nodes if str(node.target).endswith(".out") or "empty" in str(node.target)]
    check_first_link(module, graph, wide(), source="test", shown="random images")


INFINITE: dict[str, Callable[[Any, Tensor], Any]] = {
    "one of infinity and a number": lambda n, x: torch.where(n.a(x) > 0, math.inf, 1.0),
    "infinity, or what was computed": lambda n, x: torch.where((y := n.a(x)) > 0, y, -math.inf),
    "a mask of scores": lambda n, x: (y := n.a(x)).masked_fill(y < 0, -math.inf),
    "beside an output of numbers": lambda n, x: ((y := n.a(x)), torch.where(y > 0, math.inf, y)),
}


@pytest.mark.parametrize("name", INFINITE)
def test_an_infinity_that_the_graph_does_not_have_is_refused(name: str, net: MakeNet, noise: Noise) -> None:
    message = refusal(net(INFINITE[name], a=conv()), noise)
    assert "is NaN or infinite for random images" in message and "masked_fill" in message


def test_an_infinity_within_the_network_that_the_output_does_not_show_is_none(net: MakeNet, noise: Noise) -> None:
    check(net(lambda n, x: (y := n.a(x)).masked_fill(y < 0, -math.inf).amax((2, 3)).exp(), a=conv()), noise)
    check(net(lambda n, x: (1 / torch.where(n.a(x) > 0, math.inf, 1.0)).mean((2, 3)), a=conv()), noise)


def test_images_of_the_run_must_have_numbers(net: MakeNet, noise: Noise) -> None:
    """Random images beyond photographs may be NaN to module and graph alike; those that are learned from not."""
    module = net(lambda n, x: torch.log(n.a(x)), a=conv())
    graph = capture(module, noise(2, 3, 8, 8), source="my network")
    check_first_link(module, graph, wide(), source="my network", shown="random images")
    with pytest.raises(UserError, match="output output is NaN or infinite for the images"):
        check_first_link(module, graph, wide(), source="my network", shown="the images", numbers=True)


def test_an_image_that_is_nan_alone_is_not_said_to_have_another_shape(net: MakeNet, noise: Noise) -> None:
    message = refusal(net(lambda n, x: n.a(x) / n.a(x).std(0), a=conv()), noise)
    assert "is infinite or NaN in one of the two alone" in message and "has the shape" not in message
