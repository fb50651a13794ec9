"""The chain from a small network to its artifact, and every network of the tables for the tests that ask for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.fx import GraphModule

from backends.facts import openvino_rules
from backends.facts.onnxruntime_rules import host_profile
from backends.facts.profile import Profile
from backends.facts.tensorrt_rules import PROFILE
from backends.facts.widths import Widths
from backends.onnx_file.emit import emit
from calibration.plan import Plan
from calibration.simulation.freeze import FrozenNetwork, freeze
from calibration.simulation.prepared import PreparedNetwork
from tests.chain import folded_graph, steps_of
from tests.operator_networks import CLOSE, EXACT

PROFILES: dict[str, Profile] = {
    "onnxruntime": host_profile(),
    "tensorrt": PROFILE,
    "openvino": openvino_rules.host_profile(),
}

#: ONNX Runtime's profile without its rewrites, for what a rewrite would take away.
AS_IT_IS = replace(PROFILES["onnxruntime"], rewrites=())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a network of one of the tables for every network of it."""
    tables = (("exact_network", EXACT), ("close_network", CLOSE), ("every_network", EXACT | CLOSE))
    for argument, names in tables:
        if argument in metafunc.fixturenames:
            metafunc.parametrize(argument, list(names))


@dataclass(frozen=True, kw_only=True)
class Built:
    """Everything between a network and its artifact."""

    images: Tensor
    folded: GraphModule
    plan: Plan
    prepared: PreparedNetwork
    frozen: FrozenNetwork
    profile: Profile

    def model(self, *, opset: int = 20, pack_int4: bool = False) -> onnx.ModelProto:
        """The artifact, not linted."""
        return emit(self.frozen, opset=opset, form=replace(self.profile.form, packs_int4=pack_int4))

    def refrozen(self) -> Built:
        """The same with the integers that the prepared network has now."""
        return replace(self, frozen=freeze(self.prepared, self.folded))

    def simulate(self) -> list[Tensor]:
        """What the prepared network computes for its images."""
        with torch.no_grad():
            return list(self.prepared(self.images))


def resemble_trained(graph_module: GraphModule, seed: int, *, sparse: bool) -> None:
    """Weights like trained ones: channels of unlike size, a few outliers; `sparse`: mostly zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in graph_module.parameters():
            if parameter.dim() < 2:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
                continue
            fan_in = parameter[0].numel()
            values = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
            size = torch.randn((len(parameter), *[1] * (parameter.dim() - 1)), generator=generator)
            values *= (0.7 * size).exp() * (1 + 3 * (torch.rand(parameter.shape, generator=generator) < 0.01))
            if sparse:
                values *= torch.rand(parameter.shape, generator=generator) < 0.25
            parameter.copy_(values)


Build = Callable[..., Built]
_folded: dict[str, GraphModule] = {}


def images(count: int = 8, seed: int = 7) -> Tensor:
    """Normalised images [count, 3, 12, 12]."""
    return torch.randn(count, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


KnownNetwork = Callable[[str], GraphModule]


@pytest.fixture(scope="session")
def known_network() -> KnownNetwork:
    """A network of torchvision, its weights the same each time, folded at 64 x 64 pixels; once in a process."""
    kept: dict[str, GraphModule] = {}

    def folded(name: str) -> GraphModule:
        if name not in kept:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                module = torchvision.models.get_model(name)
            kept[name] = folded_graph(module, torch.zeros(2, 3, 64, 64), source=name)
        return copy.deepcopy(kept[name])

    return folded


@pytest.fixture(scope="session")
def build() -> Build:
    """From a network, its name or its folded graph up to its artifact, in the form that a run gives it."""

    def run(
        network: str | nn.Module,
        target: str | Profile = "onnxruntime",
        *,
        bits: int = 8,
        widths: Widths | None = None,
        sparse: bool = False,
        saturating: bool = False,
        seed: int = 0,
        inputs: Tensor | None = None,
    ) -> Built:
        shown = images() if inputs is None else inputs
        if isinstance(network, GraphModule):
            folded = network
        elif isinstance(network, nn.Module):
            folded = folded_graph(network, shown[:2])
        else:
            if network not in _folded:
                _folded[network] = folded_graph((EXACT | CLOSE)[network](), shown[:2], source=network)
            folded = copy.deepcopy(_folded[network])
            resemble_trained(folded, seed, sparse=sparse)
        profile = target if isinstance(target, Profile) else PROFILES[target]
        chosen = widths or Widths(weights=bits)
        steps = steps_of(folded, shown, profile, widths=chosen, check=shown, shrunk=3.0 if saturating else 1.0)
        return Built(
            images=shown,
            folded=steps.folded,
            plan=steps.plan,
            prepared=steps.prepared.eval(),
            frozen=steps.frozen(),
            profile=profile,
        )

    return run
