"""The two kinds of failure that the command line tells apart."""

from __future__ import annotations

import importlib.util


class UserError(Exception):
    """A mistake that the user can mend: one line saying what, where, the value, what is allowed and the fix.

    The command line prints the line and exits with status 2, without a traceback. Anything that is our own
    bug must be another exception, so that its traceback survives.
    """

    def __init__(self, message: str) -> None:
        # One line is a promise of the command line; messages quoted from libraries may hold several.
        super().__init__(" ".join(message.split()))


def message_of(error: BaseException) -> str:
    """An exception's own words; empty where it has none, or where asking for them raises another."""
    try:
        return str(error)
    except Exception as second:  # a user's __str__ may do anything
        return f"(its message cannot be shown: {type(second).__name__})"


def is_ours_to_report(error: BaseException | None) -> bool:
    """Whether an exception that came out of code that is not ours is to become the user's line.

    SystemExit and other exceptions that are no Exception are: a library that ends the program has not done what it was
    asked for. An interruption by the user goes on upwards, and so does what is a line already.
    """
    return error is not None and not isinstance(error, (UserError, KeyboardInterrupt, GeneratorExit))


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
