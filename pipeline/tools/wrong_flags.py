"""What a command line got wrong, in one line."""

from __future__ import annotations

from typing import Any, get_args

from cyclopts import CoercionError, CycloptsError, UnknownOptionError, UnusedCliTokensError

from backends.device.bundle_check.records import describe

_KNOWN_ELSEWHERE = {
    "--letterbox": "--fit letterbox",
    "--stretch": "--fit stretch",
    "--epochs": "--steps",
    "--lr": "--learning-rate",
    "--model": "--teacher",
    "--checkpoint": "--weights",
    "--imgsz": "--image-size",
    "--dataset": "--data",
}
"""What other tools call a flag, which no spelling leads to -> the flag here."""


def takes_number(hint: Any) -> bool:
    """Whether a flag of this type takes numbers, among other things perhaps."""
    return bool({int, float}.intersection((hint, *get_args(hint))))


def number_words(hint: Any) -> str:
    """What such a flag takes, in words; None, which nobody types, left out."""
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    return " or ".join(map(describe, kinds))


def mistake_of(error: CycloptsError) -> str:
    """The line, with the flag that was meant where that is known."""
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f'unexpected argument "{error.unused_tokens[0]}": options start with --, see faqd --help'
    if isinstance(error, UnknownOptionError) and (known := _KNOWN_ELSEWHERE.get(error.token.keyword or "")):
        return f"unknown option: {error.token.keyword}. Did you mean {known}?"
    if isinstance(error, CoercionError) and error.token and error.token.keyword and takes_number(error.target_type):
        where = "" if error.token.source == "cli" else f"--config {error.token.source}: "
        flag = f"--{error.token.keyword.strip('[]-')}"
        return f"{where}{flag} {error.token.value}: must be {number_words(error.target_type)}"
    error.verbose = False
    line = " ".join(str(error).split())
    return line[:1].lower() + line[1:]
