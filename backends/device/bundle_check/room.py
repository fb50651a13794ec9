"""Whether what an archive unpacks to fits into memory, known from its directory before anything is unpacked.

A system that promises more memory than it has ends the process that takes it, without a word and in the middle of work.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_MEMORY = Path("/proc/meminfo")
_GROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def free_memory() -> int | None:
    """Bytes of memory that a process may still take here; None where the system does not say.

    Linux: what can be had without swapping, and no more than a container may have at all; elsewhere all that there is.
    """
    sizes = [size for path in _GROUPS if (size := _number(path, "")) is not None]
    available = _number(_MEMORY, "MemAvailable:")
    if available is not None:
        return min([available * 1024, *sizes])
    try:
        return min([os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), *sizes])
    except (AttributeError, OSError, ValueError):  # Windows
        return None


def unpacked(archive: Any, names: Iterable[str]) -> int:
    """Bytes that the arrays of these names in an npz file unpack to; more than its directory says is never read.

    `archive`: the file as NumPy has opened it.
    """
    sizes = {part.filename: part.file_size for part in archive.zip.infolist()}
    return sum(sizes.get(f"{name}.npy", sizes.get(name, 0)) for name in names)


def lack_of_room(size: int) -> str | None:
    """What is wrong with bytes that do not fit into memory, in words behind them; None where they may."""
    free = free_memory()
    if free is None or size <= free:
        return None
    return f"unpacks to {size / 1e9:.4g} GB, and {free / 1e9:.4g} GB of memory are free"


def _number(path: Path, name: str) -> int | None:
    """The number behind a name in a file of the system's; None where there is none."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    for line in lines:
        if line.startswith(name) and (digits := line[len(name) :].split()[:1]) and digits[0].isdigit():
            return int(digits[0])
    return None
