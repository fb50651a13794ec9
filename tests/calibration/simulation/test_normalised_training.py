"""Normalised training: the same function when it begins, the same integers when it is folded away."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from backends.facts.onnxruntime_rules import X64
from backends.facts.tensorrt_rules import PROFILE
from backends.facts.widths import Widths
from backends.placement.place import place
from calibration.capture.graph_from_module import capture
from calibration.ranges.observation import choose_ranges, observe
from calibration.rewrites.fold import fold
from calibration.simulation.freeze import freeze
from calibration.simulation.insert import insert
from calibration.simulation.normalised_training import Normalisation
from calibration.simulation.prepared import PreparedNetwork
from tests.one_line_net import values_of


class Net(nn.Module):
    """Three convolutions, one with a branch, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 32, 3, padding=1)
        self.third = nn.Conv2d(32, 48, 3, 2, 1)
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = (x + self.second(x)).relu()
        logits: Tensor = self.head(self.third(x).relu().mean((2, 3)))
        return logits


def images(seed: int, count: int = 32) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=["onnxruntime", "tensorrt"])
def made(request: pytest.FixtureRequest) -> SimpleNamespace:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        folded = fold(capture(Net(), images(0, 2), source="net"))
    profile = X64 if request.param == "onnxruntime" else PROFILE
    plan = place(folded, profile, Widths(weights=2))
    ranges = choose_ranges(observe(folded, plan, [images(1)]), plan, "auto")
    return SimpleNamespace(folded=folded, new=lambda: insert(folded, plan, ranges))


def trained(made: SimpleNamespace) -> tuple[PreparedNetwork, Normalisation]:
    """A network that has learned a little with its normalisations, one gain negative."""
    network = made.new()
    normalisation = Normalisation(network, made.folded)
    normalisation.begin([images(2), images(3)])
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=0.02)
    for step in range(10):
        optimiser.zero_grad()
        torch.autograd.backward((network(images(10 + step))[0] - 1).square().mean())
        optimiser.step()
    layer = next(iter(normalisation._layers.values()))
    layer.gain.data[0] *= -1
    return network, normalisation


def test_it_begins_nearer_to_the_float_network_than_rounding_left_it(made: SimpleNamespace) -> None:
    plain, network = made.new(), made.new()
    batch = images(2, 128)
    with torch.no_grad():
        exact, before = made.folded(batch)[0], plain(batch)[0]
        normalisation = Normalisation(network, made.folded)
        normalisation.begin([batch[:64], batch[64:]])
        after = network(batch)[0]
        assert torch.equal(network.eval()(batch)[0], plain.eval()(batch)[0]), "evaluation is untouched"
    assert (after - exact).square().mean() < 0.5 * (before - exact).square().mean()
    values = values_of(made.folded, batch)
    for layer in normalisation._layers.values():
        sums = values[layer.name]
        torch.testing.assert_close(layer.offset.detach(), sums.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.gain.detach(), sums.std((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)


def test_what_is_folded_away_is_what_was_trained(made: SimpleNamespace) -> None:
    network, normalisation = trained(made)
    batch = images(50, 256)
    with torch.no_grad():
        expected = network(batch)[0]
        plain = normalisation.fold(made.new(), [batch]).eval()
        carried = plain(batch)[0]
        # Trained differently, or the comparison says nothing.
        assert (made.new().eval()(batch)[0] - expected).abs().mean() > 0.2 * expected.abs().mean()
    assert (carried - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_the_integers_of_the_weights_are_those_that_were_trained(made: SimpleNamespace) -> None:
    network, normalisation = trained(made)
    plain = normalisation.fold(made.new(), [images(50, 256)])
    integers = freeze(plain, made.folded).weights
    with torch.no_grad():
        for (path, _), layer in normalisation._layers.items():
            mine = network.weight_grid(path)(network.graph.get_parameter(path)).detach()
            signs = layer.gain.detach().sign().reshape(-1, 1, 1, 1)
            name = path.removesuffix(".weight").removesuffix("_folded").replace(".", "_")
            theirs = torch.from_numpy(integers[name].integers).float()
            assert (mine * signs == theirs).float().mean() > 0.999, "a factor per channel moves no integer but ties"
    assert set(integers) == {"first", "second", "third", "head"}


def test_the_folded_bias_trains_in_the_offset(made: SimpleNamespace) -> None:
    network = made.new()
    normalisation = Normalisation(network, made.folded)
    normalisation.begin([images(2)])
    torch.autograd.backward(network(images(3))[0].sum())
    assert len(normalisation._layers) == 3, "the linear layer stays as it is"
    for (weight, bias), layer in normalisation._layers.items():
        assert network.graph.get_parameter(bias).grad is None
        for parameter in (network.graph.get_parameter(weight), layer.gain, layer.offset):
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_layers_that_are_not_trained_stay_as_they_are() -> None:
    class Fixed(Net):
        """The second convolution's weight is a constant of the network."""

        def __init__(self) -> None:
            super().__init__()
            self.kernel = self.second.weight.detach().clone()
            del self.second

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            x = nn.functional.conv2d(x, self.kernel, torch.zeros(32), padding=1).relu()
            logits: Tensor = self.head(self.third(x).relu().mean((2, 3)))
            return logits

    folded = fold(capture(Fixed(), images(0, 2), source="net"))
    plan = place(folded, X64, Widths(weights=2))
    network = insert(folded, plan, choose_ranges(observe(folded, plan, [images(1)]), plan, "auto"))
    assert [layer.name for layer in Normalisation(network, folded)._layers.values()] == ["first", "third"]
