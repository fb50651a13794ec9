"""The logits of a network's outputs, which losses compare: outputs as they are, or what a final activation reads.

Where a network ends in a softmax or sigmoid, the tensor in front of it is read. That is exact where the activation is
not: a float32 softmax gives 0 from a distance of 104 on, an integer sigmoid steps of 1 / 255 or so. Where the graph
does not show it, logits are made of the probabilities (`Output.logits`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.fx import GraphModule

from pipeline.networks.outputs.final_activation import final_activation
from pipeline.networks.outputs.meaning import Output


@dataclass(frozen=True, kw_only=True)
class LogitReading:
    """How the logits of one output are read.

    `node`: of the float graph, whose tensor is read instead of the output; None: the output's own. `made`: what makes
    logits of that tensor.
    """

    node: str | None
    made: Callable[[Tensor], Tensor]


def logit_readings(graph_module: GraphModule, outputs: Sequence[Output]) -> tuple[LogitReading, ...]:
    """How to read the logits of each output of a float graph; `outputs` are its own."""
    readings = []
    for index, output in enumerate(outputs):
        activation = None if output.activation is None else final_activation(graph_module, index)
        if activation is None:
            readings.append(LogitReading(node=None, made=output.logits))
        else:
            readings.append(LogitReading(node=activation.logits, made=activation.moved))
    return tuple(readings)
