"""Small networks written in one line, the chain from a network to its integer form, and one trained network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from backends.facts.file_form import FileForm
from backends.facts.onnxruntime_rules import host_profile
from backends.facts.profile import Profile
from backends.facts.tensorrt_rules import PROFILE
from backends.facts.widths import Widths
from backends.onnx_file.emit import emit
from backends.oracle.backend import IntegerOracle
from calibration.plan import Plan
from calibration.simulation.freeze import freeze
from calibration.simulation.prepared import PreparedNetwork
from pipeline.images.embedded import digits_images
from pipeline.networks.models import load_model
from tests.chain import folded_graph, steps_of
from tests.narrow_digits import narrow_digits
from tests.one_line_net import Net

PROFILES: dict[str, Profile] = {"onnxruntime": host_profile(), "tensorrt": PROFILE}


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal values of a shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def resemble_trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter values of a trained network's size, and every BatchNorm statistics far from the initial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for child in module.modules():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                for values, lowest in ((child.running_var, 0.2), (child.weight, 0.5)):
                    if values is not None:
                        values.copy_(torch.rand(values.shape, generator=generator) + lowest)
                for values in (child.running_mean, child.bias):
                    if values is not None:
                        values.copy_(torch.randn(values.shape, generator=generator) * 0.4)
            elif isinstance(child, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                fan_in = child.weight[0].numel()
                child.weight.copy_(torch.randn(child.weight.shape, generator=generator) / fan_in**0.5)
                if child.bias is not None:
                    child.bias.copy_(torch.randn(child.bias.shape, generator=generator) * 0.2)
    return module.eval()


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Everything between a network and its integer form."""

    images: Tensor
    folded: GraphModule
    plan: Plan
    prepared: PreparedNetwork
    bits: int

    def simulate(self) -> list[Tensor]:
        """What the prepared network computes for the images, in evaluation mode."""
        with torch.no_grad():
            return list(self.prepared.eval()(self.images))

    def float_outputs(self) -> list[Tensor]:
        """What the folded network computes for them."""
        with torch.no_grad():
            return list(self.folded(self.images))

    def oracle(self) -> list[Tensor]:
        """What the emitted file computes for them, in integers."""
        opset = 21 if self.bits <= 4 else 20
        model = emit(freeze(self.prepared, self.folded), opset=opset, form=FileForm(packs_int4=self.bits <= 4))
        return IntegerOracle(model).run(self.images)[0]


MakeNet = Callable[..., nn.Module]
Noise = Callable[..., Tensor]
BuildChain = Callable[..., Chain]


@pytest.fixture(scope="session")
def net() -> MakeNet:
    """A network from the line that it computes and its layers by name."""
    return Net


@pytest.fixture(scope="session", name="noise")
def _noise() -> Noise:
    """Standard normal values of a shape; `seed` chooses others."""
    return noise


@pytest.fixture(scope="session", name="resemble_trained")
def _resemble_trained() -> Callable[[nn.Module], nn.Module]:
    """Parameters and statistics like those of a trained network, in place of the initial ones."""
    return resemble_trained


@pytest.fixture(scope="session")
def chain() -> BuildChain:
    """From a network to its prepared form, the ranges taken from the very images; the same network is exported once."""
    kept: dict[object, GraphModule] = {}

    def folded_copy(network: nn.Module, images: Tensor) -> GraphModule:
        weights = tuple((name, value.numpy().tobytes()) for name, value in network.state_dict().items())
        distinct = tuple(name for name, _ in network.named_parameters())  # of weights that layers share, one
        # Of other classes nothing tells whether their code is the same, but that it is the same object.
        code = (network.compute, repr(network)) if isinstance(network, Net) else network
        key = (code, distinct, weights, images.shape)
        if key not in kept:
            kept[key] = folded_graph(network, images)
        return copy.deepcopy(kept[key])

    def build(
        module: nn.Module,
        images: Tensor,
        profile: str | Profile = "onnxruntime",
        *,
        bits: int = 8,
        plan: Plan | None = None,
        trained: bool = False,
    ) -> Chain:
        network = module.eval() if trained else resemble_trained(copy.deepcopy(module))
        folded = folded_copy(network, images[:2])
        chosen = profile if isinstance(profile, Profile) else PROFILES[profile]
        steps = steps_of(folded, images, chosen, widths=Widths(weights=bits), plan=plan, method="auto", rewrites=False)
        return Chain(images=images, folded=folded, plan=steps.plan, prepared=steps.prepared, bits=bits)

    return build


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained network with images that it never saw."""

    module: nn.Module
    images: Tensor


@pytest.fixture(scope="session")
def resnet20(shared_folder: Path) -> Trained:
    """The shared ResNet-20 with 256 unlabelled images [256, 3, 32, 32], normalised as it expects."""
    loaded = load_model("cifar:resnet20", weights=shared_folder / "models" / "resnet20_cifar10.safetensors")
    with np.load(shared_folder / "data" / "cifar10_sample.npz", allow_pickle=False) as file:
        pixels = torch.from_numpy(file["unlabelled"][:256]).float() / 255
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (loaded.preprocessing.mean, loaded.preprocessing.std)
    )
    return Trained(module=loaded.module, images=(pixels - mean) / std)


@pytest.fixture(scope="session")
def digits(narrow_weights: bytes) -> Trained:
    """The embedded network at a quarter of its width, with 450 digits [450, 1, 8, 8], normalised as it expects."""
    with narrow_digits(narrow_weights):
        loaded = load_model("digits")
    pixels = torch.from_numpy(digits_images()[1]).float() / 255
    (mean,), (std,) = loaded.preprocessing.mean, loaded.preprocessing.std
    return Trained(module=loaded.module, images=(pixels - mean) / std)


@pytest.fixture(scope="session")
def signal_to_noise() -> Callable[[Tensor, Tensor], float]:
    """Signal to quantisation noise ratio of a signal and its approximation, dB."""

    def measure(signal: Tensor, approximation: Tensor) -> float:
        power = (signal - approximation).double().square().mean()
        return float(10 * torch.log10(signal.double().square().mean() / power.clamp_min(1e-30)))

    return measure
