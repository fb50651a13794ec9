"""Operators that torch has under two names, which an exported graph keeps as they were written: one name for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

aten = torch.ops.aten

#: The name that the tables know -> other names for it.
_NAMES: Mapping[str, str] = {
    "abs": "absolute",
    "atan": "arctan",
    "cat": "concat concatenate",
    "clamp": "clip",
    "div": "divide true_divide",
    "erf": "special_erf",
    "exp2": "special_exp2",
    "expm1": "special_expm1",
    "ge": "greater_equal",
    "gt": "greater",
    "le": "less_equal",
    "log1p": "special_log1p",
    "logsumexp": "special_logsumexp",
    "lt": "less",
    "matmul": "linalg_matmul",
    "mul": "multiply",
    "ne": "not_equal",
    "neg": "negative",
    "round": "special_round",
    "sigmoid": "special_expit",
    "sign": "sgn",
    "softmax": "special_softmax",
    "sub": "subtract",
    "trunc": "fix",
}


def _taken(operator: Any) -> list[tuple[str, bool]]:
    """The types of an operator's arguments, and which are given by name alone."""
    return [(str(argument.type), argument.kwarg_only) for argument in operator._schema.arguments]


def _pairs() -> dict[Any, Any]:
    pairs: dict[Any, Any] = {}
    for name, words in _NAMES.items():
        known = getattr(aten, name)
        for packet in (getattr(aten, word) for word in words.split()):
            for overload in (getattr(packet, each) for each in packet.overloads()):
                same = [getattr(known, each) for each in known.overloads()]
                same = [each for each in same if _taken(each) == _taken(overload) and not each._schema.is_mutable]
                if same:
                    pairs[overload] = same[0]
    return pairs


#: Operator -> the one that computes the same and takes the same arguments in the same places.
ALIASES: Mapping[Any, Any] = _pairs()
