"""How a command ends that could not do its work: one line and an exit status for what is no bug of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from calibration.errors import UserError, is_out_of_memory, out_of_memory_line
from pipeline.tools.atomic import NO_ROOM, UNUSABLE
from pipeline.tools.streams import PIPE_CLOSED, give_up_results

USER_MISTAKE: Final = 2
LONGEST_NAME: Final = 200
"""Characters of a path that a line shows: some are refused for their length."""


def ending_of(error: Exception, say: Callable[[str], None]) -> int | None:
    """The exit status that an exception ends a command with, once its line was said; None for a bug of ours.

    Who reads the results and wants no more of them needs no line.
    """
    if isinstance(error, BrokenPipeError):
        give_up_results()
        return PIPE_CLOSED
    line = _line_of(error)
    if line is None:
        return None
    say(f"error: {line}")
    return USER_MISTAKE


def _line_of(error: Exception) -> str | None:
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        return out_of_memory_line(error)
    if isinstance(error, OSError) and error.errno in UNUSABLE and error.filename is not None:
        return f"cannot use {str(error.filename)[:LONGEST_NAME]}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        if error.filename is None:
            give_up_results()
        return f"cannot write {error.filename or 'the output'}: {error.strerror}: make room there"
    return None
