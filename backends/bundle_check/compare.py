"""An output of two executions side by side, by the same limits as the gates of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# What float64 sums leave of a share that is 1, and of a variance that is 0.
_ROUNDING = 1e-12

WORDS = {"classes": "same argmax", "labels": "same yes or no", "values": "values alike, R2"}
"""What an output holds -> what is counted of it."""


def answers_of(values: NDArray[Any], entry: dict[str, Any]) -> NDArray[Any]:
    """The decisions of an output that holds classes (along their axis) or labels (above their threshold)."""
    if entry["holds"] == "classes":
        return np.asarray(values.argmax(entry.get("class_axis", 1)))
    return np.asarray(values > entry.get("threshold", 0.0))


def same_share(output: NDArray[Any], expected: NDArray[Any], entry: dict[str, Any]) -> float:
    """How far an output gives the expected answers, 0 to 1: the share of equal decisions, or R2 of values.

    R2 is the share of the expected values' variance that is explained; of values that never vary, of their power.
    """
    if entry["holds"] != "values":
        return float((answers_of(output, entry) == answers_of(expected, entry)).mean())
    exact = expected.astype(np.float64)
    error, power = float(np.square(output - exact).sum()), float(np.square(exact).sum())
    if error == 0:
        return 1.0
    variance = float(np.square(exact - exact.mean()).sum())
    scale = variance if variance > _ROUNDING * power else power
    return max(0.0, 1 - error / scale) if scale > 0 and np.isfinite(error) else 0.0


def compared(output: NDArray[Any], expected: NDArray[Any], entry: dict[str, Any], least: float) -> dict[str, Any]:
    """One output against its golden values, as a report has it; `least`: the share from which on it passes."""
    share = same_share(output, expected, entry)
    count = 1 if entry["holds"] == "values" else int(answers_of(expected, entry).size)
    passed = share >= least - _ROUNDING
    return {
        "holds": entry["holds"],
        "share": share,
        "same": int(passed) if entry["holds"] == "values" else round(share * count),
        "answers": count,
        "equal": float((output == expected).mean()),
        "largest_difference": float(np.abs(output.astype(np.float64) - expected).max()),
        "least": least,
        "passed": passed,
    }


def golden_line(who: str, name: str, found: dict[str, Any]) -> str:
    """A comparison as the line that a user reads."""
    if found["holds"] == "values":
        answers = f"{WORDS['values']} {100 * found['share']:.4g} %"
    else:
        answers = f"{WORDS[found['holds']]} {found['same']} of {found['answers']}"
    words = "" if found["passed"] else f": FAIL, at least {100 * found['least']:g} % must be"
    return (
        f"{who:<18} {name}: {answers}, equal to the bit {100 * found['equal']:.2f} %, largest difference"
        f" {found['largest_difference']:.3g}{words}"
    )
