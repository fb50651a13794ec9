"""What one rounding of a feature map costs in training, forward and backward: ours, torch's, and plain autograd.

    python3 -m pytest -m benchmark tests/benchmarks/test_rounding_speed.py -s

All round the same map to 8 bits, interleaved. That ours compute what a slow composition does is tested in
tests/calibration/arithmetic/test_rounding.py.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from calibration.arithmetic.rounding import requantise, round_straight_through, round_to_grid

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Columns, Results

pytestmark = pytest.mark.benchmark

SHAPE = (128, 16, 32, 32)  # a map of the first stage of a CIFAR ResNet, at the default batch size
LOWEST, HIGHEST = 0, 255
WARM_UP_ROUNDS = 3
ROUNDS = 25

OURS = "requantise"

COLUMNS: Columns = {
    "layout": lambda row: row["key"]["layout"],
    "rounding": lambda row: row["key"]["rounding"],
    "scale": lambda row: row["scale"],
    "median ms": lambda row: f"{row['median_ms']:.2f}",
    "ratio": lambda row: f"{row['ratio']:.2f}",
}


def _rescaled(x: Tensor, scale: Tensor) -> Tensor:
    return requantise(x, scale.reciprocal(), LOWEST, HIGHEST)


def _prescaled(x: Tensor, scale: Tensor) -> Tensor:
    return round_to_grid(x, LOWEST, HIGHEST)


def _composed(x: Tensor, scale: Tensor) -> Tensor:
    return round_straight_through((x / scale).clamp(LOWEST, HIGHEST))


def _torch_learned(x: Tensor, scale: Tensor) -> Tensor:
    zero = torch.zeros_like(scale)
    return torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero, LOWEST, HIGHEST, 1.0)


def _torch_fixed(x: Tensor, scale: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, 1 / 32, 0, LOWEST, HIGHEST)


#: Name -> how the scale is had, and the function of map and scale.
ROUNDINGS: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    OURS: ("learned", _rescaled),
    "round_to_grid (behind prescaled weights)": ("learned with the weights", _prescaled),
    "autograd: divide, clamp, round straight through": ("learned", _composed),
    "torch._fake_quantize_learnable_per_tensor_affine": ("learned", _torch_learned),
    "torch.fake_quantize_per_tensor_affine": ("fixed", _torch_fixed),
}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
def test_one_rounding(layout: torch.memory_format, results: Results, training_threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(SHAPE, generator=generator) * 4).contiguous(memory_format=layout).requires_grad_()
    gradient = torch.randn(SHAPE, generator=generator).contiguous(memory_format=layout)
    scale = torch.tensor([1 / 32], requires_grad=True)

    def step(function: Callable[[Tensor, Tensor], Tensor]) -> None:
        x.grad = scale.grad = None
        torch.autograd.backward(function(x, scale), gradient)

    rounds = int(os.environ.get("FAQD_BENCHMARK_REPEATS") or ROUNDS)
    names, times = list(ROUNDINGS), {name: list[float]() for name in ROUNDINGS}
    for number in range(-WARM_UP_ROUNDS, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            start = time.perf_counter()
            step(ROUNDINGS[name][1])
            if number >= 0:
                times[name].append(1000 * (time.perf_counter() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    shown = str(layout).removeprefix("torch.").removesuffix("_format").replace("_", " ")
    for name, (how, _) in ROUNDINGS.items():
        key = {"layout": shown, "rounding": name, "threads": training_threads}
        results.add(key, scale=how, median_ms=medians[name], ratio=medians[name] / medians[OURS])
    results.publish(
        f"One rounding of a {'x'.join(map(str, SHAPE))} map, forward and backward, {training_threads} threads",
        COLUMNS,
        [row for row in results.newest() if row["key"]["threads"] == training_threads],
        notes=[f"{rounds} interleaved rounds after {WARM_UP_ROUNDS}; ratio: median over {OURS}'s"],
    )
