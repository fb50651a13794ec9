"""The texts that name teachers and data on the command line: kind:rest, with ?options or a #fragment."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from urllib.parse import unquote

from calibration.errors import UserError


def split_kind(source: str, known: Iterable[str], what: str) -> tuple[str, str]:
    """Split `kind:rest`; the rest is empty for the embedded default alone.

    Raises:
        UserError: the kind is not among the known ones, or there is no rest.
    """
    kind, _, rest = source.partition(":")
    names = sorted(known)
    if kind not in names:
        raise UserError(f"unknown {what} {source!r}: it must be kind:rest with one of {', '.join(names)}")
    if not rest and kind != "digits":
        raise UserError(f"{what} {source!r} says nothing after the kind: it must be {kind}:rest")
    return kind, rest


def counted(number: int, thing: str) -> str:
    """So many things, as in "1 image" and "2 images"."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def split_options(rest: str, allowed: Iterable[str] | None, where: str) -> tuple[str, dict[str, str]]:
    """Split `name?key=value&key=value`; percent escapes in values are decoded (%26 for an ampersand).

    `allowed` None takes every key.

    Raises:
        UserError: an option has no value, is given twice or is not allowed.
    """
    name, _, text = rest.partition("?")
    options: dict[str, str] = {}
    for part in text.split("&") if text else ():
        key, equals, value = part.partition("=")
        if not key or not equals or key in options:
            raise UserError(f"{where}: option {part!r} must be key=value, each key once, joined by &")
        options[key] = unquote(value)
    if allowed is not None:
        unknown = [key for key in options if key not in (allowed := list(allowed))]
        if unknown:
            known = ", ".join(allowed) or "none"
            raise UserError(f"{where}: unknown option {unknown[0]!r}; known: {known}")
    return name, options


def whole_number(options: dict[str, str], key: str, where: str) -> int | None:
    """Return the option as a whole number of at least 1, None where it is not given.

    Raises:
        UserError: it is something else.
    """
    if key not in options:
        return None
    if not options[key].isascii() or not options[key].isdigit() or int(options[key]) < 1:
        raise UserError(f"{where}: {key}={options[key]} must be a whole number of at least 1")
    return int(options[key])


def yes_or_no(options: dict[str, str], key: str, where: str, *, default: bool) -> bool:
    """Return the option `true` or `false` as a bool.

    Raises:
        UserError: it is something else.
    """
    value = options.get(key, str(default)).lower()
    if value not in ("true", "false"):
        raise UserError(f"{where}: {key}={options[key]} must be true or false")
    return value == "true"


def close_matches(name: str, known: Iterable[str]) -> str:
    """Return a phrase with the known names nearest to a misspelt one."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    if not close:
        close = [candidate for candidate in names if name and name.lower() in candidate.lower()][:5]
    return f"did you mean {', '.join(close)}?" if close else f"{len(names)} names are known"


def shortened(names: Iterable[str], most: int = 3) -> str:
    """Return at most `most` of the names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def batch_shape(shape: Sequence[int | str]) -> str:
    """Return the shape of a batch of outputs, each of this shape, as in "[batch, 84, 8400]"."""
    return f"[{', '.join(map(str, ('batch', *shape)))}]"
