"""What the outputs of a network hold: classes, labels or plain values, and what each of them decides."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from backends.device.bundle_check.same_answer import answers
from calibration.errors import UserError
from pipeline.networks.outputs.final_activation import Activation
from pipeline.tools.source_text import batch_shape

Holds = Literal["classes", "labels", "values"]

# Between these a probability has logits that a loss can use: the output of an integer sigmoid may be 0 or 1.
_LEAST_LOGARITHM, _LEAST_PROBABILITY = 1e-30, 2.0**-20


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a user or a source says of an output; `activation`: what the network has done to its logits already."""

    holds: Holds
    axis: int = 1
    activation: Activation | None = None
    embedding: bool = False


OUTPUT_KINDS: dict[str, Kind] = {
    "classes": Kind(holds="classes"),
    "classes-last": Kind(holds="classes", axis=-1),
    "labels": Kind(holds="labels"),
    "probabilities": Kind(holds="classes", activation="softmax"),
    "probabilities-last": Kind(holds="classes", axis=-1, activation="softmax"),
    "label-probabilities": Kind(holds="labels", activation="sigmoid"),
    "embedding": Kind(holds="values", embedding=True),
    "values": Kind(holds="values"),
}


@dataclass(frozen=True, kw_only=True)
class Output:
    """One output, [B, ...].

    `holds`: "classes" (which one is right, along `axis`), "labels" (a yes or no each) or "values" (numbers that are
    what they say: boxes, depths, features). Of the first two it gives logits, or with `activation` what a softmax or
    sigmoid has made of them; `shown`: the network's own graph shows that one, and the logits in front of it. `shape`
    without the batch, -1 where it is free. `embedding`: the values of an image are a vector that is compared with
    those of others. `names`: of the classes, in order; empty where nobody said them.
    """

    name: str
    holds: Holds
    axis: int
    shape: tuple[int, ...]
    activation: Activation | None = None
    shown: bool = False
    embedding: bool = False
    names: tuple[str, ...] = ()
    negligible: float = 0.0
    """Of values: a difference that is none, in their unit; above 0 where a sigmoid or softmax gives them."""
    names_are_final: bool = False
    """Whether the user has named them: what is called otherwise is then no class of this network."""

    @property
    def decisions(self) -> int | None:
        """How much is decided per image: 1 for a classifier, the pixels of a map; None for values."""
        return None if self.holds == "values" else int(torch.Size(self.positions).numel())

    @property
    def positions(self) -> tuple[int, ...]:
        """The shape of what is decided per image: () for a classifier, [H, W] of a map."""
        sizes = list(self.shape)
        if self.holds == "classes":
            sizes.pop(self._place)
        return tuple(sizes)

    @property
    def classes(self) -> int | None:
        """How many classes there are to choose from; None where none is chosen."""
        return self.shape[self._place] if self.holds == "classes" else None

    @property
    def _place(self) -> int:
        return self.axis - 1 if self.axis > 0 else self.axis

    @property
    def is_classifier(self) -> bool:
        """Whether it says one class per image, [B, K]."""
        return self.holds == "classes" and len(self.shape) == 1

    @property
    def threshold(self) -> float:
        """Above which a label is a yes."""
        return 0.5 if self.activation == "sigmoid" else 0.0

    def decided(self, output: Tensor) -> Tensor:
        """The class of every position, int64, or for labels whether each is a yes; not for values."""
        return output.argmax(self.axis) if self.holds == "classes" else (output > self.threshold).long()

    def answers(self, output: Tensor) -> NDArray[np.int64]:
        """The same as `decided` has it, as it is counted here and on devices: -1 where it is not decided by numbers."""
        return answers(as_array(output), holds=self.holds, axis=self.axis, threshold=self.threshold)

    def logits(self, output: Tensor) -> Tensor:
        """What the activation has made its output of, [B, ...], up to a constant per distribution; values as they are.

        Probabilities give their logarithms, which are logits up to a constant: softmax(log p / T) is the softmax of
        the network's own logits / T. A sigmoid's give log(p / (1 - p)), within +- 14.
        """
        if self.activation == "softmax":
            return output.clamp_min(_LEAST_LOGARITHM).log()
        return torch.logit(output, eps=_LEAST_PROBABILITY) if self.activation == "sigmoid" else output

    def activated(self, logits: Tensor) -> Tensor:
        """The way back: what the network's own activation makes of logits."""
        if self.activation == "sigmoid":
            return logits.sigmoid()
        softmaxes = {"softmax": functional.softmax, "log-softmax": functional.log_softmax}
        return softmaxes[self.activation](logits, dim=self.axis) if self.activation is not None else logits

    def in_own_form(self, values: Tensor, other: Output) -> Tensor:
        """What another network said, whose output is `other`, as this one says it: its logits, or probabilities."""
        return values if other.activation == self.activation else self.activated(other.logits(values))

    def as_two_sided(self, logits: Tensor) -> Tensor:
        """Logits as [B, K, ...] whose softmax over axis 1 is the distribution; a label is one of two classes."""
        if self.holds == "labels":
            return torch.stack([logits, torch.zeros_like(logits)], 1)
        return logits.movedim(self.axis, 1)

    def to_json(self) -> dict[str, object]:
        """What a manifest says of it beside name and shape."""
        said: dict[str, object] = {"holds": self.holds}
        if self.holds == "classes" or self.names:
            said["class_axis"] = self.axis
        if self.activation is not None:
            said["activation"] = self.activation
        if self.holds == "labels":
            said["threshold"] = self.threshold
        if self.embedding:
            said["embedding"] = True
        if self.negligible:
            said["negligible"] = self.negligible
        return said | ({"class_names": list(self.names)} if self.names else {})


def as_array(output: Tensor) -> NDArray[Any]:
    """A network's output as an array, wherever it was computed; bfloat16, which arrays have not, as float32."""
    output = output.detach().cpu()
    return np.asarray((output.float() if output.dtype == torch.bfloat16 else output).numpy())


def primary(outputs: Sequence[Output]) -> int:
    """Index of the output that a network is scored by: its first classes, else its first labels, else its first."""
    for holds in ("classes", "labels"):
        for index, output in enumerate(outputs):
            if output.holds == holds:
                return index
    return 0


def said_aloud(outputs: Sequence[Output], known: Collection[str]) -> tuple[str, ...]:
    """What to tell of outputs: those whose meaning is assumed, and those that hold probabilities.

    `known`: names of those whose kind the user or the source has said.
    """
    lines = [_assumption(output) for output in outputs if output.name not in known]
    lines += [_of_activation(output) for output in outputs if output.activation is not None]
    return tuple(line for line in lines if line)


def _assumption(output: Output) -> str:
    shown, flag = f"{output.name} {batch_shape(output.shape)}", f"--output-kinds {output.name}="
    if output.holds == "classes" and output.activation is None:
        return (
            f"{shown} is taken to hold logits of {output.classes} classes, one of them right; {flag}embedding,"
            f" {flag}labels (a yes or no each) or {flag}values says otherwise"
        )
    if output.holds == "labels":
        return (
            f"{shown} is taken to hold yes or no answers, since it ends in a sigmoid; where one of them is right:"
            f" {flag}classes, where they are numbers: {flag}values"
        )
    if output.embedding:
        return f"{shown} is taken to hold embeddings, since its vectors have unit length; {flag}KIND says otherwise"
    if output.holds == "values":
        return (
            f"{shown} is taken to hold values: learned by squared error, scored by R2; where it is the logit of a yes"
            f" or no: {flag}labels"
        )
    return ""


def _of_activation(output: Output) -> str:
    word = "logarithms of probabilities" if output.activation == "log-softmax" else "probabilities"
    if output.shown:
        return (
            f"{output.name} ends in a {output.activation} and so holds {word}: the loss compares the logits in front of"
            " it"
        )
    made = "log(p / (1 - p))" if output.activation == "sigmoid" else "log p"
    return f"{output.name} holds {word}: the loss compares {made}, which are its logits"


def parse_kinds(pairs: Sequence[str]) -> dict[str, str]:
    """Read NAME=KIND pairs. Raises UserError for anything else, listing the kinds."""
    kinds: dict[str, str] = {}
    for pair in pairs:
        name, equals, kind = pair.partition("=")
        if not name or not equals or kind not in OUTPUT_KINDS:
            raise UserError(f"--output-kinds {pair}: must be NAME=KIND, with KIND {', '.join(OUTPUT_KINDS)}")
        kinds[name] = kind
    return kinds
