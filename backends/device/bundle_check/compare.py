"""An output of two executions side by side, by the same limits as the gates of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# What float64 sums leave of a share that is 1.
_ROUNDING = 1e-12
# A spread below a millionth of the numbers themselves is the rounding of float32: no variance.
_NO_VARIANCE = 1e-12
# As a run tells numbers of several kinds in one tensor apart (pipeline/networks/outputs/value_tally.py).
_APART, _MOST_ENTRIES = 30.0, 512

WORDS = {"classes": "same argmax", "labels": "same yes or no", "values": "values alike, R2"}
"""What an output holds -> what is counted of it."""


def answers_of(values: NDArray[Any], entry: dict[str, Any]) -> NDArray[Any]:
    """The decisions of an output that holds classes (along their axis) or labels (above their threshold)."""
    if entry["holds"] == "classes":
        return np.asarray(values.argmax(entry.get("class_axis", 1)))
    return np.asarray(values > entry.get("threshold", 0.0))


def same_share(output: NDArray[Any], expected: NDArray[Any], entry: dict[str, Any]) -> float:
    """How far an output gives the expected answers, 0 to 1: the share of equal decisions, or R2 of values.

    R2 is the share that is explained of the expected values' variance between images, each number's from its own mean;
    of values that the images do not move (and of one image), of their variance among each other, of equal ones of their
    power; of a tensor with numbers of several kinds, such as coordinates beside scores, that of the kind of which least
    is.
    """
    if entry["holds"] != "values":
        return float((answers_of(output, entry) == answers_of(expected, entry)).mean())
    exact = expected.astype(np.float64)
    errors = np.square(output - exact)
    if not errors.any():
        return 1.0
    axis = _axis_of_kinds(exact.shape[1:], entry)
    others = None if axis is None else tuple(place for place in range(exact.ndim) if place != axis)
    wrong, squares, sums, own = (
        np.atleast_1d(values.sum(others))
        for values in (errors, np.square(exact), exact, np.square(exact - exact.mean(0)))
    )
    moved = bool((own > _NO_VARIANCE * squares).any())
    scale, power = float(own.sum()), float(squares.sum())
    if not moved:
        own = squares - sums**2 / (exact.size // len(sums))
        variance = power - float(sums.sum()) ** 2 / exact.size
        scale = variance if variance > _NO_VARIANCE * power else power
    shares = [_explained(float(wrong.sum()), scale)]
    for places in _kinds(own, squares):
        shares.append(_explained(float(wrong[places].sum()), float(own[places].sum())))
    return min(shares)


def _explained(error: float, scale: float) -> float:
    return 1.0 if error == 0 else max(0.0, 1 - error / scale) if scale > 0 and np.isfinite(error) else 0.0


def _axis_of_kinds(shape: tuple[int, ...], entry: dict[str, Any]) -> int | None:
    """The axis along which numbers of several kinds may lie, as a run has it; none in an embedding."""
    if not shape or entry.get("embedding"):
        return None
    axis = 1 if shape[0] <= shape[-1] or len(shape) == 1 else len(shape)
    return axis if 2 <= shape[axis - 1] <= _MOST_ENTRIES else None


def _kinds(own: NDArray[np.float64], squares: NDArray[np.float64]) -> list[NDArray[np.intp]]:
    """The places of each kind of number where there are several, by the squared deviations of each place."""
    order = np.array([place for place in np.argsort(own) if own[place] > _NO_VARIANCE * squares[place]], np.intp)
    starts = [i for i in range(1, len(order)) if own[order[i]] > _APART**2 * own[order[i - 1]]]
    return np.split(order, starts) if starts else []


def cosine_similarity(output: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine of the angle between the vectors of each image [B]: 1 where they are equal, 0 where one alone is 0."""
    one, two = (values.reshape(len(values), -1).astype(np.float64) for values in (expected, output))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    usable = np.isfinite(lengths) & (lengths > 0)
    cosine = np.where(usable, (one * two).sum(1) / np.where(usable, lengths, 1), 0.0)
    return np.where((one == two).all(1), 1.0, np.clip(cosine, -1, 1))


def compared(output: NDArray[Any], expected: NDArray[Any], entry: dict[str, Any], least: float) -> dict[str, Any]:
    """One output against its golden values, as a report has it; `least`: the share from which on it passes."""
    share = same_share(output, expected, entry)
    count = 1 if entry["holds"] == "values" else int(answers_of(expected, entry).size)
    passed = share >= least - _ROUNDING
    cosine = cosine_similarity(output, expected) if entry.get("embedding") else None
    return {
        "holds": entry["holds"],
        "share": share,
        "same": int(passed) if entry["holds"] == "values" else round(share * count),
        "answers": count,
        "equal": float((output == expected).mean()),
        "largest_difference": float(np.abs(output.astype(np.float64) - expected).max()),
        "least": least,
        "passed": passed,
    } | ({} if cosine is None else {"cosine": float(cosine.mean()), "least_cosine": float(cosine.min())})


def golden_line(who: str, name: str, found: dict[str, Any]) -> str:
    """A comparison as the line that a user reads."""
    if found["holds"] == "values":
        answers = f"{WORDS['values']} {100 * found['share']:.4g} %"
        if "cosine" in found:
            answers += f", cosine {100 * found['cosine']:.4g} % (least {100 * found['least_cosine']:.4g} %)"
    else:
        answers = f"{WORDS[found['holds']]} {found['same']} of {found['answers']}"
    words = "" if found["passed"] else f": FAIL, at least {100 * found['least']:g} % must be"
    return (
        f"{who:<18} {name}: {answers}, equal to the bit {100 * found['equal']:.2f} %, largest difference"
        f" {found['largest_difference']:.3g}{words}"
    )
