"""Configuration files: TOML whose keys are the flags without their dashes."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from backends.device.bundle_check import records
from calibration.errors import UserError
from pipeline.config import RunConfig, flags
from pipeline.tools.regular_file import irregular, is_pipe, read_pipe

LARGEST_FILE = 1 << 20
"""Bytes; every flag with its longest sensible value fits a hundred times."""

_COMMAND_LINE = ("config", "recipe", "verbose", "quiet", "help")
_ON_ONE_LEVEL = "all keys stand on one level, without tables"


def read_toml(path: Path) -> dict[str, Any]:
    """Read the settings of a run from a TOML file and refuse keys that are no flag and values that are none of theirs.

    Text is read as if it had been typed: `bits = "4"` is `--bits 4`.

    Raises:
        UserError: the file cannot be read, is not TOML, or holds an unknown key or a value of another type.
    """
    where = f"--config {path}"
    try:
        content = _content(path, where)
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or error}") from error
    if len(content) > LARGEST_FILE:
        raise UserError(f"{where} has more than {LARGEST_FILE} bytes: is it a file of settings?")
    try:
        settings = tomllib.loads(content.decode("utf-8-sig"))  # editors on Windows begin files with a mark
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is no UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except ValueError as error:  # TOMLDecodeError among them, and numbers of thousands of digits
        raise UserError(f"{where} is not TOML: {error}") from error
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply: {_ON_ONE_LEVEL}") from error
    table = flags.flags(RunConfig)
    for key, value in settings.items():
        _check_no_table(key, value, table, where)
        _check_key(key, table, where)
        _check_type(key, value, table[key].hint, where)
    return settings


def _content(path: Path, where: str) -> bytes:
    """A byte more than is allowed at the most; of a pipe too, as a shell makes one of `--config <(command)`."""
    if is_pipe(path):
        return read_pipe(path, most=LARGEST_FILE + 1, where=where)
    if (wrong := irregular(path)) is not None:
        raise UserError(f"{where} {wrong}")
    with path.open("rb") as file:
        return file.read(LARGEST_FILE + 1)


def _check_no_table(key: str, value: object, table: Mapping[str, flags.Flag], where: str) -> None:
    inner = value if isinstance(value, dict) else next((v for v in _items(value) if isinstance(v, dict)), None)
    if inner is None:
        return
    known = next((pair for pair in _pairs(inner) if pair[0] in table), None)
    if known is None and key in table:
        raise UserError(f"{where}: {key} is a table: write {key} = VALUE, {_ON_ONE_LEVEL}")
    example = "bits = 4" if known is None else f"{known[0]} = {_shown(known[1])}"
    raise UserError(f"{where}: [{key}] is a table: {_ON_ONE_LEVEL}: write {example} without [{key}] above it")


def _check_key(key: str, table: Mapping[str, flags.Flag], where: str) -> None:
    if key in table:
        return
    if (typed := key.strip("-")) in _COMMAND_LINE:
        raise UserError(f"{where}: {key} belongs on the command line: --{typed}")
    positive = typed.removeprefix("no-")
    if positive != typed and positive in table and table[positive].hint is bool:
        raise UserError(f"{where}: unknown key {key!r}: write {positive} = false")
    plain = typed.replace("_", "-").lower()
    hint = f", did you mean {plain}?" if plain in table else records.nearest(key, table)
    raise UserError(
        f"{where}: unknown key {key!r}{hint or '; the keys are the flags of `faqd run --help` without their dashes'}"
    )


def _check_type(key: str, value: object, hint: Any, where: str) -> None:
    """Refuse a value that the flag's type does not allow; text that could be typed for it is left to the flag."""
    options = [option for option in (get_args(hint) or (hint,)) if get_origin(option) is tuple] or (
        [hint] if get_origin(hint) is tuple else []
    )
    if options and isinstance(value, list):
        (item, *_) = get_args(options[0])
        fitting = all(records.fits(each, item) or (isinstance(each, str) and item is str) for each in value)
    elif options:
        fitting = isinstance(value, str) or records.fits(value, get_args(options[0])[0])
    else:
        fitting = isinstance(value, str) or records.fits(value, hint)
    if not fitting:
        raise UserError(f"{where}: {key} is {_shown(value)}: must be {records.describe(hint)}")


def _items(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _pairs(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values of a table and of those in it."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _pairs(value)
        else:
            yield key, value


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def to_toml(config: RunConfig) -> str:
    """Return a configuration as TOML text with each key's help; unset keys stand there as comments."""
    lines = ["# Configuration of faqd: use it with `faqd run --config FILE`; flags given beside it win."]
    group = ""
    settings = config.to_json()
    for key, flag in flags.flags(RunConfig).items():
        if flag.group != group:
            group = flag.group
            lines += ["", f"# --- {group}"]
        value = settings[key]
        lines.append(f"# {flag.help}")
        lines.append(f"# {key} =" if value is None else f"{key} = {_toml_value(value)}")
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    # JSON's text, numbers and booleans are TOML's, except that TOML wants the delete character escaped.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")
