"""Integer operations against slow arithmetic in Python's numbers, and their gradients against LSQ's formulas."""

from __future__ import annotations

import copy
import itertools
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from calibration.arithmetic.integer_products import EXACT_BIAS
from calibration.grid import Grid
from calibration.simulation.freeze import freeze
from calibration.simulation.learned_grids import ActivationGrid, WeightGrid
from calibration.simulation.operations import (
    BiasIntegers,
    Dequantise,
    Prescale,
    Quantise,
    QuantiseAverage,
    RequantiseMean,
    RequantiseMultiplication,
    RequantiseProduct,
    RequantiseSum,
    RescaleProduct,
)

if TYPE_CHECKING:
    from tests.calibration.conftest import BuildChain, MakeNet, Noise

UNSIGNED = Grid(bits=8, signed=False, symmetric=True)
AFFINE = Grid(bits=8, signed=False, symmetric=False)
SIGNED = Grid(bits=8, signed=True, symmetric=True)
WEIGHT = Grid(bits=8, signed=True, symmetric=True, narrow=True, channel_axis=0)

float32 = np.float32


def activation(grid: Grid = AFFINE, *, scale: float = 0.0371, zero_point: int = 0) -> ActivationGrid:
    return ActivationGrid(grid, scale=scale, zero_point=zero_point)


def scale_of(grid: ActivationGrid) -> np.float32:
    return float32(grid.scale().detach().numpy())


def half_even(value: float | np.floating[Any]) -> int:
    return round(Fraction(float(value)))  # of a fraction, Python rounds halves to the even neighbour exactly


def clamped(integer: int, grid: ActivationGrid) -> int:
    return min(max(integer, grid.lowest), grid.highest)


def nearest_float32(value: Fraction) -> np.float32:
    """A rational number rounded once to float32, halves to the even mantissa."""
    guess = float32(float(value))
    candidates = [np.nextafter(guess, float32(-np.inf)), guess, np.nextafter(guess, float32(np.inf))]
    distances = [abs(Fraction(float(candidate)) - value) for candidate in candidates]
    best = [c for c, d in zip(candidates, distances, strict=True) if d == min(distances)]
    return min(best, key=lambda c: int(c.view(np.uint32)) & 1)


def all_integers(grid: ActivationGrid) -> Tensor:
    return torch.arange(grid.lowest, grid.highest + 1).float()


GRIDS = [(UNSIGNED, 0), (AFFINE, 93), (SIGNED, 0)]


@pytest.mark.parametrize(("grid", "zero_point"), GRIDS)
def test_quantise_divides_rounds_and_saturates(grid: Grid, zero_point: int, noise: Noise) -> None:
    output = activation(grid, zero_point=zero_point)
    middles = (all_integers(output)[:-1] + 0.5) * float(scale_of(output))  # on ties, or next to them
    values = torch.cat([noise(500) * 4, middles, torch.tensor([0.0, 1e9, -1e9])])
    expected = [clamped(half_even(float32(value) / scale_of(output)), output) for value in values.numpy()]
    module = Quantise(output)
    assert module.eval()(values).tolist() == expected
    trained = module.train()(values).detach()
    # Training multiplies by the reciprocal, which decides ties its own way and nothing else.
    assert float((trained - torch.tensor(expected)).abs().max()) <= 1
    assert torch.equal(trained[:500], torch.tensor(expected[:500]).float())
    assert values[-2] == 1e9  # untouched


@pytest.mark.parametrize("zero_point", [0, 93])
def test_averages_are_rounded_with_their_zero_point(zero_point: int) -> None:
    output = activation(scale=0.25, zero_point=zero_point)
    values = torch.arange(-400, 400) * 0.125  # every other one is a tie
    expected = [min(max(half_even(value / 0.25 + zero_point), 0), 255) - zero_point for value in values.tolist()]
    module = QuantiseAverage(output)
    assert module.eval()(values).tolist() == expected
    assert float((module.train()(values).detach() - torch.tensor(expected)).abs().max()) <= 1
    # An odd zero point turns the even neighbour into the other one.
    assert torch.equal(module.eval()(values), Quantise(output).eval()(values)) is (zero_point == 0)


@pytest.mark.parametrize(("grid", "zero_point"), GRIDS)
def test_dequantise_multiplies(grid: Grid, zero_point: int) -> None:
    source = activation(grid, zero_point=zero_point)
    values = all_integers(source)
    assert Dequantise(source)(values).tolist() == [float(float32(v) * scale_of(source)) for v in values.numpy()]


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(("grid", "zero_point"), GRIDS)
def test_products_are_rescaled_by_one_float32(mode: str, grid: Grid, zero_point: int, noise: Noise) -> None:
    output, source = activation(grid, scale=0.31, zero_point=zero_point), activation(scale=0.0123)
    weights = WeightGrid(WEIGHT, noise(5, 12) * torch.tensor([1.0, 0.1, 3.0, 0.5, 2.0])[:, None])
    sums = (noise(3, 5, 4, 2) * 60_000).round()
    module = RequantiseProduct(output, source, weights, channel_dimensions=2).train(mode == "train")
    rounded = module(sums)
    scales = weights.scale().detach().numpy()
    for index in itertools.product(*map(range, sums.shape)):
        multiplier = float32(float32(scale_of(source) * scales[index[1]]) / scale_of(output))
        expected = clamped(half_even(float32(sums[index]) * multiplier), output)
        assert int(rounded[index]) == expected
    assert {int(rounded.min()), int(rounded.max())} == {output.lowest, output.highest}


def test_vectors_and_matrix_products_are_rescaled_along_their_own_axes(noise: Noise) -> None:
    output, source, other = activation(scale=0.51), activation(scale=0.0123), activation(scale=0.044)
    weights = WeightGrid(WEIGHT, noise(5, 12))
    sums = (noise(7, 5) * 9_000).round()
    multiplier = source.scale() * weights.scale() / output.scale()
    expected = (sums * multiplier).round().clamp(output.lowest, output.highest)
    assert torch.equal(RequantiseProduct(output, source, weights)(sums), expected)
    rows = sums.reshape(1, 7, 5)
    assert torch.equal(RequantiseProduct(output, source, weights)(rows), expected.reshape(1, 7, 5))
    single = source.scale() * other.scale() / output.scale()
    assert torch.equal(
        RequantiseProduct(output, source, other)(rows), (rows * single).round().clamp(output.lowest, output.highest)
    )
    bias = noise(5)
    assert torch.equal(RescaleProduct(source, weights)(sums, bias), sums * (source.scale() * weights.scale()) + bias)


def test_groups_of_a_transposed_convolution_repeat_the_weights_scales(noise: Noise) -> None:
    source, output = activation(scale=0.0123), activation(scale=0.9)
    grid = Grid(bits=8, signed=True, symmetric=True, narrow=True, channel_axis=1)
    weights = WeightGrid(grid, noise(4, 3, 2, 2) * torch.tensor([1.0, 10.0, 0.1])[:, None, None])
    sums, bias = (noise(2, 6, 4, 4) * 9_000).round(), noise(6)
    step = (source.scale() * weights.scale()).tile(2)
    form = {"channel_dimensions": 2, "groups": 2}
    real = RescaleProduct(source, weights, **form)(sums, bias)
    assert torch.equal(real, sums * step[:, None, None] + bias[:, None, None])
    rounded = RequantiseProduct(output, source, weights, **form)(sums)
    expected = (sums * (step / output.scale())[:, None, None]).round().clamp(output.lowest, output.highest)
    assert torch.equal(rounded, expected)
    assert torch.equal(BiasIntegers(source, weights, **form)(bias), (bias / step).round())


def test_constants_of_grouped_transposed_convolutions_are_prescaled_alike(noise: Noise) -> None:
    source, output = activation(scale=0.0123), activation(scale=0.9)
    grid = Grid(bits=8, signed=True, symmetric=True, narrow=True, channel_axis=1)
    weight, bias = noise(4, 3, 2, 2) * torch.tensor([1.0, 10.0, 0.1])[:, None, None], noise(6)
    weights = WeightGrid(grid, weight)
    x, integers = (noise(2, 4, 5, 5, seed=1) * 80).round(), weights(weight)
    offsets = BiasIntegers(source, weights, groups=2)(bias)
    scaled = [Prescale(output, source, weights, axis=axis, groups=2)(v) for v, axis in ((integers, 1), (offsets, 0))]
    step = (source.scale() * weights.scale() / output.scale()).tile(2)[:, None, None]
    expected = torch.conv_transpose2d(x, integers, offsets, groups=2) * step
    torch.testing.assert_close(
        torch.conv_transpose2d(x, scaled[0], scaled[1], groups=2), expected, rtol=1e-5, atol=1e-4
    )


def test_biases_are_integers_at_the_scale_of_the_sums(noise: Noise) -> None:
    source, weights = activation(scale=0.0123), WeightGrid(WEIGHT, noise(5, 12))
    bias = torch.tensor([0.3, -1.7, 0.0, 1e-9, 4.0], requires_grad=True)
    module = BiasIntegers(source, weights).eval()
    scales = weights.scale().detach().numpy()
    expected = [half_even(b / (scale_of(source) * s)) for b, s in zip(bias.detach().numpy(), scales, strict=True)]
    assert module(bias).tolist() == expected
    torch.autograd.backward(module(bias).sum())
    torch.testing.assert_close(bias.grad, 1 / module.scale().detach())


def test_large_biases_ask_for_wide_sums_in_evaluation_only(noise: Noise) -> None:
    module = BiasIntegers(activation(scale=0.01), WeightGrid(WEIGHT, noise(2, 12)))
    step = module.scale().detach()
    small, large = step * (EXACT_BIAS - 2), step * (EXACT_BIAS + 2)
    assert module.eval()(small).dtype == torch.float32 and module(large).dtype == torch.float64
    assert module.train()(large).dtype == torch.float32


@pytest.mark.parametrize("zeros", [(0, 0, 0), (93, 17, 128), (0, 255, 40)])
def test_sums_are_two_fused_multiply_adds(zeros: tuple[int, int, int], noise: Noise) -> None:
    output, first, second = (
        activation(scale=scale, zero_point=zero) for scale, zero in zip((0.061, 0.0371, 0.0192), zeros, strict=True)
    )
    stored = torch.randint(0, 256, (2, 700), generator=torch.Generator().manual_seed(0))
    a, b = (stored[0] - first.zero).float(), (stored[1] - second.zero).float()
    sums = RequantiseSum(output, first, second).eval()(a, b).detach()
    ratio_a, ratio_b = scale_of(first) / scale_of(output), scale_of(second) / scale_of(output)
    exact_a, exact_b = Fraction(float(ratio_a)), Fraction(float(ratio_b))
    zeros_of_both = nearest_float32(exact_a * first.zero + Fraction(float(ratio_b * float32(second.zero))))
    fixed = float32(output.zero) - zeros_of_both
    for x, y, integer in zip(stored[0].tolist(), stored[1].tolist(), sums.tolist(), strict=True):
        inner = nearest_float32(exact_b * y + Fraction(float(fixed)))
        total = nearest_float32(exact_a * x + Fraction(float(inner)))
        assert integer == min(max(half_even(total), 0), 255) - output.zero
    # In training the same but for ties.
    trained = RequantiseSum(output, first, second)(a, b).detach()
    assert float((trained - sums).abs().max()) <= 1 and float((trained != sums).float().mean()) < 0.01


@pytest.mark.parametrize("zeros", [(0, 0, 0), (93, 17, 128)])
def test_multiplications_add_the_zero_point_before_rounding(zeros: tuple[int, int, int]) -> None:
    output, first, second = (
        activation(scale=scale, zero_point=zero) for scale, zero in zip((0.061, 0.0371, 0.0192), zeros, strict=True)
    )
    stored = torch.randint(0, 256, (2, 700), generator=torch.Generator().manual_seed(0))
    a, b = (stored[0] - first.zero).float(), (stored[1] - second.zero).float()
    products = RequantiseMultiplication(output, first, second).eval()(a, b).detach()
    multiplier = float32(scale_of(first) * scale_of(second)) / scale_of(output)
    for x, y, integer in zip(a.tolist(), b.tolist(), products.tolist(), strict=True):
        scaled = float32(float32(int(x) * int(y)) * multiplier) + float32(output.zero)
        assert integer == min(max(half_even(scaled), 0), 255) - output.zero
    trained = RequantiseMultiplication(output, first, second)(a, b).detach()
    assert float((trained - products).abs().max()) <= 1


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_means_are_sums_times_one_float32(mode: str) -> None:
    output, source = activation(scale=0.0211, zero_point=40), activation(zero_point=93)
    x = torch.randint(source.lowest, source.highest, (3, 4, 7, 5), generator=torch.Generator().manual_seed(0)).float()
    means = RequantiseMean(output, source).train(mode == "train")(x)
    multiplier = scale_of(source) / float32(scale_of(output) * float32(35))
    assert means.shape == (3, 4, 1, 1)
    for batch, channel in itertools.product(range(3), range(4)):
        total = sum(int(value) for value in x[batch, channel].flatten())
        assert int(means[batch, channel]) == clamped(half_even(float32(total) * multiplier), output)


def test_means_over_large_maps_are_exact() -> None:
    output, source = activation(UNSIGNED, scale=0.04), activation(UNSIGNED, scale=0.04)
    x = torch.full((1, 1, 300, 300), 255.0)
    x[..., 0] = 254
    assert x.double().sum() > 2**24
    # One of the two neighbours of the mean: the sum, rounded once to float32, decides.
    total = float32(255 * 300 * 300 - 300)
    expected = half_even(total * (scale_of(source) / float32(scale_of(output) * float32(90_000))))
    assert int(RequantiseMean(output, source).eval()(x)) == expected


# Gradients.


def fake_quantised(x: Tensor, scale: Tensor, lowest: int, highest: int) -> Tensor:
    """Real-valued fake quantisation with LSQ's gradients (arXiv 1902.08153, equations 1 to 3).

    y = scale * clamp(round(x / scale)). Inside the grid dy/dx = 1 and dy/dscale = round(x / scale) - x / scale,
    outside dy/dx = 0 and dy/dscale = the end of the grid.
    """
    ratio = (x / scale).detach()
    inside = (ratio > lowest - 0.5) & (ratio < highest + 0.5)
    integers = ratio.round().clamp(lowest, highest)
    through = inside * (x - x.detach()) + (torch.where(inside, integers - ratio, integers)) * (scale - scale.detach())
    return (integers * scale).detach() + through


@pytest.mark.parametrize("zero_points", [(0, 0), (93, 128)])
@pytest.mark.parametrize("weight_bits", [8, 4])
@pytest.mark.parametrize("rounded_output", [True, False])
@pytest.mark.parametrize("prescaled", [True, False])
def test_learned_scales_have_lsqs_gradients(
    prescaled: bool, rounded_output: bool, weight_bits: int, zero_points: tuple[int, int], noise: Noise
) -> None:
    grid = Grid(bits=weight_bits, signed=True, symmetric=True, narrow=True, channel_axis=0)
    inputs = activation(scale=0.02, zero_point=zero_points[0]).double()
    outputs = activation(scale=0.007, zero_point=zero_points[1]).double()
    weight = (noise(6, 3, 3, 3) * 0.2).double().requires_grad_()
    bias, images = (
        (noise(6, seed=1) * 0.3).double().requires_grad_(),
        noise(4, 3, 8, 8, seed=2).double().requires_grad_(),
    )
    weights = WeightGrid(grid, weight)
    with torch.no_grad():
        weights.log_scale.sub_(0.2)  # so that some weights are beyond the grid
    weights = weights.double()
    target = noise(4, 6, 6, 6, seed=3).double()

    constants = [weights(weight), BiasIntegers(inputs, weights)(bias)]
    if prescaled:
        scaling = Prescale(outputs if rounded_output else None, inputs, weights, axis=0)
        assert all(torch.equal(copy.deepcopy(scaling).eval()(integers), integers) for integers in constants)
        constants = [scaling(integers) for integers in constants]
    sums = torch.conv2d(Quantise(inputs)(images), *constants)
    requantise = RequantiseProduct(outputs, inputs, weights, channel_dimensions=2)
    rescale = RescaleProduct(inputs, weights, channel_dimensions=2)
    requantise.prescaled = rescale.prescaled = prescaled
    ours = Dequantise(outputs)(requantise(sums)) if rounded_output else rescale(sums)

    sx, sw, sy = (grid.scale().detach().clone().requires_grad_() for grid in (inputs, weights, outputs))
    wide = sw.reshape(-1, 1, 1, 1)
    real_bias = fake_quantised(bias, sx * sw, -(2**31), 2**31)
    real = torch.conv2d(
        fake_quantised(images, sx, inputs.lowest, inputs.highest),
        fake_quantised(weight, wide, grid.quant_min, grid.quant_max),
        real_bias,
    )
    theirs = fake_quantised(real, sy, outputs.lowest, outputs.highest) if rounded_output else real
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    if rounded_output:
        integers = requantise(sums)
        assert integers.min() == outputs.lowest and integers.max() == outputs.highest  # some saturate

    leaves, used = [images, weight, bias], 3 if rounded_output else 2
    logarithms = [grid.log_scale for grid in (inputs, weights, outputs)][:used]
    gradients = torch.autograd.grad((ours - target).square().sum(), [*leaves, *logarithms])
    expected = torch.autograd.grad((theirs - target).square().sum(), [*leaves, *[sx, sw, sy][:used]])
    for mine, lsq in zip(gradients[:3], expected[:3], strict=True):
        torch.testing.assert_close(mine, lsq, rtol=1e-9, atol=1e-9)
    for mine, lsq, scale in zip(gradients[3:], expected[3:], [sx, sw, sy][:used], strict=True):
        # d loss / d log scale = scale * d loss / d scale
        torch.testing.assert_close(mine, lsq * scale, rtol=1e-8, atol=1e-8)
        assert float(lsq.abs().min()) > 1e-6


def test_residual_sums_have_lsqs_gradients(noise: Noise) -> None:
    grids = [activation(scale=scale, zero_point=zero).double() for scale, zero in ((0.03, 90), (0.02, 0), (0.025, 128))]
    values = [noise(3, 4, 5, 5, seed=seed).double().requires_grad_() for seed in (0, 1)]
    target = noise(3, 4, 5, 5, seed=2).double()
    integers = [Quantise(grid)(value) for grid, value in zip(grids, values, strict=False)]
    ours = Dequantise(grids[2])(RequantiseSum(grids[2], grids[0], grids[1])(*integers))
    scales = [grid.scale().detach().clone().requires_grad_() for grid in grids]
    parts = [fake_quantised(v, s, g.lowest, g.highest) for v, s, g in zip(values, scales, grids, strict=False)]
    theirs = fake_quantised(parts[0] + parts[1], scales[2], grids[2].lowest, grids[2].highest)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad((ours - target).square().sum(), [*values, *(grid.log_scale for grid in grids)])
    expected = torch.autograd.grad((theirs - target).square().sum(), [*values, *scales])
    for mine, lsq in zip(gradients[:2], expected[:2], strict=True):
        torch.testing.assert_close(mine, lsq, rtol=1e-8, atol=1e-8)
    for mine, lsq, scale in zip(gradients[2:], expected[2:], scales, strict=True):
        torch.testing.assert_close(mine, lsq * scale, rtol=1e-8, atol=1e-8)


# A whole network.


Array = np.ndarray[Any, Any]


def integer_convolution(x: Array, weight: Array, stride: int, padding: int) -> Array:
    """Sums of products of int64 tensors, one output after the other."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    out, _, height, width = weight.shape
    rows, columns = (x.shape[2] - height) // stride + 1, (x.shape[3] - width) // stride + 1
    result: Array = np.zeros((len(x), out, rows, columns), np.int64)
    for row, column in itertools.product(range(rows), range(columns)):
        patch = x[:, :, row * stride : row * stride + height, column * stride : column * stride + width]
        result[:, :, row, column] = np.tensordot(patch, weight, ([1, 2, 3], [1, 2, 3]))
    return result


@pytest.mark.parametrize("bits", [8, 4])
def test_a_network_in_evaluation_is_the_integer_execution_of_its_frozen_form(
    bits: int, net: MakeNet, noise: Noise, chain: BuildChain
) -> None:
    module = net(
        lambda n, x: n.fc(torch.relu(n.b(torch.relu(n.a(x)))).mean((2, 3))),
        a=nn.Conv2d(3, 8, 3, padding=1),
        b=nn.Conv2d(8, 12, 3, stride=2),
        fc=nn.Linear(12, 5),
    )
    built = chain(module, noise(6, 3, 11, 11), bits=bits)
    frozen = freeze(built.prepared, built.folded)
    grids = {name: (float32(a.scale), a.zero_point) for name, a in frozen.activations.items()}
    names = [placement.tensor for placement in built.plan.activations]
    assert names == ["x", "relu", "relu_1", "mean"]

    def rounded(values: Array, name: str) -> Array:
        stored: Array = np.rint(values).astype(np.int64) + grids[name][1]
        return np.asarray(np.clip(stored, 0, 255) - grids[name][1])

    x = rounded(built.images.numpy() / grids["x"][0], "x")
    for layer, source, result, stride, padding in (("a", "x", "relu", 1, 1), ("b", "relu", "relu_1", 2, 0)):
        weight, bias = frozen.weights[layer], frozen.biases[layer]
        sums = integer_convolution(x, weight.integers.astype(np.int64), stride, padding)
        sums += bias.integers.astype(np.int64)[:, None, None]
        multipliers = (grids[source][0] * weight.scale) / grids[result][0]
        x = rounded(sums.astype(np.float32) * multipliers[:, None, None], result)
    multiplier = grids["relu_1"][0] / float32(grids["mean"][0] * float32(x.shape[2] * x.shape[3]))
    x = rounded(x.sum((2, 3)).astype(np.float32) * multiplier, "mean")
    weight, bias = frozen.weights["fc"], frozen.biases["fc"]
    sums = x @ weight.integers.astype(np.int64).T + bias.integers
    logits = sums.astype(np.float32) * (grids["mean"][0] * weight.scale)
    np.testing.assert_array_equal(built.simulate()[0].numpy(), logits)
    assert len(np.unique(logits)) > 20
