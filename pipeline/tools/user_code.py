"""The boundary to the user's own Python: `python:package.module:function`."""

from __future__ import annotations

import builtins
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, final

from calibration.errors import UserError, is_ours_to_report, message_of
from pipeline.tools.source_text import close_matches

_PACKAGES = (str(Path(__file__).parents[1]), str(Path(__file__).parents[1].with_name("faqd")))
_OWN_NAMES = ("pipeline", "backends", "calibration")
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


@final
class UserCode:
    """Inside this context an exception is the user's: it becomes a `UserError` naming type, file and line.

    The only place that takes exceptions of every type, because code that is not ours may raise any of them.
    """

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and is_ours_to_report(error):
            if isinstance(error, SystemExit):
                raise UserError(
                    f"{self.where} called sys.exit({error.code!r}), which ends the program ({_place(error)}): let it"
                    " raise an exception, or return"
                ) from error
            message = message_of(error)
            text = f"{type(error).__name__}: {message}" if message else type(error).__name__
            raise UserError(f"{self.where} raised {text} ({_place(error)})") from error


def call_user_function(rest: str, where: str) -> Any:
    """Import `package.module:function` with the working directory importable, call it without arguments.

    Raises:
        UserError: the text, the module, the function or the call is wrong; the user's own exception with its
            place.
    """
    module_name, colon, attribute = rest.partition(":")
    if not colon or not attribute or not all(part.isidentifier() for part in module_name.split(".")):
        raise UserError(f"{where} must be python:package.module:function, with a dotted module name, not a file")
    working_directory = os.getcwd()
    # As `python -m` does; stays, because the user's function may import more when it is called.
    if not {"", working_directory} & set(sys.path):
        sys.path.insert(0, working_directory)
    try:
        with UserCode(where):
            # As a statement of the user's own file would: beside our packages there may be others of their names, and
            # `faqd` decides by who asks (faqd/own_packages.py). With names to take from it, the innermost is returned.
            module = builtins.__import__(module_name, {"__name__": "__main__"}, None, ["__name__"])
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and f"{module_name}.".startswith(f"{cause.name}."):
            top = module_name.partition(".")[0]
            own = f"; {top} is a package of faqd's own, and the command faqd finds yours beside it"
            raise UserError(
                f"{where}: no module {cause.name!r} in {working_directory} or among the installed packages"
                f"{own if top in _OWN_NAMES else ''}"
            ) from None
        raise
    function: Any = module
    for part in attribute.split("."):
        with UserCode(where):
            known = hasattr(function, part)
        if not known:
            names = [name for name in dir(function) if not name.startswith("_")]
            raise UserError(f"{where}: {module_name} has no {attribute!r}; {close_matches(part, names)}")
        function = getattr(function, part)
    if not callable(function):
        raise UserError(f"{where}: {attribute} is a {type(function).__name__}, not a function")
    if not _needs_no_arguments(function):
        raise UserError(f"{where}: {attribute} must be callable without arguments")
    with UserCode(where):
        return function()


def _needs_no_arguments(function: Callable[..., object]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature: the call will tell
        return True
    return True


def _place(error: BaseException) -> str:
    """The innermost line that the user wrote; a line of a library only where there is no other."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if not frame.filename.startswith((*_PACKAGES, "<", *_LIBRARIES))]
    frame = (mine or list(frames))[-1]
    return f"{frame.filename}, line {frame.lineno}"
