"""How many threads compute: torch's sums are other ones with another number, in their last bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def computing_threads(count: int | None) -> Iterator[None]:
    """Let torch compute in so many threads inside the block, whatever the environment says; None: as it does."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def instruction_set() -> str:
    """The processor's instructions that torch computes with, such as AVX2; they decide last bits as well."""
    return torch.backends.cpu.get_cpu_capability()
