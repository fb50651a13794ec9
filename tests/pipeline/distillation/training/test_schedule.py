"""What "auto" becomes: steps and rates by widths, and what a flag says wins."""

from __future__ import annotations

import pytest

from pipeline.distillation.training.schedule import (
    resolve_float_steps,
    resolve_learning_rate,
    resolve_normalised,
    resolve_steps,
)


@pytest.mark.parametrize(
    ("weights", "activations", "steps"),
    [(8, 8, 300), (4, 8, 400), (4, 4, 400), (2, 8, 1600), (4, 3, 800), (2, 2, 2400)],
)
def test_steps_grow_as_bits_shrink(weights: int, activations: int, steps: int) -> None:
    assert resolve_steps(None, weights, activations, images=4576, batch_size=128) == steps
    assert resolve_steps(0, weights, activations, images=4576, batch_size=128) == 0


def test_few_images_take_fewer_steps_and_typed_steps_are_taken() -> None:
    # 93 photographs, 32 a step: 40 epochs are 116.25 steps; at 4 bits 400 steps may be 53.3 epochs.
    assert resolve_steps(None, 8, images=93, batch_size=32) == 117
    assert resolve_steps(None, 4, images=93, batch_size=32) == 155
    assert resolve_steps(None, 8, images=5, batch_size=5) == 40
    # As many as one less than would make it 40 epochs, and as many as make it so.
    assert [resolve_steps(None, 8, images=count, batch_size=128) for count in (956, 957)] == [299, 300]
    assert resolve_steps(2000, 8, images=5, batch_size=5) == 2000


def test_rates_by_bits_normalisation_and_optimiser() -> None:
    assert resolve_learning_rate(None, 8) == resolve_learning_rate(None, 4) == 1e-4
    assert resolve_learning_rate(None, 2) == 3e-4 < resolve_learning_rate(None, 2, normalised=True)
    assert resolve_learning_rate(None, 4, optimiser="sgd") == 0.01
    assert resolve_learning_rate(0.5, 4, optimiser="sgd") == 0.5


def test_layers_are_normalised_below_four_bits() -> None:
    assert [resolve_normalised("auto", bits) for bits in (8, 4, 3, 1)] == [False, False, True, True]
    assert resolve_normalised("kept", 8) and not resolve_normalised("folded", 1)


def test_another_student_without_weights_learns_in_float() -> None:
    assert resolve_float_steps(None, named=True, has_weights=False) > 0
    assert resolve_float_steps(None, named=True, has_weights=True) == 0
    assert resolve_float_steps(7, named=False, has_weights=True) == 7
