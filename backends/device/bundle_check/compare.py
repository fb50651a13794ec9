"""An output of two executions side by side, by the same measure and limits as the gates of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .manifest import OutputEntry
from .same_answer import answers, equal_share, largest_difference, limit_on, value_tally

WORDS = {"classes": "same argmax", "labels": "same yes or no", "values": "values alike, R2"}
"""What an output holds -> what is counted of it."""


def answers_of(values: NDArray[Any], entry: OutputEntry) -> NDArray[np.int64]:
    """The decisions of an output that holds classes (along their axis) or labels (above their threshold)."""
    return answers(values, holds=entry.holds, axis=entry.class_axis, threshold=entry.threshold)


def same_share(output: NDArray[Any], expected: NDArray[Any], entry: OutputEntry) -> float:
    """How far an output gives the expected answers, 0 to 1: the share of equal decisions, or R2 of values."""
    if entry.holds != "values":
        return float((answers_of(output, entry) == answers_of(expected, entry)).mean())
    return _explained(output, expected, entry)


def _explained(output: NDArray[Any], expected: NDArray[Any], entry: OutputEntry) -> float:
    """R2 of an output's numbers, whatever they decide."""
    embedding = entry.embedding or entry.holds != "values"
    tally = value_tally(expected.shape[1:], embedding=embedding, negligible=entry.negligible)
    tally.spread.add(expected)
    tally.add(expected, output)
    return tally.fraction()


def cosine_similarity(output: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine of the angle between the vectors of each image [B]: 1 where they are equal, 0 where one alone is 0."""
    one, two = (values.reshape(len(values), -1).astype(np.float64) for values in (expected, output))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    usable = np.isfinite(lengths) & (lengths > 0)
    cosine = np.where(usable, (one * two).sum(1) / np.where(usable, lengths, 1), 0.0)
    return np.where((one == two).all(1), 1.0, np.clip(cosine, -1, 1))


def compared(
    output: NDArray[Any], expected: NDArray[Any], entry: OutputEntry, least: float, *, exact: bool = False
) -> dict[str, Any]:
    """One output against its golden values, as a report has it; `least`: the share from which on it passes.

    `exact`: every number must be equal to the bit as well.
    """
    share, holds = same_share(output, expected, entry), entry.holds
    count = 1 if holds == "values" else int(answers_of(expected, entry).size)
    same = round(share * count)
    if holds != "values" and share < least:
        least = limit_on(least, same=same, total=count, numbers=_explained(output, expected, entry))
    equal = equal_share(output, expected)
    passed = share >= least and (equal == 1 or not exact)
    cosine = cosine_similarity(output, expected) if entry.embedding else None
    return {
        "holds": holds,
        "share": share,
        "same": int(passed) if holds == "values" else same,
        "answers": count,
        "equal": equal,
        "exact": exact,
        "largest_difference": largest_difference(output, expected),
        "least": least,
        "passed": passed,
    } | ({} if cosine is None else {"cosine": float(cosine.mean()), "least_cosine": float(cosine.min())})


def golden_line(who: str, name: str, golden: dict[str, Any]) -> str:
    """A comparison as the line that a user reads."""
    if golden["holds"] == "values":
        said = f"{WORDS['values']} {100 * golden['share']:.4g} %"
        if "cosine" in golden:
            said += f", cosine {100 * golden['cosine']:.4g} % (least {100 * golden['least_cosine']:.4g} %)"
    else:
        said = f"{WORDS[golden['holds']]} {golden['same']} of {golden['answers']}"
    words = "" if golden["passed"] else f": FAIL, at least {100 * golden['least']:g} % must be"
    if not golden["passed"] and golden["exact"]:
        words = ": FAIL, every number must be equal to the bit"
    return (
        f"{who:<18} {name}: {said}, equal to the bit {100 * golden['equal']:.2f} %, largest difference"
        f" {golden['largest_difference']:.3g}{words}"
    )
