"""Where a network is divided to be reconstructed: blocks of a few layers that join at few tensors.

Layers that feed one another are better rounded together (Li et al., BRECQ, arXiv 2102.05426, section 3.2: a residual
block at a time). Blocks are found from the graph alone, as it is of any network: it is cut where the fewest tensors are
alive, which in a residual network is between its blocks, and in one with long skips inside them [ours].
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch.fx import GraphModule, Node

from calibration.graph.operators import is_tensor
from calibration.simulation.prepared import PreparedNetwork

# A block that would hold more layers is cut where more tensors are alive; single layers in a row are joined up to so
# many [ours].
_MOST_LAYERS, _JOINED_LAYERS = 8, 3


@dataclass(frozen=True, kw_only=True)
class Block:
    """Consecutive layers of a folded graph, by names of nodes."""

    inputs: tuple[str, ...]
    """The tensors that it reads."""
    outputs: tuple[str, ...]
    """Those that it makes for blocks behind it, then outputs of the network that nothing else reads."""
    handed_on: tuple[str, ...]
    """The tensors that are alive behind it: outputs of its own or inputs that go on."""
    layers: tuple[str, ...]
    """Its layers with rounded weights."""


def blocks_of(folded: GraphModule, network: PreparedNetwork) -> tuple[Block, ...]:
    """The blocks of a prepared network, in the order in which they run; every layer of its plan is in one of them."""
    return _Division(folded, network).blocks()


class _Division:
    """One graph, cut at positions: behind the node of that index."""

    def __init__(self, folded: GraphModule, network: PreparedNetwork) -> None:
        self.order, plan = list(folded.graph.nodes), network.plan
        self.weighted = {placement.layer for placement in plan.weights}
        readers = {placement.tensor: frozenset(placement.readers) for placement in plan.activations}
        position = {node: index for index, node in enumerate(self.order)}
        self.first = next(index for index, node in enumerate(self.order) if node.op == "placeholder")
        of_images = set[Node]()
        for node in self.order:
            if node.op == "placeholder" or not of_images.isdisjoint(node.all_input_nodes):
                of_images.add(node)
        #: By position, what is read behind it by more than the network's output.
        self.alive: list[list[Node]] = [[] for _ in self.order]
        #: By position, whether all that is alive there is held on grids by all who read it.
        self.joins = [True] * len(self.order)
        self.results = {node for node in self.order if any(user.op == "output" for user in node.users)}
        for node in self.order:
            users = [user for user in node.users if user.op != "output"]
            if node not in of_images or not users:
                continue
            for index in range(position[node], max(position[user] for user in users)):
                self.alive[index].append(node)
                read = {user.name for user in users if position[user] > index}
                rounded = node.name in network.integers and (
                    node.name in plan.passthrough or read <= readers.get(node.name, frozenset())
                )
                self.joins[index] &= rounded and is_tensor(node)

    def blocks(self) -> tuple[Block, ...]:
        """The blocks between the cuts."""
        last = len(self.order) - 1
        blocks = list[tuple[int, int]]()
        for low, high in self._cut(self.first, last, alive=1):
            if blocks and self._layers(blocks[-1][0], high) <= _JOINED_LAYERS:
                low, _ = blocks.pop()
            blocks.append((low, high))
        return tuple(self._block(low, high) for low, high in blocks)

    def _block(self, low: int, high: int) -> Block:
        inside, alive = self.order[low + 1 : high + 1], self.alive[high]
        begins = [self.order[low]] if low == self.first else self.alive[low]
        ends = [node for node in alive if node in inside]
        done = [node for node in inside if node in self.results and node not in ends]
        return Block(
            inputs=tuple(node.name for node in begins),
            outputs=tuple(node.name for node in (*ends, *done)),
            handed_on=tuple(node.name for node in alive),
            layers=tuple(node.name for node in inside if node.name in self.weighted),
        )

    def _layers(self, low: int, high: int) -> int:
        return sum(node.name in self.weighted for node in self.order[low + 1 : high + 1])

    def _cut(self, low: int, high: int, *, alive: int) -> list[tuple[int, int]]:
        """The pieces of what lies between two positions, at whose ends `alive` tensors are alive at most."""
        inner = [
            index
            for index in range(low + 1, high)
            if self.alive[index] and self.joins[index] and self._layers(low, index) and self._layers(index, high)
        ]
        if not inner:
            return [(low, high)]
        fewest = min(len(self.alive[index]) for index in inner)
        if fewest > alive and self._layers(low, high) <= _MOST_LAYERS:
            return [(low, high)]
        cuts = [index for index in inner if len(self.alive[index]) == fewest]
        # Of several positions between two layers the last: what only moves or clips stays with the layer before it.
        kept = [
            cut
            for cut, following in zip(cuts, [*cuts[1:], None], strict=True)
            if following is None or self._layers(cut, following)
        ]
        ends = [low, *kept, high]
        return [piece for begin, end in itertools.pairwise(ends) for piece in self._cut(begin, end, alive=fewest)]
