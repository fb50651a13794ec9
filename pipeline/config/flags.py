"""The names that users type: one table from flag to field, derived from the configuration's dataclasses."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_args, get_origin

from cyclopts import ArgumentCollection, Parameter, Token

from backends.device.bundle_check import records
from calibration.errors import UserError
from pipeline.tools.wrong_flags import number_words

Configuration = TypeVar("Configuration")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flag:
    """One field of one group of a configuration tree, as its user sees it."""

    group: str
    """Field of the tree that holds the group; empty for a configuration without groups."""
    field: str
    key: str
    """The flag without its dashes, which is also the key in configuration files."""
    hint: Any
    help: str


_FLAGS: dict[type, Mapping[str, Flag]] = {}


def flags(configuration_type: type) -> Mapping[str, Flag]:
    """Return every flag of a configuration by its key, in the order of the fields."""
    if configuration_type not in _FLAGS:
        _FLAGS[configuration_type] = MappingProxyType(_flags(configuration_type))
    return _FLAGS[configuration_type]


def _flags(configuration_type: type) -> dict[str, Flag]:
    table: dict[str, Flag] = {}
    for name, hint in records.hints(configuration_type).items():
        inner = records.plain_hint(hint)
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            for key, flag in flags(inner).items():
                table[key] = dataclasses.replace(flag, group=name)
        else:
            parameter = _parameter(hint)
            # cyclopts keeps every name as a tuple, which its own type does not say.
            names = tuple(parameter.name or ())
            key = names[0].removeprefix("--") if names else name.replace("_", "-")
            table[key] = Flag(group="", field=name, key=key, hint=inner, help=parameter.help or "")
    return table


def check_fields(configuration: Any) -> None:
    """Check each field of a group, which is being made, against its type hint, which holds its choices too.

    From Python a path may be text, and a list may be a Python list, or one text alone where it is of texts.

    Raises:
        UserError: a field holds a value that is not allowed; the line names the flag.
    """
    for flag in flags(type(configuration)).values():
        value = getattr(configuration, flag.field)
        if (plain := _from_python(value, flag.hint)) is not value:
            value = plain
            object.__setattr__(configuration, flag.field, value)  # frozen, and not yet seen by anybody
        if not records.fits(value, flag.hint):
            number = _number(value) if isinstance(value, str) else None
            if number is not None and records.fits(number, flag.hint):
                raise UserError(f"--{flag.key} {value!r} is text: must be a number, such as {value}")
            raise UserError(f"--{flag.key} {as_typed(value)}: must be {records.describe(flag.hint)}")
        if any("\0" in text for text in _texts_of(value)):
            raise UserError(f"--{flag.key} {as_typed(value)}: holds a character NUL, which no name can hold")


def _texts_of(value: Any) -> Iterator[str]:
    """All text in the value of a field."""
    if isinstance(value, str | Path):
        yield str(value)
    elif isinstance(value, tuple | frozenset):
        for one in value:
            yield from _texts_of(one)


def _from_python(value: Any, hint: Any) -> Any:
    """The value as its field has it: text as a path, a list or one text alone as a tuple; others as they are."""
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind is not type(None)]
    if Path in kinds and str not in kinds and isinstance(value, str):
        return Path(value)
    lists = [kind for kind in (hint, *kinds) if get_origin(kind) is tuple]
    if lists and isinstance(value, list):
        return tuple(value)
    if lists and isinstance(value, str) and get_args(lists[0])[0] is str:
        return (value,)
    return value


def _number(text: str) -> int | float | None:
    """The number that a text is; None where it is none."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return None


def check_groups(configuration: Any) -> None:
    """Check that each group of a configuration tree is of its class.

    Raises:
        UserError: one is something else, such as the value of one of its fields; the line names field and class.
    """
    for name, hint in records.hints(type(configuration)).items():
        value, group = getattr(configuration, name), records.plain_hint(hint)
        if not isinstance(value, group):
            fields = ", ".join(f"{flag.field}=" for flag in list(flags(group).values())[:3])
            tree = type(configuration).__name__
            raise UserError(f"{tree}({name}={value!r}): must be a {group.__name__}, made with {fields}...")


def check_at_least(configuration: Any, **limits: float) -> None:
    """Check that the named number fields are at least their limits; None always passes.

    Raises:
        UserError: a number is below its limit; the line names the flag.
    """
    by_field = {flag.field: flag for flag in flags(type(configuration)).values()}
    for field, limit in limits.items():
        value = getattr(configuration, field)
        if value is not None and value < limit:
            raise UserError(f"--{by_field[field].key} {value}: must be {limit} or more")


def check_above_zero(configuration: Any, *fields: str) -> None:
    """Check that the named number fields are greater than zero; None always passes.

    Raises:
        UserError: a number is zero or negative; the line names the flag.
    """
    by_field = {flag.field: flag for flag in flags(type(configuration)).values()}
    for field in fields:
        value = getattr(configuration, field)
        if value is not None and value <= 0:
            raise UserError(f"--{by_field[field].key} {value}: must be greater than 0")


def settings_of(configuration: Any) -> dict[str, Any]:
    """Return a configuration as one flat JSON object: flag without dashes -> value, None where unset."""
    return {
        key: records.to_json(getattr(getattr(configuration, flag.group) if flag.group else configuration, flag.field))
        for key, flag in flags(type(configuration)).items()
    }


def configuration_of(
    configuration_type: type[Configuration], settings: Mapping[str, Any], *, where: str
) -> Configuration:
    """Build a configuration from a flat object as `settings_of` writes it; absent keys take their defaults.

    Raises:
        UserError: a key is unknown or a value is not allowed; the line names `where`.
    """
    check_keys(configuration_type, settings, where=where)
    table = flags(configuration_type)
    groups: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        flag = table[key]
        try:
            converted = records.value_from_json(value, flag.hint, where=key)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
        groups.setdefault(flag.group, {})[flag.field] = converted
    own = groups.pop("", {})
    hints = records.hints(configuration_type)
    built = {group: records.plain_hint(hints[group])(**fields) for group, fields in groups.items()}
    return configuration_type(**own, **built)


def check_keys(configuration_type: type, settings: Mapping[str, Any], *, where: str) -> None:
    """Check that every key of a flat object is a flag of the configuration.

    Raises:
        UserError: a key is unknown; the line holds the nearest known one.
    """
    table = flags(configuration_type)
    for key in settings:
        if key not in table:
            hint = records.nearest(key, table) or "; the keys are the flags of `faqd run --help` without their dashes"
            raise UserError(f"{where}: unknown key {key!r}{hint}")


def as_typed(value: object) -> str:
    """Return a value as the user would have typed it."""
    if isinstance(value, tuple | list):
        return ",".join(map(as_typed, value))
    return str(value) if isinstance(value, str | int | float | Path) else repr(value)


def check_whole_numbers(arguments: ArgumentCollection) -> None:
    """Check that what was typed for whole numbers is whole: the command line's own reading rounds 1.9 to 2.

    Raises:
        UserError: one is not; the line names the flag.
    """
    for argument in arguments:
        if int not in (argument.hint, *get_args(argument.hint)):
            continue
        for token in argument.tokens:
            if re.fullmatch(r"[+-]?\d+\.\d*", token.value):
                raise UserError(f"{argument.name} {token.value}: must be {number_words(argument.hint)}")


def each_word(kind: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    """Convert a flag that may be given several times to a list with one entry for each."""
    return tuple(token.value for token in tokens)


def split_text(kind: Any, tokens: Sequence[Token]) -> tuple[str, ...]:
    """Convert the words after a flag to a list: "a,b c" is a, b and c."""
    return tuple(piece for token in tokens for piece in token.value.split(",") if piece)


def split_numbers(kind: Any, tokens: Sequence[Token]) -> tuple[float, ...]:
    """Convert the words after a flag to a list of numbers.

    Raises:
        UserError: a word is no number.
    """
    pieces = split_text(kind, tokens)
    try:
        return tuple(map(float, pieces))
    except ValueError as error:
        raise UserError(f"{tokens[0].keyword} {','.join(pieces)}: must be numbers, such as 0.5,0.5,0.5") from error


def split_whole_numbers(kind: Any, tokens: Sequence[Token]) -> tuple[int, ...]:
    """Convert the words after a flag to a list of whole numbers.

    Raises:
        UserError: a word is no whole number.
    """
    pieces = split_text(kind, tokens)
    try:
        return tuple(map(int, pieces))
    except ValueError as error:
        raise UserError(f"{tokens[0].keyword} {','.join(pieces)}: must be whole numbers, such as 1,8,16") from error


def _parameter(hint: Any) -> Parameter:
    extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((extra for extra in extras if isinstance(extra, Parameter)), Parameter())
