"""An output of two executions side by side, by the same measure and limits as the gates of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .same_answer import answers, largest_difference, limit_on, value_tally

WORDS = {"classes": "same argmax", "labels": "same yes or no", "values": "values alike, R2"}
"""What an output holds -> what is counted of it."""


def answers_of(values: NDArray[Any], entry: dict[str, Any]) -> NDArray[np.int64]:
    """The decisions of an output that holds classes (along their axis) or labels (above their threshold)."""
    axis, threshold = entry.get("class_axis", 1), entry.get("threshold", 0.0)
    return answers(values, holds=entry["holds"], axis=axis, threshold=threshold)


def same_share(output: NDArray[Any], expected: NDArray[Any], entry: dict[str, Any]) -> float:
    """How far an output gives the expected answers, 0 to 1: the share of equal decisions, or R2 of values."""
    if entry["holds"] != "values":
        return float((answers_of(output, entry) == answers_of(expected, entry)).mean())
    return _explained(output, expected, entry)


def _explained(output: NDArray[Any], expected: NDArray[Any], entry: dict[str, Any]) -> float:
    """R2 of an output's numbers, whatever they decide."""
    embedding = bool(entry.get("embedding")) or entry["holds"] != "values"
    tally = value_tally(expected.shape[1:], embedding=embedding, negligible=entry.get("negligible", 0.0))
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


def compared(output: NDArray[Any], expected: NDArray[Any], entry: dict[str, Any], least: float) -> dict[str, Any]:
    """One output against its golden values, as a report has it; `least`: the share from which on it passes."""
    share, holds = same_share(output, expected, entry), entry["holds"]
    count = 1 if holds == "values" else int(answers_of(expected, entry).size)
    same = round(share * count)
    if holds != "values" and share < least:
        least = limit_on(least, same=same, total=count, numbers=_explained(output, expected, entry))
    passed = share >= least
    cosine = cosine_similarity(output, expected) if entry.get("embedding") else None
    return {
        "holds": holds,
        "share": share,
        "same": int(passed) if holds == "values" else same,
        "answers": count,
        "equal": float((output == expected).mean()),
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
    return (
        f"{who:<18} {name}: {said}, equal to the bit {100 * golden['equal']:.2f} %, largest difference"
        f" {golden['largest_difference']:.3g}{words}"
    )
