"""How much of each layer's signal survives quantisation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from calibration.operators import WEIGHTED, kind
from calibration.prepared import PreparedNetwork


class _Keeping(Interpreter):
    """Runs a graph and keeps the tensors of named nodes."""

    def __init__(self, graph_module: GraphModule, names: set[str]) -> None:
        super().__init__(graph_module)
        self.names, self.kept = names, dict[str, Tensor]()

    def run_node(self, n: Node) -> object:
        """Run one node as usual and keep its value when it was asked for."""
        value = super().run_node(n)
        if n.name in self.names and isinstance(value, Tensor):
            self.kept[n.name] = value
        return value


def layer_sqnr(folded: GraphModule, network: PreparedNetwork, images: Tensor) -> dict[str, float]:
    """Signal to quantisation noise ratio in dB at each weighted layer's output, against the float network.

    `images` float32 [B, C, H, W], normalised. Where a layer's activation is part of its kernel, the activation's
    output is compared. Noise is what all layers up to there have added. Layers whose signal is constant are left out.
    """
    absorbed = {producer: activation for activation, producer in network.plan.absorbed.items()}
    groups = {placement.tensor: placement.group for placement in network.plan.activations}
    prepared_nodes = {node.name for node in network.graph.graph.nodes}
    places: dict[str, tuple[str, str]] = {}
    for node in folded.graph.nodes:
        if kind(node) not in WEIGHTED:
            continue
        tensor = absorbed.get(node.name, node.name)
        if tensor in network.integers:
            places[node.name] = (tensor, network.integers[tensor])
        elif f"{node.name}_rescale" in prepared_nodes:
            places[node.name] = (node.name, f"{node.name}_rescale")
    original = _Keeping(folded, {tensor for tensor, _ in places.values()})
    rounded = _Keeping(network.graph, {name for _, name in places.values()})
    with torch.no_grad():
        original.run(images)
        rounded.run(images)
        found = {}
        for layer, (tensor, name) in places.items():
            values = rounded.kept[name]
            if tensor in network.integers:
                values = values * network.activation_grid(groups[tensor]).scale()
            signal = original.kept[tensor].double()
            noise = (signal - values.double()).square().mean()
            power = signal.square().mean()
            if power > 0:
                found[layer] = float(10 * torch.log10(power / noise.clamp_min(power * 1e-12)))
    return found
