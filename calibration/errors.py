"""The two kinds of failure that the command line tells apart, in lines that no terminal obeys."""

from __future__ import annotations

import errno
import importlib.util
import re
from typing import Final

_PICTURES = 0x2400
# Control characters have pictures of their own, ␛ for the escape that begins terminals' commands. What turns the
# direction of text around, ends a line elsewhere than it seems, or is no character at all has none.
SHOWN: Final[dict[int, str]] = {
    **{code: chr(_PICTURES + code) for code in range(0x20)},
    0x7F: chr(_PICTURES + 0x21),
    **dict.fromkeys(
        (*range(0x80, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)), "\ufffd"
    ),
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}


def plain(text: str) -> str:
    """Return foreign text as one line, as long as it was, that moves no cursor and reads in one direction."""
    return text.translate(SHOWN)


class UserError(Exception):
    """A mistake that the user can mend: one line saying what, where, the value, what is allowed and the fix.

    The command line prints the line and exits with status 2, without a traceback. Anything that is our own
    bug must be another exception, so that its traceback survives.
    """

    def __init__(self, message: str) -> None:
        # One line is a promise of the command line; messages quoted from libraries may hold several.
        # It is printed by whoever catches it, notebooks and Python itself among them.
        super().__init__(plain(" ".join(message.split())))


def message_of(error: BaseException) -> str:
    """An exception's own words; empty where it has none, or where asking for them raises another."""
    try:
        return str(error)
    except BaseException as second:  # a user's __str__ may do anything
        if isinstance(second, KeyboardInterrupt):
            raise
        return f"(its message cannot be shown: {type(second).__name__})"


def is_ours_to_report(error: BaseException | None) -> bool:
    """Whether an exception that came out of code that is not ours is to become the user's line.

    SystemExit and other exceptions that are no Exception are: a library that ends the program has not done what it was
    asked for. An interruption by the user goes on upwards, and so do a lack of memory and what is a line already.
    """
    if error is None or isinstance(error, (UserError, KeyboardInterrupt)):
        return False
    if isinstance(error, GeneratorExit) and (error.__traceback__ is None or error.__traceback__.tb_next is None):
        return False  # the end of a generator of ours that nobody asks any more, which no code below it has raised
    return not is_out_of_memory(error)


# How torch, ONNX Runtime, C++ and the operating system say it; not all have an exception of its own for it.
_NO_MEMORY = re.compile(
    r"(can't|cannot|failed to) allocate memory|out of memory|std::bad_alloc|bad allocation",
    re.IGNORECASE,
)
_TRIED = re.compile(r"tried to allocate ([\d.]+ ?(?:bytes|[KMGT]iB))", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory was lacking, or came from one that says so."""
    seen = set[int]()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM):
            return True
        library = isinstance(cause, RuntimeError) or type(cause).__module__.startswith("onnxruntime")
        if library and _NO_MEMORY.search(message_of(cause)):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def out_of_memory_line(error: BaseException) -> str:
    """The line of a lack of memory: how much was asked for last, where that is known, and what takes less."""
    tried = _TRIED.search(message_of(error))
    asked = f", asked for {tried[1]} more" if tried else ""
    return (
        f"out of memory{asked}: lower --batch-size or --workers, take smaller images or a smaller network, or run where"
        " more memory is free"
    )


def raise_lack_of_memory(error: BaseException) -> None:
    """Raise an exception again that says that memory was lacking: that is not the network's own condition."""
    if is_out_of_memory(error):
        raise error


class MissingExtra(UserError):
    """An optional dependency is not installed; the line holds the pip command that installs it."""

    def __init__(self, package: str, *, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the package {package}, which is not installed: pip install 'faqd[{extra}]'"
        )


def require_package(package: str, *, extra: str, needed_for: str) -> None:
    """Raise MissingExtra unless the package is installed; it is looked for, not imported."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtra(package, extra=extra, needed_for=needed_for)
