"""The templates of pages and cards, which escape all that they are given."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.tools.printing import plain


def rendered(template: str, **values: Any) -> str:
    """Return a template of this folder with its values."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: object) -> object:
    """A value of the page; names of files and layers may hold what turns the direction of text around."""
    return plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value
