"""DAFL's losses by hand and in their invariants, and the generator that they train."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from calibration.capture.graph_from_module import capture
from pipeline.distillation.generator import (
    LATENT,
    Generator,
    Impressed,
    Impression,
    generator_loss,
    generator_losses,
    statistics_distance,
)
from pipeline.distillation.taps import pooled_features
from pipeline.networks.outputs.meaning import Output


def test_hand_worked_losses() -> None:
    # Two images, two classes: probabilities (3/4, 1/4) and (1/4, 3/4), features of magnitude 1 and 2.
    logits = torch.tensor([[math.log(3), 0.0], [0.0, math.log(3)]])
    impression = Impression(
        logits=logits, features=torch.tensor([[1.0, -1.0], [2.0, -2.0]]), statistics=torch.tensor(0.5)
    )
    losses = generator_losses(impression)
    assert losses["one_hot"].item() == pytest.approx(math.log(4 / 3))
    assert losses["activation"].item() == pytest.approx(-1.5)
    assert losses["balance"].item() == pytest.approx(-math.log(2)), "both classes alike: minus the whole entropy"
    total = 0.05 * math.log(4 / 3) - 0.01 * 1.5 - 5 * math.log(2) + 0.5
    assert generator_loss(losses).item() == pytest.approx(total, rel=1e-5)


def test_one_class_alone_has_the_worst_balance_and_a_finite_gradient() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]] * 4, requires_grad=True)
    losses = generator_losses(Impression(logits=logits, features=torch.ones(4, 2), statistics=torch.zeros(())))
    assert losses["balance"].item() == pytest.approx(0, abs=1e-5)
    torch.autograd.backward(generator_loss(losses))
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_hand_worked_statistics() -> None:
    # One channel holding 0 and 4: mean 2, variance 4. Against mean 1 and variance 1: 1 + (ln 4)^2.
    values = torch.tensor([0.0, 4.0]).reshape(2, 1, 1, 1)
    distance = statistics_distance(values, torch.tensor([1.0]), torch.tensor([1.0]))
    assert distance.item() == pytest.approx(1 + math.log(4) ** 2, rel=1e-5)
    assert statistics_distance(values, torch.tensor([2.0]), torch.tensor([4.0])).item() == pytest.approx(0, abs=1e-9)
    scaled = statistics_distance(10 * values, torch.tensor([10.0]), torch.tensor([100.0]))
    assert scaled.item() == pytest.approx(distance.item(), rel=1e-5), "no unit is left"
    constant = torch.zeros(4, 1, 1, 1, requires_grad=True)
    torch.autograd.backward(statistics_distance(constant, torch.tensor([1.0]), torch.tensor([1.0])))
    assert constant.grad is not None and constant.grad.isfinite().all()


class Teacher(nn.Module):
    """A small classifier with a BatchNorm that has seen a mean of 3 and a variance of 4."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm: nn.Module = nn.BatchNorm2d(4) if norm else nn.Identity()
        if isinstance(self.norm, nn.BatchNorm2d):
            self.norm.running_mean = torch.full((4,), 3.0)
            self.norm.running_var = torch.full((4,), 4.0)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.conv(x)).relu().mean((2, 3)))
        return logits


@pytest.mark.parametrize("norm", [True, False])
def test_a_teachers_impression_is_what_its_modules_compute(norm: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = Teacher(norm).eval()
    captured = capture(teacher, torch.zeros(2, 1, 8, 8), source="teacher")
    pooled = pooled_features(captured)
    assert pooled is not None
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    statistics = Impressed(captured, pooled, Output(name="output", holds="classes", axis=1, shape=(5,))).impression(
        images
    )
    torch.testing.assert_close(statistics.logits, teacher(images))
    torch.testing.assert_close(statistics.features, teacher.norm(teacher.conv(images)).relu().mean((2, 3)))
    before = teacher.conv(images)
    by_hand = ((before.mean((0, 2, 3)) - 3).square() / 4 + (before.var((0, 2, 3), correction=0) / 4).log() ** 2).mean()
    torch.testing.assert_close(statistics.statistics, by_hand if norm else torch.zeros(()))
    torch.autograd.backward(generator_loss(generator_losses(statistics)))
    assert images.grad is not None and images.grad.abs().sum() > 0


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 32), (30, 22)])
def test_the_generator_makes_images_of_any_size_from_its_seed(height: int, width: int) -> None:
    made = [
        Generator(channels=3, height=height, width=width, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    latent = torch.randn(4, LATENT, generator=torch.Generator().manual_seed(2))
    state = torch.get_rng_state()
    images = [generator(latent) for generator in made]
    assert torch.equal(state, torch.get_rng_state())
    assert images[0].shape == (4, 3, height, width)
    assert torch.equal(images[0], images[1]) and not torch.equal(images[0], images[2])
