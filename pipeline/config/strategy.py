"""How far a run goes: which of its steps it takes, and whether it stops at the first that reaches its goal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from cyclopts import Parameter

from pipeline.config import flags
from pipeline.config.distillation import DistillationConfig
from pipeline.config.quantisation import QuantisationConfig

UNTRAINED = ("calibrate", "reconstruct")
"""Strategies that train no quantised network."""


@dataclass(frozen=True, kw_only=True)
class StrategyConfig:
    """Which way a network is quantised, from seconds to training."""

    strategy: Annotated[
        Literal["auto", "calibrate", "reconstruct", "distil"],
        Parameter(
            help="auto: calibrated, corrected, reconstructed, distilled, each measured on the runtime, until one loses "
            "no more than --max-drop; calibrate: ranges and corrections alone; reconstruct: and weights rounded by "
            "least squares; distil: as --rounding says, and trained."
        ),
    ] = "distil"

    def __post_init__(self) -> None:
        flags.check_fields(self)

    @property
    def stops_early(self) -> bool:
        """Whether each step is measured, and the first that reaches the goal is the last."""
        return self.strategy == "auto"

    def grids(self, asked: QuantisationConfig) -> QuantisationConfig:
        """What was asked of widths and roundings, with the roundings that the strategy takes."""
        if self.strategy == "calibrate":
            return replace(asked, rounding="nearest")
        if self.strategy in ("auto", "reconstruct") and asked.rounding == "auto":
            return replace(asked, rounding="least-squares")
        return asked

    def learning(self, asked: DistillationConfig) -> DistillationConfig:
        """What was asked of training, without steps where the strategy has none."""
        return replace(asked, steps=0) if self.strategy in UNTRAINED else asked
