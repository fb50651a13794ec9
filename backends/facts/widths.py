"""How many bits the weights and activations of a network get."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Bits of the weights: of most layers, and of those that are kept wider by default.

    `activations`: bits of what weighted layers read, but for the first and the last; all else is rounded to 8.
    """

    weights: int = 8
    first: int = 8
    depthwise: int = 8
    last: int = 8
    activations: int = 8
