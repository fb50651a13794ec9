"""Freed memory that is kept: in processes of their own, for the setting is that of a whole process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")

_ALLOCATING = """
import resource
from contextlib import nullcontext
from pipeline.tools.memory import freed_memory_kept
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def pages():
    return int(open("/proc/self/statm").read().split()[1])
size = 2**26
with {block}:
    len(b"x" * size)  # 64 MiB: 16384 pages
    before = faults()
    for _ in range(10):
        len(b"x" * size)
    print(faults() - before)
    held = pages()
print(held - pages())
"""


def _pages(block: str) -> tuple[int, int]:
    """How many are asked for while a block of memory is used again, and how many the end of the block gives back."""
    command = [sys.executable, "-c", _ALLOCATING.format(block=block)]
    asked, given_back = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(asked), int(given_back)


def test_the_kernel_is_asked_once_for_a_block_that_is_used_again_and_gets_it_back_at_the_end() -> None:
    asked, given_back = _pages("freed_memory_kept()")
    assert asked < 100
    assert given_back > 16_000


def test_without_it_the_kernel_is_asked_each_time() -> None:
    asked, given_back = _pages("nullcontext()")
    assert asked > 100_000
    assert given_back < 100


def test_a_block_inside_another_leaves_the_outer_one_as_it_is() -> None:
    asked, given_back = _pages("freed_memory_kept():\n  with freed_memory_kept(): pass\n  if True")
    assert asked < 100
    assert given_back > 16_000
