"""Everything that is printed goes through here: names of files, layers and classes are shown, never obeyed."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable
from typing import Any, Final, final

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from calibration.errors import SHOWN, plain

__all__ = ["PlainConsole", "console", "json_text", "plain", "take_any_text", "text_of"]

_LAYOUT = {ord("\n"): "\n", ord("\t"): "\t"}
_ESCAPED: Final = {code: f"\\u{code:04x}" for code in SHOWN if code >= 0x7F}


def json_text(tree: Any, *, indent: int) -> str:
    """Return JSON text of UTF-8, in which what `plain` would show otherwise is escaped: a file, too, may be printed."""
    text = json.dumps(tree, indent=indent, allow_nan=False, ensure_ascii=False)
    return text.translate(_ESCAPED) + "\n"


@final
class PlainConsole(Console):
    """A console on which text is text: no markup, no emoji between colons, no commands to the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, the control characters of text made visible; lines and tabs stay."""
        if isinstance(renderable, str):
            renderable = renderable.translate(SHOWN | _LAYOUT)
        elif isinstance(renderable, Text):
            shown = renderable.plain.translate(SHOWN | _LAYOUT)
            if shown != renderable.plain:
                renderable = renderable.copy()
                renderable.plain = shown  # as long as it was: styles stay in their places
        return super().render(renderable, options)

    def on_broken_pipe(self) -> None:
        """Leave it to who prints what a closed pipe means: rich would end the process with the status of a gate."""
        raise  # rich calls this where it handles the BrokenPipeError


def console(*, stderr: bool = False, width: int | None = None, wrapped: bool = True) -> PlainConsole:
    """Return a console for standard output or standard error; unless `wrapped`, long lines are left to the terminal."""
    return PlainConsole(stderr=stderr, width=width, soft_wrap=not wrapped, markup=False, emoji=False, highlight=False)


def text_of(renderable: RenderableType, *, width: int = 100) -> str:
    """Return what a console of so many columns would show, as plain text without an empty first line."""
    file = io.StringIO()
    console = PlainConsole(file=file, width=width, no_color=True, markup=False, emoji=False, highlight=False)
    console.print(renderable)
    return "\n".join(line.rstrip() for line in file.getvalue().strip("\n").splitlines())


def take_any_text() -> None:
    """Let standard output and error escape what their encoding lacks, instead of failing in the middle of a line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
