"""What a folder looks like when a process is killed just before any of its calls that change files."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Audit events of Python calls that change a folder; the exchange of two places is announced by its function's look-up.
_CHANGES = frozenset({"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"})
_EXCHANGE = frozenset({"renameat2", "renamex_np"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_TEMPORARY = re.compile(r"\.[a-z0-9_]{8}\.part")
_watch: Watch | None = None


class Watch:
    """Keeps a copy of a folder as it is before each change; of states that look alike one."""

    def __init__(self, folder: Path, copies: Path) -> None:
        self._folder, self._copies = folder, copies
        self._busy, self._looks = False, set[tuple[object, ...]]()
        self.states = list[Path]()
        self.points = 0

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take a copy where an event is about to change the folder."""
        if self._busy or not self._changes(event, arguments):
            return
        self._busy = True
        try:
            self.points += 1
            look = self._look()
            if look not in self._looks:
                self._looks.add(look)
                self.states.append(self._copy(self._copies / f"{len(self.states):03}"))
        finally:
            self._busy = False

    def _changes(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event == "ctypes.dlsym":
            return arguments[1] in _EXCHANGE
        if event == "open":
            return isinstance(arguments[2], int) and bool(arguments[2] & _WRITING) and self._inside(arguments[0])
        return event in _CHANGES and any(self._inside(one) for one in arguments)

    def _inside(self, path: object) -> bool:
        return isinstance(path, str | bytes | os.PathLike) and Path(os.fsdecode(path)).is_relative_to(self._folder)

    def _look(self) -> tuple[object, ...]:
        """Names, and which files they are; names of what is being written are alike."""
        files = sorted(path for path in self._folder.rglob("*") if path.name != ".lock")
        return tuple(
            (_TEMPORARY.sub("", str(path)), path.is_dir() or (path.stat().st_ino, path.stat().st_size))
            for path in files
        )

    def _copy(self, target: Path) -> Path:
        """A copy; whole files are never changed where they are, so that links will do for them."""

        def copied(source: str, place: str) -> None:
            (shutil.copy2 if _TEMPORARY.search(source) or source.endswith(".lock") else os.link)(source, place)

        if self._folder.exists():
            shutil.copytree(self._folder, target, copy_function=copied)
        return target


def _which(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_size


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _watch is not None:
        _watch.heard(event, arguments)


@contextlib.contextmanager
def watched(folder: Path, copies: Path) -> Iterator[Watch]:
    """Watch a folder inside the block; the copies are made below `copies`, on the same file system."""
    global _watch
    if not getattr(sys, "_faqd_hears", False):
        sys.addaudithook(_hear)  # which cannot be taken away again, and does nothing outside the block
        sys._faqd_hears = True  # type: ignore[attr-defined]
    copies.mkdir()
    _watch = watch = Watch(folder, copies)
    try:
        yield watch
    finally:
        _watch = None
