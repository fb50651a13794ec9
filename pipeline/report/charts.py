"""Geometry of the page's charts: numbers in, SVG coordinates out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 720, 240
"""Size of a line chart in SVG units, which the page scales."""

LEFT, RIGHT, TOP, BOTTOM = 92, 12, 12, 36
"""Margins in SVG units: room for the axes' labels, whose letters are 19 units high on a telephone."""

LOG_SPAN = 20
"""A loss that falls by more than this factor is drawn on a logarithmic axis, where its end is visible."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """One labelled line of an axis, SVG units."""

    position: float
    label: str


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """One line with its axes, SVG units."""

    points: str
    """`points` of an SVG polyline."""
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    logarithmic: bool
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a chart."""

    label: str
    value: str
    share: float | None
    """Length as a percentage of the chart's width; None: not run here."""
    kind: str
    """Style of the bar: float or quantised."""


def line_chart(curve: Sequence[tuple[int, float]]) -> LineChart | None:
    """Return the chart of (step, loss) pairs, or None when there are fewer than two."""
    if len(curve) < 2:
        return None
    steps = [step for step, _ in curve]
    losses = [loss for _, loss in curve]
    logarithmic = min(losses) > 0 and max(losses) > LOG_SPAN * min(losses)
    heights = [math.log10(loss) for loss in losses] if logarithmic else losses
    low, high = (min(heights), max(heights)) if logarithmic else (min(0.0, *heights), max(heights))
    across = [_place(step, steps[0], steps[-1], LEFT, WIDTH - RIGHT) for step in steps]
    up = [_place(height, low, high, HEIGHT - BOTTOM, TOP) for height in heights]
    return LineChart(
        points=" ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, up, strict=True)),
        across=tuple(
            Tick(position=_place(step, steps[0], steps[-1], LEFT, WIDTH - RIGHT), label=str(step))
            # Steps are whole: of few, each has its own place, and none is named twice.
            for step in sorted({round(place) for place in _spread(steps[0], steps[-1])})
        ),
        up=tuple(
            Tick(
                position=_place(height, low, high, HEIGHT - BOTTOM, TOP),
                label=f"{10**height if logarithmic else height:.3g}",
            )
            for height in _spread(low, high)
        ),
        logarithmic=logarithmic,
    )


def _place(value: float, low: float, high: float, start: float, end: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.5
    return round(start + share * (end - start), 1)


def _spread(low: float, high: float, parts: int = 4) -> list[float]:
    return [low + (high - low) * part / parts for part in range(parts + 1)]
