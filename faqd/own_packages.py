"""faqd's own packages and anybody else's of the same names, side by side in one process.

They are called `pipeline`, `backends` and `calibration`, as many a user's own packages are. Where both are about, every
import statement of ours finds ours and every other one finds the other, by the file that it stands in; `sys.modules`
holds the packages of one side at a time. Where there is no other, nothing of this is in effect.

This file imports nothing of the project: it decides what such an import finds.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

NAMES = ("pipeline", "backends", "calibration")

_HOME = Path(__file__).resolve().parent.parent
_OURS = tuple(f"{_HOME / name}{os.sep}" for name in (*NAMES, "faqd"))
# What lies beside a package of ours, whichever version it is of.
_MARKS = (("faqd/own_packages.py",), ("pipeline/siblings.py", "calibration/errors.py"))
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_lock = threading.RLock()
_aside: dict[str, ModuleType] = {}
"""The modules of the side that `sys.modules` does not hold now."""
_state = {"installed": False, "own": False}


def install() -> None:
    """See to it that our packages are found by us whatever else has their names.

    Another's package counts where it has been imported or would be found from here, the working directory included.
    """
    with _lock:
        if _state["installed"] or not any(map(_has_namesake, NAMES)):
            return
        _state["installed"] = True
        # What has been imported until now, but by us, is the other's.
        _state["own"] = any(_is_ours(vars(module)) for name, module in _loaded().items() if name in NAMES)
        sys.meta_path.insert(0, _Finder())
        builtins.__import__ = _importing(builtins.__import__)


@contextlib.contextmanager
def own() -> Iterator[None]:
    """Let `sys.modules` hold our packages inside the block, and afterwards what it held before."""
    install()
    turned = _state["installed"] and _turn_to(own=True)
    try:
        yield  # without the lock: threads of a long run import as well
    finally:
        if turned:
            _turn_to(own=False)


def _has_namesake(name: str) -> bool:
    loaded = sys.modules.get(name)
    if loaded is not None and not _is_ours(vars(loaded)):
        return True
    return any(_is_another(PathFinder.find_spec(name, [place])) for place in (os.getcwd(), *sys.path))


def _is_another(spec: ModuleSpec | None) -> bool:
    """Whether something is neither ours nor another copy of it, such as the installed one beside a clone's."""
    if spec is None:
        return False
    places = spec.submodule_search_locations or [spec.origin or ""]
    homes = [Path(place).resolve().parent for place in places]
    return not any(all((home / mark).is_file() for mark in marks) for home in homes for marks in _MARKS)


def _loaded() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in NAMES}


def _is_ours(module_globals: Mapping[str, Any] | None) -> bool:
    file = (module_globals or {}).get("__file__")
    return isinstance(file, str) and os.path.realpath(file).startswith(_OURS)


@contextlib.contextmanager
def _side(*, own: bool) -> Iterator[None]:
    """Let `sys.modules` hold one side for an import, which no other thread's may cross."""
    with _lock:
        turned = _turn_to(own=own)
        try:
            yield
        finally:
            if turned:
                _turn_to(own=not own)


def _turn_to(*, own: bool) -> bool:
    """Exchange what `sys.modules` holds of the names with what lies aside, unless it is so; whether it was not."""
    with _lock:
        if _state["own"] == own:
            return False
        _exchange()
        return True


def _exchange() -> None:
    shown = _loaded()
    for name in shown:
        del sys.modules[name]
    sys.modules.update(_aside)
    _aside.clear()
    _aside.update(shown)
    _state["own"] = not _state["own"]


class _Finder:
    """Finds the package of the side that is asked for."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where the package lies; None for what has another name, or lies in a package."""
        if path is not None or name not in NAMES:
            return None
        if _state["own"]:
            return PathFinder.find_spec(name, [str(_HOME)])
        for place in sys.path:
            if _is_another(spec := PathFinder.find_spec(name, [place])):
                return spec
        return None


def _importing(plain: Callable[..., ModuleType]) -> Callable[..., ModuleType]:
    """The import statement, which looks at who asks where there are two answers.

    Libraries, such as pickle, ask for whoever uses them: for them it is the side that this thread is on.
    """

    def import_for(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        asked = name if level == 0 else str((globals or {}).get("__package__") or "")
        if asked.partition(".")[0] not in NAMES:
            return plain(name, globals, locals, fromlist, level)
        own = _is_ours(globals)
        library = not own and str((globals or {}).get("__file__", "")).startswith(_LIBRARIES)
        # Held before looking: what is there while another thread imports is that thread's side, for as long as it does.
        with _lock, _side(own=_state["own"] if library else own):
            return plain(name, globals, locals, fromlist, level)

    return import_for


def _new_lock() -> None:
    """Let a child have its own lock: it has none of the threads that could give this one back."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    # A child begins with what `sys.modules` holds, which no thread must be exchanging just then.
    os.register_at_fork(
        before=lambda: _lock.acquire(), after_in_parent=lambda: _lock.release(), after_in_child=_new_lock
    )
