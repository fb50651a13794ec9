"""Generators that are a pure function of a seed and a key, so that a run can be resumed anywhere."""

from __future__ import annotations

import hashlib

import torch


def generator_for(seed: int, *key: int | str) -> torch.Generator:
    """Return a CPU generator that depends on the seed and the key alone, never on the global generator.

    Neighbouring seeds and keys give unrelated streams, which adding them up would not.
    """
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    # torch.Generator takes a signed 64-bit seed.
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
