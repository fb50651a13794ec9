"""How a command ends that could not do its work: one line and an exit status for what is no bug of ours.

And how a user's code that would end the process, or put another program in its place, is kept from doing so unsaid.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NoReturn

from calibration.errors import UserError, is_out_of_memory, out_of_memory_line, plain
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


#: Python's own, whatever is in their places while a user's code may run; all that `os.exec...` ends in are two of them.
_LEAVES: Final[dict[str, Callable[..., Any]]] = {
    name: getattr(os, name) for name in ("_exit", "abort", "execv", "execve", "kill")
}
_PROGRAM: Final = "puts another program in the place of this one"
_CLEAN: Final = "let it raise an exception, or return"
_BESIDE: Final = "run it beside this one (subprocess.run), or before faqd begins"


@contextmanager
def leaving_is_a_mistake() -> Iterator[None]:
    """Inside, Python code that ends this process, or replaces it, gets one line and the status of a user's mistake.

    Its caller's status, 0 perhaps, would say that the work was done. Processes that were forked end as they like, and
    C code that ends the process itself is asked by nobody.
    """

    def end(line: str) -> NoReturn:
        with suppress(OSError):
            os.write(2, f"{plain(f'error: {line}')}\n".encode(errors="replace"))
        _LEAVES["_exit"](USER_MISTAKE)
        raise AssertionError  # the process has ended

    with _instead_of_leaving(end, every_thread=True):
        yield


@contextmanager
def leaving_raises() -> Iterator[None]:
    """Inside, what would end or replace the process raises UserError where this thread calls it.

    For the process of somebody else's program or notebook; its other threads may have reasons of their own.
    """

    def refuse(line: str) -> NoReturn:
        raise UserError(line)

    with _instead_of_leaving(refuse, every_thread=False):
        yield


@contextmanager
def _instead_of_leaving(end: Callable[[str], NoReturn], *, every_thread: bool) -> Iterator[None]:
    process, thread, watching = os.getpid(), threading.get_ident(), True

    def guarded(name: str) -> Callable[..., Any]:
        def called(*arguments: Any, **keywords: Any) -> Any:
            # Who took the function out of `os` inside the block may keep it for longer.
            ours = watching and os.getpid() == process and (every_thread or threading.get_ident() == thread)
            if ours and (name != "kill" or arguments == (process, getattr(signal, "SIGKILL", None))):
                end(_leaving_line(name, arguments))
            return _LEAVES[name](*arguments, **keywords)

        return called

    before = {name: getattr(os, name) for name in _LEAVES}
    try:
        for name in _LEAVES:
            setattr(os, name, guarded(name))
        yield
    finally:
        watching = False
        for name, function in before.items():
            setattr(os, name, function)


def _leaving_line(name: str, arguments: tuple[Any, ...]) -> str:
    """What was called, where the user wrote it, and what to do instead."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename not in (__file__, os.__file__)]
    place = next((frame for frame in reversed(frames) if not frame.filename.startswith("<frozen ")), frames[-1])
    shown = repr(arguments[0]) if arguments and name != "kill" else ", ".join(map(repr, arguments))
    does, way = (_PROGRAM, _BESIDE) if name.startswith("exec") else ("ends the program", _CLEAN)
    return f"os.{name}({shown}) was called, which {does} ({place.filename}, line {place.lineno}): {way}"
