"""Networks as users' builders return them: wrapped, exported, quantised, broken; each works or is one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from calibration.errors import UserError
from calibration.graph.interface import interface_of
from pipeline.images.preprocessing import normalise
from pipeline.stages.first_link import check_on_images
from pipeline.stages.teacher import load_network

BUILDERS = """
import collections
import dataclasses
import sys
import typing

import torch
from torch import nn


def body():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()


class Net(nn.Module):
    def __init__(self, end, net=None):
        super().__init__()
        self.net, self.end = net or body(), end

    def forward(self, x):
        return self.end(self, x)


@dataclasses.dataclass
class Answer:
    logits: torch.Tensor
    aux: typing.Optional[torch.Tensor] = None
    features: typing.Any = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    y: torch.Tensor


class Pair(typing.NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Named(collections.OrderedDict):
    pass


class Listed(list):
    pass


class Object:
    def __init__(self, x):
        self.x = x


class Wordless(Exception):
    def __str__(self):
        raise RuntimeError("no words")


class Final(BaseException):
    pass


def dataclass_output():
    return Net(lambda n, x: Answer(n.net(x), None, [n.net[0](x), {"k": n.net(x)}]))


def frozen_output():
    return Net(lambda n, x: Frozen(n.net(x)))


def tuple_output():
    return Net(lambda n, x: Pair(n.net(x), n.net(x) * 2))


def dictionary_output():
    return Net(lambda n, x: Named(b=n.net(x), a=None, c=Listed([n.net(x) * 2])))


def parallel():
    return nn.DataParallel(torch.compile(body(), backend="eager")), {"height": 16}


def averaged():
    return torch.optim.swa_utils.AveragedModel(body())


def wrapped_inside():
    return Net(lambda n, x: n.net(x), nn.DataParallel(body()))


def in_inference_mode():
    with torch.inference_mode():
        return body()


def decorated():
    def without_a_signature(forward):
        return lambda *args, **kwargs: forward(*args, **kwargs)

    class Own(nn.Sequential):
        forward = without_a_signature(nn.Sequential.forward)

    return Own(*body())


def empty_output():
    return Net(lambda n, x: (n.net(x), x.new_zeros(len(x), 0)))


def of_numpy():
    import numpy

    return body(), {"height": numpy.int64(16), "mean": numpy.array([0.5, 0.4, 0.3]), "std": torch.tensor([0.5] * 3)}


def of_text():
    return body(), {"height": "16"}


def changes_torch():
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    with torch.device("cpu"):
        return body()


def eval_returns_nothing():
    class Own(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)

    return Own(*body())


def root_of_pixels():
    scale = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    shift = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    return Net(lambda n, x: n.net(torch.sqrt(x * scale + shift)))


def logarithm_of_pixels():
    return Net(lambda n, x: n.net(torch.log(x))), {"height": 16, "mean": [0.0] * 3, "std": [1.0] * 3}


def object_output():
    return Net(lambda n, x: Object(n.net(x)))


def nothing_output():
    return Net(lambda n, x: (None, None))


def yes_or_no():
    return Net(lambda n, x: {"logits": n.net(x), "sure": n.net(x) > 0})


def indices():
    return Net(lambda n, x: n.net(x).argmax(1))


def a_class():
    return nn.Identity


def a_state():
    return body().state_dict()


def a_function():
    return lambda x: x


def nothing():
    pass


def three():
    return body(), {"height": 16}, 3


def no_forward():
    return nn.ModuleList([body()])


def scripted():
    return torch.jit.script(body())


def traced_part():
    return Net(lambda n, x: n.net(x), torch.jit.trace(body(), torch.zeros(1, 3, 16, 16)))


def exported():
    return torch.export.export(body(), (torch.zeros(2, 3, 16, 16),))


def exported_module():
    return exported().module()


def imitating_integers():
    import torch.ao.quantization as quantisation

    network = body().train()
    network.qconfig = quantisation.get_default_qat_qconfig("x86")
    return quantisation.prepare_qat(network).eval()


def of_integers():
    return torch.ao.quantization.quantize_dynamic(body(), {nn.Linear})


def broken_statistics():
    network = body()
    network[1].running_mean[2] = float("nan")
    return network


def without_numbers():
    return Net(lambda n, x: n.net(torch.log(-x * x - 1)))


def with_parameter(value):
    network = Net(lambda n, x: n.net(x))
    network.extra = nn.Parameter(value)
    return network


def complex_parameter():
    return with_parameter(torch.ones(4, dtype=torch.complex64))


def sparse_parameter():
    return with_parameter(torch.eye(4).to_sparse())


def on_meta():
    with torch.device("meta"):
        return body()


def lazy():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(3))


def leaves():
    sys.exit(0)


def forward_leaves():
    return Net(lambda n, x: sys.exit(0))


def wordless():
    raise Wordless()


def forward_wordless():
    def end(n, x):
        raise Wordless()

    return Net(end)


def final():
    raise Final("of its own")


def endless():
    return endless()


def forward_endless():
    def end(n, x):
        return end(n, x)

    return Net(end)


def memory():
    raise MemoryError


def never_evaluates():
    class Own(nn.Sequential):
        def train(self, mode=True):
            raise ValueError("never")

    return Own(*body())


def unprepared():
    class Own(nn.Module):
        def __init__(self):
            pass

    return Own()


def property_raises():
    class Own(nn.Module):
        @property
        def forward(self):
            raise LookupError("no way forward")

    return Own()
"""


@pytest.fixture(autouse=True)
def at_the_desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "users_nets.py").write_text(BUILDERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield
    sys.modules.pop("users_nets", None)


@pytest.mark.filterwarnings("ignore")  # of torch.ao, which is deprecated in place
@pytest.mark.parametrize(
    ("builder", "words"),
    [
        ("object_output", "the network's output is a Object, into which nothing can look"),
        ("nothing_output", "the network returns a tuple without a tensor; return tensors"),
        ("yes_or_no", "the network's output sure holds bool, which cannot be learned: return what it is computed from"),
        ("empty_output", "the network's output 1 is empty, of shape [2, 0]"),
        ("of_text", "preprocessing: height is '16'; it must be a whole number"),
        ("indices", "the network's output holds int64, which cannot be learned"),
        ("a_class", "returned the class Identity, not a network: return Identity(...)"),
        ("a_state", "returned a state dict: build the network in the function"),
        ("a_function", "returned a function: name the function that returns the network itself"),
        ("nothing", "returned None: does the function end with return?"),
        ("three", "returned a tuple of 3 things, a network among them; it must return an nn.Module"),
        ("no_forward", "a ModuleList has no forward that takes an image"),
        ("scripted", "the network is TorchScript, of which no graph can be captured"),
        ("traced_part", "its part net is TorchScript, of which no graph can be captured"),
        ("exported", "returned an exported program, whose sizes are fixed"),
        ("exported_module", "the network is an exported program, whose sizes are fixed"),
        ("imitating_integers", "its part 0 is quantised already, or prepared for it (torch.ao.nn.qat."),
        ("of_integers", "its part 5 is quantised already, or prepared for it (torch.ao.nn.quantized.dynamic."),
        ("broken_statistics", "has NaN or infinity in 1 buffers (1.running_mean)"),
        ("without_numbers", "gives NaN or infinity for random pixels from 1 to 254 (NaN first behind log (aten.log"),
        ("complex_parameter", "its tensor extra is complex"),
        ("sparse_parameter", "its tensor extra is sparse (sparse_coo)"),
        ("on_meta", "its tensor 0.weight lies on the meta device, without values"),
        ("lazy", "its tensor 0.weight has no size yet (a lazy layer)"),
        ("leaves", "called sys.exit(0), which ends the program"),
        ("forward_leaves", "it called sys.exit(0), which ends the program (in module Net, "),
        ("wordless", "raised Wordless: (its message cannot be shown: RuntimeError)"),
        ("forward_wordless", "Wordless: (its message cannot be shown: RuntimeError) (in module Net, "),
        ("final", "raised Final: of its own"),
        ("endless", "raised RecursionError: maximum recursion depth exceeded"),
        ("forward_endless", "RecursionError: maximum recursion depth exceeded"),
        ("memory", "raised MemoryError"),
        ("never_evaluates", "raised ValueError: never"),
        ("unprepared", "Own.__init__ does not call super().__init__()"),
        ("property_raises", "LookupError: no way forward"),
    ],
)
def test_what_cannot_be_captured_is_one_line(builder: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_network(f"python:users_nets:{builder}", image_size=16)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"python:users_nets:{builder}")


@pytest.mark.parametrize(
    ("builder", "names"),
    [
        ("dataclass_output", ("logits", "features_0", "features_1_k")),
        ("frozen_output", ("y",)),
        ("tuple_output", ("first", "second")),
        ("dictionary_output", ("b", "c_0")),
        ("wrapped_inside", ("output",)),
        ("in_inference_mode", ("output",)),
        ("eval_returns_nothing", ("output",)),
        ("changes_torch", ("output",)),
        ("decorated", ("output",)),
        ("of_numpy", ("output",)),
        ("root_of_pixels", ("output",)),
    ],
)
def test_outputs_in_objects_and_odd_networks_are_taken(builder: str, names: tuple[str, ...]) -> None:
    kinds = [f"{name}=values" for name in names] if len(names) > 1 else []
    network = load_network(f"python:users_nets:{builder}", image_size=16, output_kinds=kinds)
    assert tuple(interface_of(network.captured).outputs) == names
    assert network.fold_difference < 1e-5
    parameters = [parameter for parameter in network.folded.parameters() if parameter.is_floating_point()]
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled() and torch.ones(1).device.type == "cpu"
    assert parameters and not any(parameter.is_inference() for parameter in parameters)


def test_images_for_which_a_network_has_no_numbers_are_told_with_the_first_operator() -> None:
    network = load_network("python:users_nets:logarithm_of_pixels")
    pixels = torch.randint(1, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    check_on_images(network, normalise(pixels, network.preprocessing))
    pixels[1, :, 4, 4] = 0
    with pytest.raises(UserError, match=r"infinity for images of --data \(infinity first behind log .*NaN first"):
        check_on_images(network, normalise(pixels, network.preprocessing))


def test_outputs_of_a_dataclass_hold_what_the_network_returns() -> None:
    kinds = [f"{name}=values" for name in ("logits", "features_0", "features_1_k")]
    network = load_network("python:users_nets:dataclass_output", image_size=16, output_kinds=kinds)
    import users_nets  # type: ignore[import-not-found]  # the module of the test's own folder

    images = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answer = users_nets.dataclass_output().eval()(images)
        logits, features, inner = network.captured(images)
    for ours, theirs in ((logits, answer.logits), (features, answer.features[0]), (inner, answer.features[1]["k"])):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("builder", "wrappers"),
    [("parallel", "DataParallel, torch.compile"), ("averaged", "AveragedModel")],
)
def test_wrappers_of_training_are_taken_off_and_said(builder: str, wrappers: str, tmp_path: Path) -> None:
    source = f"python:users_nets:{builder}"
    state = _state()
    torch.save({f"module._orig_mod.{key}": tensor for key, tensor in state.items()}, tmp_path / "w.pth")
    network = load_network(source, image_size=16, weights=tmp_path / "w.pth")
    assert network.notes[0] == f"{source}: the network inside {wrappers} is taken"
    assert torch.equal(dict(network.captured.named_parameters())["5.bias"], state["5.bias"])


def _state() -> dict[str, torch.Tensor]:
    made = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Identity(), nn.Identity(), nn.Identity())
    made.append(nn.Linear(8, 4))
    return dict(made.state_dict())
