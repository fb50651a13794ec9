"""Everything that is printed goes through here: names of files, layers and classes are shown, never obeyed."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from typing import Final, final

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

_PICTURES, _UNKNOWN = 0x2400, "\ufffd"
_LAYOUT = {ord("\n"): "\n", ord("\t"): "\t"}
# Control characters have pictures of their own, ␛ for the escape that begins terminals' commands. What turns the
# direction of text around, ends a line elsewhere than it seems, or is no character at all has none.
_SHOWN: Final[dict[int, str]] = {
    **{code: chr(_PICTURES + code) for code in range(0x20)},
    0x7F: chr(_PICTURES + 0x21),
    **dict.fromkeys(
        (*range(0x80, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)), "\ufffd"
    ),
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}


def plain(text: str) -> str:
    """Return foreign text as one line, as long as it was, that moves no cursor and reads in one direction."""
    return text.translate(_SHOWN)


@final
class PlainConsole(Console):
    """A console on which text is text: no markup, no emoji between colons, no commands to the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, the control characters of text made visible; lines and tabs stay."""
        if isinstance(renderable, str):
            renderable = renderable.translate(_SHOWN | _LAYOUT)
        elif isinstance(renderable, Text):
            shown = renderable.plain.translate(_SHOWN | _LAYOUT)
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
