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


_REFERRING_TO_ITSELF = """
import gc
from pipeline.tools.memory import freed_memory_kept
class Network:
    def __init__(self, size):
        self.itself, self.weights = self, b"x" * size
    def __del__(self):
        print("gone")
gc.collect()
gc.disable()
with freed_memory_kept():
    network = Network({size})
    del network
print("ended")
"""


def _said(size: int) -> list[str]:
    command = [sys.executable, "-c", _REFERRING_TO_ITSELF.format(size=size)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def test_networks_that_refer_to_themselves_go_at_the_end_of_a_block_that_has_taken_much() -> None:
    assert _said(2**29) == ["gone", "ended"]


def test_the_end_of_a_block_that_has_taken_little_walks_through_no_objects() -> None:
    assert _said(2**20) == ["ended", "gone"]


_IMPORTING = """
import gc
from pipeline.tools.memory import lasting_imports
before = gc.get_freeze_count()
with lasting_imports():
    assert not gc.isenabled()
    import unittest
print(gc.isenabled(), gc.get_freeze_count() > before)
"""


def test_imports_that_last_are_walked_through_in_no_round() -> None:
    run = subprocess.run([sys.executable, "-c", _IMPORTING], check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["True", "True"]
