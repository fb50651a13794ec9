"""Two places of one folder change their contents in one step, where the system can: no moment has neither."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # renameat2(2), Linux 3.15, glibc 2.28
_RENAME_SWAP = 2  # renamex_np(2), macOS 10.12
# What says that this system or this file system (NFS, FUSE, older kernels) knows no exchange.
_UNKNOWN = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM})


def exchanged(first: Path, second: Path) -> bool:
    """Let two files or folders, both there and on one file system, change places at once; whether that is possible.

    Raises:
        OSError: it is possible, and the system refuses it for these.
    """
    places = os.fsencode(first), os.fsencode(second)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = library.renamex_np(*places, ctypes.c_uint(_RENAME_SWAP))
        elif sys.platform == "linux":
            failed = library.renameat2(_AT_FDCWD, places[0], _AT_FDCWD, places[1], ctypes.c_uint(_RENAME_EXCHANGE))
        else:
            return False
    except (AttributeError, OSError):  # a C library without it
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in _UNKNOWN:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))
