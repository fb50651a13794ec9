"""When a training ends early: by looks at held-out losses, and with a rate that still falls to 0."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from pipeline.distillation.training.plateau import Plateau, Waited, is_trifle
from pipeline.distillation.training.verdict import HeldOut

IMAGES = 32


def losses_of(*means: float, spread: float = 0.01) -> Callable[[], Tensor]:
    """Losses of these means, look by look; images differ by far more than what chance makes of each."""
    generator, images = torch.Generator().manual_seed(0), torch.linspace(1, 3, IMAGES, dtype=torch.float64)

    def looks() -> Iterator[Tensor]:
        for mean in means:
            noise = torch.randn(IMAGES, generator=generator, dtype=torch.float64)
            yield images + mean + spread * (noise - noise.mean())

    following = looks()
    return lambda: next(following)


def watched(*means: float, steps: int = 100, patience: int = 3, spread: float = 0.01) -> tuple[Plateau, list[str]]:
    """A plateau behind a training of 100 steps with these losses, the calibrated student's first; what it said."""
    losses = losses_of(*means, spread=spread)
    plateau = Plateau(losses, losses(), steps=steps, patience=patience)
    said, step = list[str](), 0
    while step < plateau.end:
        if (line := plateau.look(step)) is not None:
            said.append(f"{step}: {line}")
        step += 1
    return plateau, said


def test_a_training_whose_loss_never_falls_ends_after_its_patience_and_a_sixth_of_the_steps() -> None:
    plateau, said = watched(1.0, 1.0, 1.2, 1.0)
    # A look every 5 steps: at 5, 10 and 15; then 17 steps in which the rate falls to 0.
    assert plateau.interval == 5 and plateau.place == Waited(step=15, waited=3, cools_from=15) and plateau.end == 32
    (line,) = said
    assert line == (
        "15: the loss of 32 held-out images has not fallen beyond chance in 15 steps: training ends after 32 steps"
        " instead of 100 (--patience 0 takes all)"
    )
    shares = [plateau.share(step) for step in range(15, 33)]
    assert shares[0] == 1.0 and shares[-1] == pytest.approx(0.0, abs=1e-12)
    assert all(later < earlier for earlier, later in itertools.pairwise(shares))
    assert plateau.share(15 + 17 // 2) == pytest.approx(0.5, abs=0.05)


def test_falls_begin_the_waiting_anew_and_small_ones_add_up() -> None:
    falling = [1.0 - 0.05 * look for look in range(20)]
    plateau, said = watched(*falling)
    assert plateau.end == 100 and not said and plateau.place.waited == 0

    # Steps of 0.0015 are within the chance of one look (two standard errors are about 0.0035 of differences of
    # sqrt(2) * 0.01 / sqrt(32) each), five of them are beyond it; 1 % of a loss of about 3 is 0.03.
    small = [1.0 - 0.012 * look for look in range(20)]
    plateau, said = watched(*small, patience=3)
    assert not said and plateau.end == 100, "three small falls are one that tells"
    plateau, said = watched(*small, patience=2)
    assert said, "two of them are less than 1 %"


def test_chance_is_no_fall() -> None:
    noisy = [1.0 - (0.05 if look % 2 else 0.0) for look in range(20)]
    assert watched(*noisy, spread=1.0)[0].place.cools_from is not None
    assert watched(*noisy, spread=0.01)[0].place.cools_from == 20, "the first look fell, and none of the three behind"


def test_where_less_is_left_than_the_rate_needs_to_fall_nothing_changes() -> None:
    falling_until_late = [1.0 - 0.05 * min(look, 16) for look in range(20)]
    plateau, said = watched(*falling_until_late)
    assert not said and plateau.end == 100 and plateau.place.waited == 3


def test_losses_that_are_no_numbers_are_no_fall() -> None:
    plateau, _ = watched(1.0, float("nan"), float("nan"), float("inf"))
    assert plateau.place.cools_from == 15


def test_nothing_is_asked_before_it_begins() -> None:
    losses = losses_of(1.0, 1.0, 1.0)
    plateau = Plateau(losses, losses(), steps=100, patience=1, begins=50)
    assert all(plateau.look(step) is None for step in range(50)) and plateau.place.step == 0
    assert plateau.look(50) is not None and plateau.end == 67


def test_a_trifle_is_a_loss_that_no_decision_shows() -> None:
    losses, all_alike = torch.full((4,), 1e-3, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    assert is_trifle(HeldOut(losses=losses, agreement=all_alike, ignorant=20.0))
    assert is_trifle(HeldOut(losses=losses, agreement=None, ignorant=20.0)), "where nothing is decided the loss tells"
    assert not is_trifle(HeldOut(losses=losses, agreement=all_alike, ignorant=9.0))
    assert not is_trifle(HeldOut(losses=losses, agreement=all_alike * torch.tensor([1, 1, 0.5, 1]), ignorant=20.0))


def test_few_steps_are_looked_at_seldom() -> None:
    plateau, said = watched(1.0, 1.0, 1.0, steps=12)
    assert plateau.interval == 5 and plateau.end == 12 and not said


def test_it_goes_on_where_it_was() -> None:
    whole, _ = watched(1.0, 0.8, 0.8, 0.8, 0.8)
    assert whole.place == Waited(step=20, waited=3, cools_from=20)

    losses = losses_of(1.0, 0.8, 0.8, 0.8, 0.8)
    first = Plateau(losses, losses(), steps=100, patience=3)
    for step in range(11):
        assert first.look(step) is None
    resumed = Plateau(losses, torch.zeros(IMAGES, dtype=torch.float64), steps=100, patience=3)
    resumed.restore(first.place, first.reference)
    for step in range(10, 21):
        resumed.look(step)
    assert resumed.place == whole.place and torch.equal(resumed.reference, whole.reference)
    with pytest.raises(ValueError, match="plateau has losses"):
        resumed.restore(first.place, torch.zeros(3))
    with pytest.raises(ValueError, match="must be >= 0"):
        Waited(step=-1, waited=0)
