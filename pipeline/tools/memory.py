"""What a process frees stays its own while images run through networks: each batch asks for the same blocks again."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Parameters of glibc's mallopt(3), and their usual values; its threshold for mapping grows to this one by itself.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_NEVER = 2**31 - 1
# Growth of the process within a block, in bytes, that is worth a walk through all Python objects: a fifth of a second
# where torch and what it exports with are loaded, seven times in a run.
_WORTH_COLLECTING = 2**28
_USUAL = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 2**26, _MMAP_THRESHOLD: 2**25}
_blocks = 0  # that are open in this process


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what is freed inside the block for the next allocation, and give back what is unused when it ends.

    By default glibc maps every large block anew and gives it back when freed, so the kernel hands out, zeroed page by
    page, each activation map of each batch: more work than most operations do on the map. Measured on two
    cores: the distillation step of a ResNet-20 takes 0.84 of the time, a float step of a MobileNetV2 at 224 pixels
    0.45, with up to a quarter more memory at the peak. Not for what loads and writes whole networks, which is why no
    command is one such block: gaps between blocks that stay would not be given back, twice the weights of a network of
    2 GB. A block inside another is a part of it. Other C libraries (musl, macOS, Windows) are left as they are.
    """
    global _blocks
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    library, before = ctypes.CDLL(None), resident_bytes()
    if not _blocks:
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, _NEVER)
    _blocks += 1
    try:
        yield
    finally:
        _blocks -= 1
        if not _blocks:
            for parameter, value in _USUAL.items():
                library.mallopt(parameter, value)
            if before is None or (resident_bytes() or 0) - before > _WORTH_COLLECTING:
                gc.collect()  # networks refer to themselves
            library.malloc_trim(0)


def resident_bytes() -> int | None:
    """Bytes of memory that this process holds; None where the system does not say in Linux's way."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def lasting_imports() -> Iterator[None]:
    """Import inside what stays as long as the process: no collector's round then or later walks through it.

    For the process of a command, whose other objects at that time stay as well. Torch and the stages are a third of a
    million objects: without rounds of the collector they are loaded in four fifths of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if enabled:
            gc.enable()
