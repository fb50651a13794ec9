"""How much of each layer's signal survives quantisation."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.fx import GraphModule

from calibration.graph.operators import WEIGHTED, kind
from calibration.graph.watching import Watching
from calibration.simulation.prepared import PreparedNetwork


def layer_sqnr(folded: GraphModule, network: PreparedNetwork, batches: Iterable[Tensor]) -> dict[str, float]:
    """Signal to quantisation noise ratio in dB at each weighted layer's output, against the float network.

    `batches` of images float32 [B, C, H, W], normalised. Where a layer's activation is part of its kernel, the
    activation's output is compared. Noise is what all layers up to there have added. Layers whose signal is zero are
    left out.
    """
    absorbed = {producer: activation for activation, producer in network.plan.absorbed.items()}
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
        elif network.plan.weight(node.name) is not None:
            places[node.name] = (node.name, node.name)  # its weights alone are integers: it writes reals itself
    signals, answers = dict[str, Tensor](), dict[str, Tensor]()
    original = Watching(folded, {tensor for tensor, _ in places.values()}, signals.__setitem__)
    rounded = Watching(network.graph, {name for _, name in places.values()}, answers.__setitem__)
    power, noise = dict.fromkeys(places, 0.0), dict.fromkeys(places, 0.0)
    for images in batches:
        with torch.no_grad():
            original.run(images)
            rounded.run(images)
        for layer, (tensor, name) in places.items():
            values = answers[name]
            if tensor in network.integers:
                values = values * network.tensor_grids[tensor].scale().detach()
            # Image by image: in double precision a whole batch of maps takes more memory than any cache has.
            for signal, answer in zip(signals[tensor], values, strict=True):
                exact = signal.double()
                power[layer] += float(exact.square().sum())
                noise[layer] += float((exact - answer).square_().sum())
    # 120 dB stands for "no noise at all", whose logarithm does not exist.
    return {
        layer: 10 * math.log10(power[layer] / max(noise[layer], power[layer] * 1e-12))
        for layer in places
        if power[layer] > 0
    }
