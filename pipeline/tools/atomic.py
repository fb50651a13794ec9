"""Files and folders that are either complete or absent, whatever interrupts their writing."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import final

from calibration.errors import UserError
from pipeline.tools.exchange import exchanged

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG})
UNUSABLE = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE})
"""What is said of a name that leads nowhere, of too many open files, and of a medium that is broken or gone."""
FAILED = frozenset({errno.EIO, errno.ESTALE})
"""What a medium says that is broken or gone."""


@final
class NoRoom(UserError):
    """A file finds no room: `path` is what was written, `reason` the system's words."""

    def __init__(self, path: Path, reason: str, *, flag: str) -> None:
        super().__init__(f"cannot write {path}: {reason}: make room there, or choose another place with {flag}")
        self.path, self.reason = path, reason


_SUFFIX = ".part"
_TEMPORARY = re.compile(r"\.(?P<name>.+?)(\.old)?\.[a-z0-9_]{8}" + re.escape(_SUFFIX))
"""Names of what is being written, see `_beside`."""


def write_text(path: Path, text: str, *, flag: str = "--output") -> None:
    """Write a UTF-8 text file at once, its parent folders included; bytes of file names that are no text as escapes.

    Raises:
        UserError: the disk is full or the place cannot be written; whatever was at `path` before is unharmed.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"), flag=flag)


def write_bytes(path: Path, content: bytes, *, flag: str = "--output") -> None:
    """Write a file at once, its parent folders included.

    Raises:
        UserError: the disk is full or the place cannot be written; whatever was at `path` before is unharmed.
    """
    with whole_file(path, flag=flag) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def whole_file(path: Path, *, flag: str = "--output") -> Iterator[Path]:
    """Give the path of an empty file to write; it becomes `path` when the block ends without an error, or goes.

    `flag` names the place in the lines of mistakes, here and below.

    Raises:
        UserError: the disk is full or the place cannot be written; whatever was at `path` before is unharmed.
    """
    with writable(path, flag=flag):
        with _making(path, flag=flag):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = _beside(path, _make_file)
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent)


@contextlib.contextmanager
def directory(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty folder beside `target` to fill; it becomes `target` when the block ends without an error.

    With an error, Ctrl-C included, the folder is removed and `target` is as it was before.

    Raises:
        UserError: `target` exists and may not be replaced, the disk is full, or the place cannot be written.
    """
    _refuse_existing(target, overwrite=overwrite)
    with writable(target):
        with _making(target, flag="--output"):
            target.parent.mkdir(parents=True, exist_ok=True)
            building = _beside(target, Path.mkdir)
        try:
            yield building
            for path in sorted(building.rglob("*"), reverse=True):
                _sync(path)
            _sync(building)
            # Another run may have finished first.
            _refuse_existing(target, overwrite=overwrite)
            _rename_over(building, target)
        except BaseException as error:
            shutil.rmtree(building, ignore_errors=True)
            if isinstance(error, NoRoom):  # for a file of what is to be there
                raise NoRoom(target, error.reason, flag="--output") from error
            raise
        _sync(target.parent)


def check_place(path: Path, *, flag: str) -> None:
    """Check that a file can be made or replaced, its folders included; what is tried on the way is gone again.

    Raises:
        UserError: it is a folder or a device, or no file can be made there.
    """
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder: name a file")
    if path.exists() and not path.is_file():
        raise UserError(f"{flag} {path} is no regular file, which would be replaced: name another place")
    present = next(parent for parent in path.absolute().parents if parent.exists())
    if not present.is_dir():
        raise UserError(f"{flag} {path}: {present} is no folder")
    if not os.access(present, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise UserError(f"{flag} {path}: {present} cannot be written; name another place")
    # What may be written need not be able to: /proc and its like refuse files to everybody.
    with writable(path, flag=flag), _making(path, flag=flag):
        _beside(present / path.name, _make_file).unlink()


def remove(path: Path) -> None:
    """Remove a file that may be absent.

    Raises:
        UserError: its folder cannot be written.
    """
    with writable(path):
        path.unlink(missing_ok=True)


def unfinished(folder: Path, names: Collection[str] | None = None) -> list[Path]:
    """What is being written in a folder, or was when a process was killed.

    `names`: of the files and folders that are meant, where others may lie beside them; None: all of the folder is ours.
    """
    left = list[Path]()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        matched = _TEMPORARY.fullmatch(path.name)
        if matched is not None and (names is None or matched["name"] in names):
            left.append(path)
    return left


def clear_unfinished(folder: Path, names: Collection[str] | None = None) -> None:
    """Remove the temporary files and folders that killed processes have left, and put back what they had moved aside.

    Only for a folder that no other process writes into meanwhile; `names` as for `unfinished`.
    """
    for path in unfinished(folder, names):
        if ".old." in path.name and path.is_dir():
            for old in path.iterdir():
                if not (target := folder / old.name).exists():
                    old.rename(target)
        _remove_all(path)


@contextlib.contextmanager
def writable(path: Path, *, flag: str = "--output") -> Iterator[None]:
    """Turn the operating system's refusals to write below `path`, which `flag` names, into the user's one line.

    Raises:
        UserError: the disk is full, or the place is read-only or not a folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise NoRoom(path, os.strerror(error.errno or errno.ENOSPC), flag=flag) from error
        refused = error.errno in NOT_ALLOWED | FAILED or isinstance(error, FileExistsError)
        if refused and _concerns(error, path):
            raise UserError(
                f"cannot write {path}: {os.strerror(error.errno or errno.EEXIST)}: choose another place with {flag}"
            ) from error
        raise


@contextlib.contextmanager
def _making(path: Path, *, flag: str) -> Iterator[None]:
    """Turn whatever a file system says to the making of a place into the user's one line, a lack of room apart."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        raise UserError(f"cannot write {path}: {error.strerror or error}: choose another place with {flag}") from error


def _make_file(path: Path) -> None:
    """Make an empty file that was not there, as readable to others as the user's files are."""
    path.open("xb").close()


def _beside(target: Path, make: Callable[[Path], None], *, word: str = "") -> Path:
    """Make something empty beside a place, of a name that nothing has: what is being written."""
    while True:
        path = target.with_name(f".{target.name}{word}.{secrets.token_hex(4)}{_SUFFIX}")
        try:
            make(path)
        except FileExistsError:
            continue
        return path


def _concerns(error: OSError, path: Path) -> bool:
    """Say whether an error is about writing `path`, not about a file that was merely read meanwhile."""
    if error.filename is None:
        return True
    culprit, place = Path(error.filename).absolute(), path.absolute()
    return culprit.is_relative_to(place.parent) or place.is_relative_to(culprit)


def _refuse_existing(target: Path, *, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists already: add --overwrite to replace it, or choose another --output")


def _rename_over(building: Path, target: Path) -> None:
    if not target.exists():
        building.rename(target)
        return
    if exchanged(building, target):
        _remove_all(building)
        return
    # The old one steps aside and comes back if that fails, or when the next run clears up.
    aside = _beside(target, Path.mkdir, word=".old")
    old = aside / target.name
    target.rename(old)
    try:
        building.rename(target)
    except BaseException:
        old.rename(target)
        aside.rmdir()
        raise
    shutil.rmtree(aside)


def _remove_all(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
