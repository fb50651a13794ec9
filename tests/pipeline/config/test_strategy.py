"""A strategy is a choice of steps: what it makes of the sections beside it, and what it goes with."""

from __future__ import annotations

from typing import Any

import pytest

from calibration.errors import UserError
from pipeline.config import DistillationConfig, QuantisationConfig, RunConfig, StrategyConfig


@pytest.mark.parametrize(
    ("strategy", "rounding", "steps"),
    [
        ("distil", ("auto", "least-squares"), None),
        ("calibrate", ("nearest", "nearest"), 0),
        ("reconstruct", ("least-squares", "least-squares"), 0),
        ("auto", ("least-squares", "least-squares"), None),
    ],
)
def test_what_each_makes_of_roundings_and_steps(strategy: Any, rounding: tuple[str, str], steps: int | None) -> None:
    """At 8 bits and at 4."""
    for bits, resolved in ((8, rounding[0]), (4, rounding[1])):
        grids: Any = QuantisationConfig(bits=bits)  # type: ignore[arg-type]  # of the bits that there are
        config = RunConfig(strategy=StrategyConfig(strategy=strategy), quantisation=grids)
        assert config.grids.resolved_rounding == resolved and config.learning.steps == steps
        assert config.strategy.stops_early == (strategy == "auto")


def test_what_is_typed_beside_it_holds() -> None:
    auto = StrategyConfig(strategy="auto")
    typed = RunConfig(strategy=auto, quantisation=QuantisationConfig(bits=4, rounding="nearest"))
    assert typed.grids.resolved_rounding == "nearest"
    assert RunConfig(strategy=auto, distillation=DistillationConfig(steps=7)).learning.steps == 7
    assert RunConfig(strategy=StrategyConfig(strategy="calibrate"), distillation=DistillationConfig(steps=0))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"strategy": "calibrate", "steps": 5}, "--steps 5 has no meaning with --strategy calibrate, which trains"),
        ({"strategy": "reconstruct", "minutes": 2.0}, "--minutes 2.0 has no meaning with --strategy reconstruct,"),
        ({"strategy": "calibrate", "affinity": "sp"}, "--affinity sp has no meaning with --strategy calibrate, which"),
        ({"strategy": "reconstruct", "rounding": "nearest"}, "--rounding nearest has no meaning with --strategy recon"),
        ({"strategy": "calibrate", "rounding": "least-squares"}, "with --strategy calibrate, which rounds otherwise"),
        ({"strategy": "auto", "quantiser": "nncf"}, "--strategy auto has no meaning with --quantiser nncf"),
        ({"strategy": "cheap"}, "strategy is 'cheap': must be auto, calibrate, reconstruct or distil"),
    ],
)
def test_what_it_does_not_go_with_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        RunConfig.from_json(settings)
    assert words in str(caught.value)
