"""Configuration files: TOML whose keys are the flags without their dashes."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from calibration.errors import UserError
from pipeline import flags
from pipeline.config import RunConfig


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a run from a TOML file and refuse keys that are no flag.

    Raises:
        UserError: the file cannot be read, is not TOML, or holds an unknown key.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"--config {path} is not TOML: {error}") from error
    flags.check_keys(RunConfig, settings, where=f"--config {path}")
    for key, value in settings.items():
        if isinstance(value, dict):
            raise UserError(f"--config {path}: {key} is a table: write {key} = VALUE, all keys on one level")
    return settings


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
