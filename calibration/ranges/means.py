"""Ranges of means over a whole map, no finer than the integers that they are means of.

What a map averages to may be next to nothing (a map whose mean was taken away), while the mean of its rounded values
moves in steps of its own. ONNX Runtime's QLinearGlobalAveragePool refuses a step of the mean 256 times finer than that
("parameter out of computation range", measured on 1.32).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch.fx import GraphModule, Node

from calibration.graph.operators import kind, multiplier, static_shape, tensor_inputs
from calibration.plan import ActivationPlacement, Plan
from calibration.ranges.observation import Range


def resolvable_means(graph_module: GraphModule, plan: Plan, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """The ranges by group, those of means over integer maps with steps of the sum's own or larger.

    A range that is widened keeps its middle, so that the mean's rounding fits to either side of what was seen.
    """
    placements, widened = {placement.tensor: placement for placement in plan.activations}, dict(ranges)
    for node in graph_module.graph.nodes:
        placement = placements.get(node.name)
        if placement is None or kind(node) != "adaptive_average_pool" or node.name in plan.float_nodes:
            continue
        step = _step_of_mean(node, plan, placements, ranges)
        if step is not None and widened[placement.group].scale < step:
            widened[placement.group] = _widened(widened[placement.group], step, placement)
    return widened


def _step_of_mean(
    node: Node, plan: Plan, placements: Mapping[str, ActivationPlacement], ranges: Mapping[str, Range]
) -> float | None:
    """The difference of a mean that one integer step makes; None over reals, and where the map's size is free."""
    (source,), reader, factor = tensor_inputs(node), node, 1.0
    positions = static_shape(source)[2:]
    while source.name not in placements and source.name in plan.passthrough:
        factor *= multiplier(source) or 1.0
        reader, source = source, source.all_input_nodes[0]
    placement = placements.get(source.name)
    if placement is None or reader.name not in placement.readers or min(positions, default=0) < 1:
        return None
    return ranges[placement.group].scale * factor / (positions[0] * positions[1])


def _widened(narrow: Range, step: float, placement: ActivationPlacement) -> Range:
    grid = placement.grid
    if grid.symmetric:
        return replace(narrow, scale=step)
    middle = (grid.quant_min + grid.quant_max) / 2
    # The real value in the middle stays there: (middle - zero point) times the step.
    zero_point = round(middle - (middle - narrow.zero_point) * narrow.scale / step)
    return Range(scale=step, zero_point=min(max(zero_point, grid.quant_min), grid.quant_max))
