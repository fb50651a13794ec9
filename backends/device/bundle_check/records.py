"""Frozen dataclasses to and from plain JSON values, checked against their type hints."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import math
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

_TABLES = (dict, Mapping)
# What a file's or a library's integer can be at the most: 64 bits, signed or not.
_LEAST_INTEGER, _LARGEST_INTEGER = -(2**63), 2**64 - 1
_MOST_SHOWN = 60

# Reading them takes milliseconds, and a configuration asks for them a hundred times.
_HINTS: dict[type, Mapping[str, Any]] = {}


def hints(record_type: type) -> Mapping[str, Any]:
    """Return the resolved type hints of a dataclass, `Annotated` extras included."""
    if record_type not in _HINTS:
        merged: dict[str, Any] = {}
        for base in filter(dataclasses.is_dataclass, reversed(record_type.__mro__)):
            # By the module that the class was made in, whichever module of that name `sys.modules` holds now.
            made_in = base.__init__.__globals__
            own = types.SimpleNamespace(__annotations__=inspect.get_annotations(base))
            merged |= get_type_hints(own, globalns=made_in, include_extras=True)
        _HINTS[record_type] = types.MappingProxyType(merged)
    return _HINTS[record_type]


def plain_hint(hint: Any) -> Any:
    """Return a hint without its `Annotated` wrapping."""
    return plain_hint(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def describe(hint: Any) -> str:
    """Say in words which values a hint allows: "8 or 4", "a number, or nothing"."""
    hint = plain_hint(hint)
    origin = get_origin(hint)
    if origin is Literal:
        return either(get_args(hint))
    if origin in (Union, types.UnionType):
        options = [describe(option) for option in get_args(hint) if option is not type(None)]
        return " or ".join(options) + (", or nothing" if type(None) in get_args(hint) else "")
    if origin is tuple:
        return f"a list, each of them {describe(get_args(hint)[0])}"
    if origin in _TABLES:
        return f"a table of names, each {describe(get_args(hint)[1])}"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    return words.get(hint, f"a {getattr(hint, '__name__', hint)}")


def either(options: Iterable[object]) -> str:
    """Join options in words: "a, b or c"."""
    *head, last = [str(option) for option in options]
    return f"{', '.join(head)} or {last}" if head else last


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ", did you mean X?" for the known name that is closest, or an empty text."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {close[0]}?" if close else ""


def fits(value: object, hint: Any) -> bool:
    """Say whether a value in memory is one that its type hint allows; numbers must be finite."""
    hint = plain_hint(hint)
    origin = get_origin(hint)
    if origin is Literal:
        return any(value == option and type(value) is type(option) for option in get_args(hint))
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in get_args(hint))
    if origin is tuple:
        kinds = get_args(hint)
        if not isinstance(value, tuple):
            return False
        if len(kinds) == 2 and kinds[1] is Ellipsis:
            return all(fits(item, kinds[0]) for item in value)
        return len(value) == len(kinds) and all(map(fits, value, kinds))
    if origin in _TABLES:
        _, item_hint = get_args(hint)
        return isinstance(value, Mapping) and all(
            isinstance(key, str) and fits(item, item_hint) for key, item in value.items()
        )
    if hint is float:
        if isinstance(value, int):
            return not isinstance(value, bool) and _LEAST_INTEGER <= value <= _LARGEST_INTEGER
        return isinstance(value, float) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and _LEAST_INTEGER <= value <= _LARGEST_INTEGER
    return hint in (Any, object) or isinstance(value, hint)


def check(record: Any) -> None:
    """Check every field of a dataclass against its type hint.

    Raises:
        ValueError: a field holds a value that its hint does not allow, named with both.
    """
    for name, hint in hints(type(record)).items():
        value = getattr(record, name)
        if not fits(value, hint):
            raise ValueError(f"{type(record).__name__}.{name} is {shown(value)}: must be {describe(hint)}")


def to_json(value: Any) -> Any:
    """Return dataclasses as dicts in field order, tuples as lists, paths as text."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def from_json(record_type: type[Record], value: object, *, where: str) -> Record:
    """Build a dataclass from a JSON object with its keys; those whose field has a default may be absent.

    `where`: what holds it, in the lines of errors; with a colon at its end a file, whose fields follow.

    Raises:
        ValueError: a key is unknown or missing, or a value is not one that the field's hint, or the class, allows.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{where.removesuffix(':')} is {shown(value)}: must be a JSON object")
    known = hints(record_type)
    for key in value:
        if key not in known:
            raise ValueError(f"{where} holds the unknown key {shown(key)}{nearest(str(key), known)}")
    arguments = {key: value_from_json(item, known[key], where=_below(where, key)) for key, item in value.items()}
    for field in dataclasses.fields(record_type):  # type: ignore[arg-type]  # a dataclass by contract
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in arguments:
            raise ValueError(f"{where} lacks the key {field.name!r}")
    try:
        return record_type(**arguments)
    except ValueError as error:
        raise ValueError(f"{where.removesuffix(':')}: {error}") from error


def known_part(record_type: type[Record], value: object, *, where: str) -> Record:
    """The same of an object that says more than the dataclass has fields for."""
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if key in hints(record_type)}
    return from_json(record_type, value, where=where)


def _below(where: str, key: str) -> str:
    return f"{where} {key}" if where.endswith(":") else f"{where}.{key}"


def shown(value: object) -> str:
    """A value of foreign origin as one short line."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


def value_from_json(value: object, hint: Any, *, where: str) -> Any:
    """Return a JSON value as the type that a hint names: lists become tuples, one text alone such a list, text a path.

    Raises:
        ValueError: the value is not one that the hint allows.
    """
    hint = plain_hint(hint)
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        options = get_args(hint)
        if value is None and type(None) in options:
            return None
        rest = [option for option in options if option is not type(None)]
        if len(rest) == 1:
            return value_from_json(value, rest[0], where=where)
        for option in rest:
            with contextlib.suppress(ValueError):
                return value_from_json(value, option, where=where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_json(hint, value, where=where)
    converted: object = value
    if origin is tuple and isinstance(value, list):
        kinds = get_args(hint)
        item_hints = [kinds[0]] * len(value) if kinds[-1] is Ellipsis else list(kinds)
        if len(item_hints) == len(value):
            converted = tuple(
                value_from_json(item, item_hint, where=f"{where}[{index}]")
                for index, (item, item_hint) in enumerate(zip(value, item_hints, strict=True))
            )
    elif origin in _TABLES and isinstance(value, dict):
        _, item_hint = get_args(hint)
        converted = {key: value_from_json(item, item_hint, where=_below(where, key)) for key, item in value.items()}
    elif origin is tuple and isinstance(value, str) and fits((value,), hint):
        converted = (value,)
    elif hint is Path and isinstance(value, str):
        converted = Path(value)
    if not fits(converted, hint):
        raise ValueError(f"{where} is {shown(value)}: must be {describe(hint)}")
    return converted
