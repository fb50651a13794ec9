"""Builders as users write them, as the text of their module: wrapped, exported, quantised and broken networks."""

from __future__ import annotations

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


def left_out():
    return Net(lambda n, x: n.net(torch.where(x > 0, torch.log(x), torch.zeros_like(x))))


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


class Leaving(Exception):
    def __str__(self):
        sys.exit(0)


def leaves_for_words():
    raise Leaving()


def closes():
    raise GeneratorExit


def forward_closes():
    def close(n, x):
        raise GeneratorExit

    return Net(close)


class Counted(nn.Sequential):
    def parameters(self, *args, **settings):
        sys.exit(0)


def leaves_when_counted():
    return Counted(nn.Conv2d(3, 4, 3))


def nested():
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    network.register_buffer("extra", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))
    return network


def below_zero():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    network[1].running_var.fill_(-1.0)
    return network


def without_spread():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.0), nn.Flatten())
    network[0].weight.data.zero_()
    network[0].bias.data.zero_()
    network[1].running_var.zero_()
    return network


def overflowing():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten())
    for layer in network[:2]:
        layer.weight.data.mul_(1e30)
    return network


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
