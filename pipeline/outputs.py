"""What the outputs of a network hold: classes, labels or plain values, and what each of them decides."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.fx import GraphModule

from calibration.errors import UserError
from calibration.operators import static_shape

Holds = Literal["classes", "labels", "values"]

#: What a user or a source may say of an output -> (what it holds, the axis of its classes).
OUTPUT_KINDS: dict[str, tuple[Holds, int]] = {
    "classes": ("classes", 1),
    "classes-last": ("classes", -1),
    "labels": ("labels", 1),
    "values": ("values", 1),
}


@dataclass(frozen=True, kw_only=True)
class Output:
    """One output, [B, ...].

    `holds`: "classes" (logits of which one is right, along `axis`), "labels" (logits that each stand for a yes or no
    of their own) or "values" (numbers that are what they say: boxes, depths, features). `shape` without the batch, -1
    where it is free.
    """

    name: str
    holds: Holds
    axis: int
    shape: tuple[int, ...]

    @property
    def decisions(self) -> int | None:
        """How much is decided per image: 1 for a classifier, the pixels of a map; None for values."""
        if self.holds == "values":
            return None
        sizes = list(self.shape)
        if self.holds == "classes":
            sizes.pop(self.axis - 1 if self.axis > 0 else self.axis)
        return int(torch.Size(sizes).numel())

    def decided(self, output: Tensor) -> Tensor:
        """The class of every position, int64, or for labels whether each is a yes; not for values."""
        return output.argmax(self.axis) if self.holds == "classes" else (output > 0).long()

    def as_logits(self, output: Tensor) -> Tensor:
        """The output as logits [B, K, ...] whose softmax over axis 1 is its distribution; a label is one of two."""
        if self.holds == "labels":
            return torch.stack([output, torch.zeros_like(output)], 1)
        return output.movedim(self.axis, 1)

    def to_json(self) -> dict[str, object]:
        """What a manifest says of it beside name and shape."""
        return {"holds": self.holds} | ({"class_axis": self.axis} if self.holds == "classes" else {})


def describe_outputs(
    graph_module: GraphModule, kinds: Mapping[str, str], *, source: str, features: bool = False
) -> tuple[Output, ...]:
    """The outputs of a captured graph, by name; `kinds` says of some what they hold (keys of OUTPUT_KINDS).

    Of the others, one with a channel axis of two or more holds classes there, as classifiers and segmentation networks
    do, any other holds values; so does every one of `features`. Raises UserError for a name that is no output and for
    classes on an axis of one.
    """
    names = graph_module.meta["outputs"]
    node = next(node for node in graph_module.graph.nodes if node.op == "output")
    unknown = sorted(set(kinds) - set(names))
    if unknown:
        raise UserError(f"--output-kinds {unknown[0]}: {source} has no output of that name; it has {', '.join(names)}")
    found = []
    for name, value in zip(names, node.args[0], strict=True):
        shape = static_shape(value)[1:]
        kind = kinds.get(name, "values" if features or not shape or shape[0] == 1 else "classes")
        holds, axis = OUTPUT_KINDS[kind]
        if holds == "classes" and (not shape or shape[axis - 1 if axis > 0 else axis] == 1):
            raise UserError(
                f"--output-kinds {name}={kind}: {source} gives it the shape {['batch', *shape]}, with no two classes"
                " there to choose from; labels (a yes or no each) and values are possible"
            )
        found.append(Output(name=name, holds=holds, axis=axis, shape=shape))
    return tuple(found)


def guessed(outputs: Sequence[Output], known: Collection[str]) -> str | None:
    """What to say of outputs that are taken for what their shape looks like; nothing of a classifier's only one."""
    found = [output for output in outputs if output.name not in known]
    if not found or (len(outputs) == 1 and len(outputs[0].shape) <= 1):
        return None
    shown = ", ".join(f"{output.name} {['batch', *output.shape]} {output.holds}" for output in found)
    return f"by their shapes, outputs are taken to hold: {shown}; --output-kinds NAME=KIND says otherwise"


def primary(outputs: Sequence[Output]) -> int:
    """Index of the output that a network is scored by: its first classes, else its first labels, else its first."""
    for wanted in ("classes", "labels"):
        for index, output in enumerate(outputs):
            if output.holds == wanted:
                return index
    return 0


def parse_kinds(pairs: Sequence[str]) -> dict[str, str]:
    """Read NAME=KIND pairs. Raises UserError for anything else, listing the kinds."""
    kinds: dict[str, str] = {}
    for pair in pairs:
        name, equals, kind = pair.partition("=")
        if not name or not equals or kind not in OUTPUT_KINDS:
            raise UserError(f"--output-kinds {pair}: must be NAME=KIND, with KIND {', '.join(OUTPUT_KINDS)}")
        kinds[name] = kind
    return kinds
