"""The kinds of numbers that one tensor holds, as a report says them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from backends.device.bundle_check.value_tally import ValueTally
from pipeline.report.schema import Entries


def entries_of(tally: ValueTally) -> tuple[Entries, ...]:
    """Each kind of number in a tensor and how much of it is explained; empty where there is one kind alone."""
    axis, count = tally.spread.axis, tally.spread.count
    if axis is None:
        return ()
    return tuple(
        Entries(
            axis=axis,
            places=ranges_of(chosen.nonzero()[0].tolist()),
            spread=math.sqrt(scale / (count * int(chosen.sum()))),
            explained=tally.explained(chosen, scale),
        )
        for chosen, scale in tally.spread.kinds()
    )


def ranges_of(places: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Rising places as runs of neighbours, (first, last) each."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and runs[-1][1] == place - 1:
            runs[-1] = (runs[-1][0], place)
        else:
            runs.append((place, place))
    return tuple(runs)
