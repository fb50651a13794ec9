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
