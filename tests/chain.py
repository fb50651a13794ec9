"""From a network to its integers on tensors: the one place where tests call the steps of the chain themselves.

The face (`faqd.capture`, `faqd.prepare`, `faqd.convert`) takes pictures, and a runtime's own profile. What builds
through this asks about the steps in between: images that are no pictures, other profiles, plans and ranges.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from backends.facts.profile import Profile
from backends.facts.widths import Widths
from backends.placement.place import place
from calibration.capture.graph_from_module import capture
from calibration.plan import Plan
from calibration.ranges.observation import choose_ranges, observe
from calibration.ranges.observers import RangeMethod
from calibration.rewrites.fold import fold
from calibration.rewrites.rewrite import rewritten
from calibration.simulation.freeze import FrozenNetwork, freeze
from calibration.simulation.insert import insert
from calibration.simulation.prepared import PreparedNetwork
from tests.zoo import ZooNetwork

EIGHT = Widths()
_BATCH = 64
_shallow: dict[tuple[str, int], GraphModule] = {}


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What the steps make of a network, one after the other."""

    folded: GraphModule
    """In the form that was asked for."""
    plan: Plan
    prepared: PreparedNetwork

    def frozen(self) -> FrozenNetwork:
        """The integers that the prepared network has now."""
        return freeze(self.prepared, self.folded)


def folded_graph(module: nn.Module, images: Tensor, *, source: str = "test") -> GraphModule:
    """A module, put into evaluation mode, as a folded graph; two normalised images or more show it."""
    return fold(capture(module.eval(), images, source=source))


def shallow_folded(network: ZooNetwork, *, pixels: int | None = None) -> GraphModule:
    """The folded graph of a network of the list with its repeated blocks left out; exported once in a process."""
    key = (network.source, pixels or network.pixels)
    if key not in _shallow:
        module, images = network.build(pixels=pixels, shallow=True), network.images(2, pixels=pixels)
        _shallow[key] = folded_graph(module, images, source=network.source)
    return copy.deepcopy(_shallow[key])


def steps_of(
    folded: GraphModule,
    images: Tensor,
    profile: Profile,
    *,
    widths: Widths = EIGHT,
    plan: Plan | None = None,
    method: RangeMethod = "minmax",
    check: Tensor | None = None,
    rewrites: bool = True,
    shrunk: float = 1.0,
) -> Steps:
    """Rewrite, place, observe and insert.

    `images`: normalised, that ranges are read from; `plan`: instead of the profile's own; `check`: that rewrites are
    held against; `rewrites`: False leaves the graph as it is; `shrunk`: what ranges are divided by, so that images
    saturate them.
    """
    student = rewritten(folded, profile.rewrites_for(widths), check=check) if rewrites else folded
    placed = plan or place(student, profile, widths)
    ranges = choose_ranges(observe(student, placed, torch.split(images, _BATCH)), placed, method)
    if shrunk != 1.0:
        ranges = {group: replace(observed, scale=observed.scale / shrunk) for group, observed in ranges.items()}
    return Steps(folded=student, plan=placed, prepared=insert(student, placed, ranges))
