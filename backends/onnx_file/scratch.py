"""Temporary folders that runtimes read models from or write them to, where the system has room for them."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from calibration.errors import UserError

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def scratch_folder(purpose: str, *, needed: int) -> Iterator[Path]:
    """A temporary folder for about `needed` bytes, which goes with the block.

    Raises:
        UserError: there is no place for temporary files, or not so much room, before the block or within it.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f"faqd-{purpose}-") as folder:
            if (free := shutil.disk_usage(folder).free) < needed:
                raise UserError(
                    f"{tempfile.gettempdir()} has {free / 1e6:.4g} MB free and {needed / 1e6:.4g} MB of a model are to"
                    " be written there for the runtime: set TMPDIR to a folder with more"
                )
            yield Path(folder)
    except FileNotFoundError as error:
        # Python's own search for a place names none; one that it has found may be gone by now.
        if error.filename is not None and Path(tempfile.gettempdir()).is_dir():
            raise
        raise UserError(f"there is no place for temporary files ({error}): set TMPDIR to a folder with room") from error
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise UserError(
            f"cannot write to {tempfile.gettempdir()}, where the runtime is given the model: {error.strerror}; set"
            " TMPDIR to a folder with more room"
        ) from error
