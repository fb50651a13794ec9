"""One run at a time in a folder: a lock that goes with the process that holds it, however that ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from calibration.errors import UserError
from pipeline.tools.atomic import writable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
"""Name of the file in the folder that is locked; it goes when the run ends."""

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
_HELD: set[int] = set()


@contextlib.contextmanager
def locked(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a folder for this process inside the block; one that was missing is made, and goes again if it stays empty.

    Where the file system has no locks, `say` hears that two runs would not notice each other, and the block runs.

    Raises:
        UserError: another process holds the folder (the line says which), or it cannot be made or written.
    """
    made = _make(folder)
    try:
        with _holding(folder, say):
            yield
    finally:
        for path in made:
            try:
                path.rmdir()
            except OSError:  # there is something in it now
                break


def _make(folder: Path) -> list[Path]:
    """Make a folder with its parents; those that were missing, the deepest first."""
    with writable(folder):
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        if (link := missing[-1] if missing else folder).is_symlink() and not link.exists():
            raise UserError(f"{link} is a link that leads nowhere: choose another place with --output")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # what /proc and its like say: its parents were to be made as well
            raise UserError(f"cannot make the folder {folder}: choose another place with --output") from error
    return missing


@contextlib.contextmanager
def _holding(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    path = folder / LOCK
    descriptor = _taken(path, folder, say)
    _HELD.add(descriptor)
    try:
        with writable(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(_owner()).encode(), 0)
        yield
    finally:
        # Gone before it is released: who opened it meanwhile sees that it is no longer the folder's (see `_taken`).
        path.unlink(missing_ok=True)
        _HELD.discard(descriptor)
        os.close(descriptor)


def _taken(path: Path, folder: Path, say: Callable[[str], None]) -> int:
    """The descriptor of the folder's lock file, locked."""
    while True:
        with writable(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(descriptor, folder, say)
            present = os.stat(path)
            if os.path.samestat(present, os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:
            pass  # its owner ended between our opening and locking it
        except BlockingIOError:
            owner = _described(descriptor)
            os.close(descriptor)
            raise UserError(
                f"{folder} is in use by another run, {owner}: wait for its end, or choose another --output"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, say: Callable[[str], None]) -> None:
    if fcntl is None:
        say(f"this system has no file locks: start no second run in {folder} before this one has ended")
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if isinstance(error, BlockingIOError) or error.errno not in _NO_LOCKS:
            raise
        say(f"the file system of {folder} has no locks: start no second run there before this one has ended")


def _owner() -> dict[str, str | int]:
    return {"process": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def _described(descriptor: int) -> str:
    """Who holds the lock, as its owner has written it; an owner that is just about to write is not known yet."""
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {owner['process']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "which has just begun"


def _let_go_in_child() -> None:
    """A process that decodes images must not hold the folder of a parent that was killed."""
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)
