"""SPEQ's second pass: the student with the activations of each layer at fewer bits, or at 8, by chance.

Source: Boo, Shin, Choi and Sung, Stochastic precision ensemble, AAAI 2021, arXiv 2009.14502; its probability of one
half and its 8 bits come from somebody else's account. The clip level stays, the number of levels changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from calibration.simulation.learned_grids import ActivationGrid
from calibration.simulation.prepared import PreparedNetwork
from pipeline.config.distillation import DistillationConfig
from pipeline.distillation.taps import Tapped

#: The precision of the activations that are not at fewer bits.
FULL_BITS = 8


@contextmanager
def stochastic_precision(
    network: PreparedNetwork, bits: int | None, probability: float, generator: torch.Generator
) -> Iterator[None]:
    """Give every activation grid `bits` bits with the probability, else 8, until the block ends.

    Args:
        network: in training mode; nothing of it is trained by the pass.
        bits: 2 to 8; None: each grid's own where it has fewer than 8, else 4 [ours].
        probability: 0 to 1.
        generator: on the CPU; draws one number per grid.
    """
    grids = [grid for grid in network.activation_grids.values() if isinstance(grid, ActivationGrid)]
    draws = torch.rand(len(grids), generator=generator).tolist()
    try:
        for grid, draw in zip(grids, draws, strict=True):
            fewer = bits if bits is not None else (grid.grid.bits if grid.grid.bits < FULL_BITS else 4)
            grid.resolve(fewer if draw < probability else FULL_BITS)
        yield
    finally:
        for grid in grids:
            grid.resolve(grid.grid.bits)


def second_pass(
    network: PreparedNetwork, tapped: Tapped, settings: DistillationConfig
) -> Callable[[Tensor, torch.Generator], tuple[Tensor, ...]]:
    """The logits of a student, which `tapped` gives, with each activation at fewer bits or at 8 by chance."""

    @torch.no_grad()
    def outputs_of(images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        with stochastic_precision(network, settings.speq_bits, settings.speq_probability, generator):
            outputs, _ = tapped(images)
        return outputs  # type: ignore[no-any-return]  # a module's

    return outputs_of
