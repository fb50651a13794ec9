"""Hold what was captured, and the float file made of it, against the user's own module on the run's own images."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.facts.onnxruntime_failures import session_failures
from backends.onnx_file.serialised import Serialised, parsed, serialise
from backends.onnxruntime.backend import OnnxRuntime
from calibration.capture.eager import Eager
from calibration.errors import UserError
from calibration.graph.interface import interface_of
from calibration.graph.nearness import LARGEST_DIFFERENCE, LEAST_PROBABILITY, apart, differing
from calibration.graph.probabilities import is_probability
from calibration.proof.first_difference import values_of
from calibration.proof.module_and_graph import check_first_link, how_far
from calibration.rewrites.fold import fold
from pipeline.artifacts import FLOAT_MODEL, Network
from pipeline.images.batches import ordered_batches
from pipeline.images.preprocessing import Preprocessing, normalise
from pipeline.images.probe_images import check_finite
from pipeline.images.split_images import SplitImages
from pipeline.tools.randomness import generator_for

#: How many images are enough for a fault of capture to show: it shows in every one of them.
_COUNT = 4


def some_images(images: SplitImages, preprocessing: Preprocessing, *, seed: int) -> Tensor:
    """Up to four readable images of those that train, drawn by the seed, normalised, float32 [B, C, H, W]."""
    order = images.training[torch.randperm(len(images.training), generator=generator_for(seed, "first link")).numpy()]
    chosen = list[Tensor]()
    for batch in ordered_batches(images.source, order, preprocessing, batch_size=_COUNT):
        chosen.extend(batch.images)
        if len(chosen) >= _COUNT:
            break
    return normalise(torch.stack(chosen[:_COUNT]), preprocessing)


def check_on_images(network: Network, images: Tensor) -> None:
    """Raise UserError unless the captured graph computes what the module does with images float32 [B, C, H, W].

    And unless that are numbers: what is NaN there can be held against nothing. Folding is held against the captured
    graph row by row: RewriteChangedOutputs names the one that changed something.
    """
    check_finite(network.module, network.captured, images, source=network.source, shown="images of --data")
    check_first_link(
        network.module, network.captured, images, source=network.source, shown="images of --data", numbers=True
    )
    fold(network.captured, check=images)


def check_float_file(model: Serialised, network: Network, images: Tensor, *, batch: int | None) -> None:
    """Raise UserError, naming the first node, unless a float file gives on ONNX Runtime what the module does.

    `images` float32 [B, C, H, W]; `batch` is the batch size that the file fixes, None where it is free.
    """
    eager = Eager(network.module, one_image=interface_of(network.captured).one_image)
    expected = eager(images)
    (results,) = (node.args[0] for node in network.folded.graph.nodes if node.op == "output")
    least = [LEAST_PROBABILITY if is_probability(result) else 0.0 for result in results]
    moved = differing(_run(model, images, batch), expected, eager, images, least=least)
    if not moved:
        return
    index, difference = moved[0]
    raise UserError(
        f"{network.source}: the float file {FLOAT_MODEL} does not compute what the network does: with images of --data,"
        f" output {network.outputs[index].name} {how_far(difference)} on ONNX Runtime;"
        f" {_first_node(model, network, images, batch)}. Write that part otherwise in a builder given as --teacher"
        " python:package.module:function, and please report it"
    )


def _run(model: Serialised, images: Tensor, batch: int | None) -> list[Tensor]:
    """A file's outputs for images, which are repeated where the file fixes a batch size that they do not fill."""
    size = batch or len(images)
    places = np.arange(-(-len(images) // size) * size) % len(images)
    batches = list[list[NDArray[Any]]]()
    with OnnxRuntime().runner(model, threads=1) as runner:
        for start in range(0, len(places), size):
            try:
                batches.append(runner.run(images[places[start : start + size]].numpy()))
            except session_failures() as error:
                raise UserError(
                    f"ONNX Runtime cannot run {FLOAT_MODEL}, the network's float file: {str(error)[:300]}; write that"
                    " part otherwise in a builder given as --teacher python:package.module:function"
                ) from error
    return [torch.from_numpy(np.concatenate(parts)[: len(images)]) for parts in zip(*batches, strict=True)]


def _first_node(model: Serialised, network: Network, images: Tensor, batch: int | None) -> str:
    """The first node whose tensor in the file is not what the folded graph computes."""
    known, whole = values_of(network.folded, images), parsed(model)
    own = {output.name for output in whole.graph.output}
    written = [name for node in whole.graph.node for name in node.output if name in known and name not in own]
    del whole.graph.output[:]
    whole.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in written)
    targets = {node.name: str(node.target) for node in network.folded.graph.nodes}
    for name, value in zip(written, _run(serialise(whole, name=FLOAT_MODEL), images, batch), strict=True):
        if not apart(value, known[name]) <= LARGEST_DIFFERENCE:
            return f"the first node that differs is {name} ({targets[name]})"
    return "the node that differs is the one that writes it"
