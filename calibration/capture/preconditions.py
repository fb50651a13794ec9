"""What a network's parameters and outputs must be before anything is captured or read of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import nn
from torch.fx import Graph, Node
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm

from calibration.errors import UserError

_log = logging.getLogger(__name__)
_BUILDER = "in a builder given as --teacher python:package.module:function (docs/networks.md)"


def check_parameters(module: nn.Module, source: str) -> None:
    """Raise UserError naming a parameter or buffer that has no values yet, or only those that are not zero."""
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
            raise UserError(
                f"{source}: {name} has no shape yet, as its module is lazy: run the network once on an image of the"
                f" right size before its weights are loaded, {_BUILDER}"
            )
        if tensor.layout != torch.strided:
            layout = str(tensor.layout).removeprefix("torch.")
            raise UserError(
                f"{source}: {name} is stored as {layout}, which no edge runtime multiplies: make it dense with"
                f" to_dense(), {_BUILDER}"
            )


def tell_of_hooks(module: nn.Module, source: str) -> None:
    """Say which weights are computed of others by hooks: what they compute is what is quantised."""
    masked, normed = list[str](), list[str]()
    for name, part in module.named_modules():
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                masked.append(name)
            elif isinstance(hook, WeightNorm):
                normed.append(name)
    if masked:
        _log.warning(
            "%s: masks of prune are applied to %s: training may give the weights that they make zero other values"
            " (--steps 0 leaves them zero)",
            source,
            _listed(masked),
        )
    if normed:
        _log.warning("%s: weight_norm is applied to %s: direction and length are one weight", source, _listed(normed))


def _listed(names: Sequence[str]) -> str:
    unique = list(dict.fromkeys(names))
    more = f" and {len(unique) - 3} more layers" if len(unique) > 3 else ""
    return ", ".join(unique[:3]) + more


def check_outputs(graph: Graph, names: Sequence[str], source: str) -> None:
    """Raise UserError naming an output that has no row for each image, or that is the same for all of them."""
    image = next((node for node in graph.nodes if node.op == "placeholder"), None)
    if image is None:
        return
    batch, read = image.meta["val"].shape[0], _behind(image)
    assert not str(batch).isdigit(), "a rewrite has fixed the size of the batch"
    (results,) = next(node for node in graph.nodes if node.op == "output").args
    assert isinstance(results, (list, tuple))
    for result, name in zip(results, names, strict=True):
        assert isinstance(result, Node)
        value = result.meta.get("val")
        sizes = list(value.shape) if isinstance(value, torch.Tensor) else []
        if result not in read:
            raise UserError(
                f"{source}: the network's output {name} is the same for every image (a table of anchors, positions or a"
                f" weight): keep it beside the artifact, and leave it out of what the network returns {_BUILDER}"
            )
        if not sizes or str(sizes[0]) != str(batch):
            shown = ", ".join(str(size).replace(str(batch), "batch") for size in sizes)
            raise UserError(
                f"{source}: the first axis of the network's output {name} [{shown}] is not the image's, so that the"
                f" outputs of one image cannot be told from another's: bring the batch to the front {_BUILDER}"
            )


def _behind(image: Node) -> set[Node]:
    """The image and all that is computed from its values; what reads its sizes alone is not."""
    computed = {image}
    for node in image.graph.nodes:
        sizes_alone = node.op == "call_function" and not isinstance(node.meta.get("val"), (torch.Tensor, list, tuple))
        if not sizes_alone and computed.intersection(node.all_input_nodes):
            computed.add(node)
    return computed
