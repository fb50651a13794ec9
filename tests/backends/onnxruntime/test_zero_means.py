"""A map whose mean over all positions is nothing: the kernel of the mean refuses steps as fine as what is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backends.onnxruntime.backend import OnnxRuntime
from backends.oracle.backend import IntegerOracle
from calibration.simulation import insert
from tests.one_line_net import Net

Build = Callable[..., Any]


def opposites(size: int, gain: float) -> Tensor:
    """Images [8, 3, size, 2 * size], the right half of each the left one negated."""
    half = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0)) * gain
    return torch.cat([half, -half], 3)


def built_for(images: Tensor, build: Build) -> Any:
    torch.manual_seed(0)
    layers = {"a": nn.Conv2d(3, 16, 1, bias=False), "b": nn.Conv2d(16, 16, 1)}
    return build(Net(lambda n, x: n.b(F.adaptive_avg_pool2d(n.a(x), 1)), **layers).eval(), inputs=images)


def runs(built: Any, images: Tensor) -> Tensor:
    model = OnnxRuntime().emit(built.frozen)
    data = model.SerializeToString()
    assert "QLinearGlobalAveragePool" in OnnxRuntime().census(data, ("a", "b")).histogram
    with OnnxRuntime().runner(data, threads=1) as runner:
        (result,) = runner.run(images.numpy())
    return torch.from_numpy(result)


@pytest.mark.parametrize(("size", "gain"), [(2, 1.0), (4, 1e4), (8, 1e4), (12, 100.0)])
def test_means_of_nothing_run_and_are_what_was_simulated(size: int, gain: float, build: Build) -> None:
    images = opposites(size, gain)
    built = built_for(images, build)
    (exact,), _ = IntegerOracle(OnnxRuntime().emit(built.frozen)).run(images)
    assert torch.equal(runs(built, images), exact) and torch.equal(built.simulate()[0], exact)


def test_the_kernel_refuses_what_was_seen_of_them(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(insert, "resolvable_means", lambda module, plan, ranges: ranges)
    images = opposites(4, 1.0)
    built = built_for(images, build)
    with pytest.raises(Exception, match="parameter out of computation range"):
        runs(built, images)
