"""Freed memory that is kept: in processes of their own, for the setting is that of a whole process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_ALLOCATING = """
import resource
from pipeline.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
size = 2**25
len(b"x" * size)  # 32 MiB: 8192 pages
before = faults()
for _ in range(10):
    len(b"x" * size)
print(faults() - before)
"""


def _page_faults(*, keep: bool) -> int:
    command = [sys.executable, "-c", _ALLOCATING.format(keep=keep)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_the_kernel_is_asked_once_for_a_block_that_is_used_again() -> None:
    assert _page_faults(keep=False) > 10_000
    assert _page_faults(keep=True) < 100
