"""How many threads compute: torch's sums are other ones with another number, in their last bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


def compute_in(threads: int) -> None:
    """Let torch compute in so many threads from now on.

    Told a number, even that which it has, torch is a sixth slower in small steps (measured, two cores): it is told none
    that it has already, and the bits are the same.
    """
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


@contextlib.contextmanager
def own_threads() -> Iterator[None]:
    """Whatever number of threads is chosen inside the block, after it torch computes in as many as before."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        compute_in(before)


def instruction_set() -> str:
    """The processor's instructions that torch computes with, such as AVX2; they decide last bits as well."""
    return torch.backends.cpu.get_cpu_capability()
