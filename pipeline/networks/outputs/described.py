"""What the outputs of a captured network hold: what was said of them, what its graph shows, else a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from backends.device.bundle_check.same_answer import NEGLIGIBLE_PROBABILITY
from calibration.errors import UserError
from calibration.graph.interface import interface_of
from calibration.graph.operators import static_shape
from calibration.graph.probabilities import is_probability
from pipeline.networks.outputs.final_activation import FinalActivation, final_activation
from pipeline.networks.outputs.meaning import OUTPUT_KINDS, Kind, Output
from pipeline.tools.source_text import batch_shape

# Of float32 sums over as many classes or dimensions as networks have.
_SUM_ERROR = 1e-3
_QUESTION = (
    "classes (logits, one of them right, on axis 1), classes-last, probabilities or probabilities-last (softmax done),"
    " labels (logits of a yes or no each), label-probabilities (sigmoid done), embedding, values (boxes, depths,"
    " pixels; numbers of several kinds are judged apart)"
)


def describe_outputs(
    graph_module: GraphModule,
    kinds: Mapping[str, str],
    *,
    source: str,
    features: bool = False,
    like: Sequence[Output] = (),
    example: Tensor | None = None,
) -> tuple[Output, ...]:
    """The outputs of a captured graph, by name; `kinds` says of some what they hold (keys of OUTPUT_KINDS).

    Of the others, one that ends in a softmax holds classes, a vector that ends in a sigmoid yes or no answers, one of
    unit length an embedding, a network's only vector [B, K] classes and a single number a value. All `features` are
    values. `like`: outputs of a network that this one is to answer like, by name or, of the same shape, by place.
    `example`: images float32 [B, C, H, W], whose outputs show what the graph does not.

    Raises UserError for a name that is no output, for classes on an axis of one, for a kind that the graph
    contradicts, and for outputs whose shape says nothing of what they hold: it asks for them.
    """
    names = interface_of(graph_module).outputs
    node = next(node for node in graph_module.graph.nodes if node.op == "output")
    if unknown := sorted(set(kinds) - set(names)):
        raise UserError(f"--output-kinds {unknown[0]}: {source} has no output of that name; it has {', '.join(names)}")
    values: Sequence[Tensor | None] = [None] * len(names)
    if example is not None:
        with torch.no_grad():
            values = graph_module(example)
    described: list[Output] = []
    open_questions: list[str] = []
    for index, (name, result) in enumerate(zip(names, node.args[0], strict=True)):
        shape = static_shape(result)[1:]
        activation = final_activation(graph_module, index)
        said = OUTPUT_KINDS.get(kinds.get(name, "values" if features else ""))
        said = said or _like(name, index, shape, like)
        kind = said or _shown_kind(shape, activation, values[index], alone=len(names) == 1)
        if kind is None:
            open_questions.append(f"{name} {batch_shape(shape)}")
            continue
        _check(name, kind, shape, activation, source)
        shown = activation is not None and kind.holds != "values"
        made = activation.kind if shown and activation is not None else kind.activation
        described.append(
            Output(
                name=name,
                holds=kind.holds,
                axis=kind.axis,
                shape=shape,
                activation=made,
                shown=shown,
                embedding=kind.embedding,
                negligible=NEGLIGIBLE_PROBABILITY if kind.holds == "values" and is_probability(result) else 0.0,
            )
        )
    if open_questions:
        flags = ",".join(f"{question.split(' ')[0]}=KIND" for question in open_questions)
        raise UserError(
            f"{source}: the shape of {', '.join(open_questions)} does not say what it holds: add --output-kinds"
            f" {flags}, with KIND {_QUESTION}"
        )
    return tuple(described)


def _like(name: str, index: int, shape: tuple[int, ...], like: Sequence[Output]) -> Kind | None:
    """The kind of the corresponding output of another network, whose activation is its own affair."""
    same = [output for output in like if output.name == name] or like[index : index + 1]
    if not same or same[0].shape != shape:
        return None
    other = same[0]
    said = None if other.shown else other.activation
    return Kind(holds=other.holds, axis=other.axis, activation=said, embedding=other.embedding)


def _shown_kind(
    shape: tuple[int, ...], activation: FinalActivation | None, values: Tensor | None, *, alone: bool
) -> Kind | None:
    """What an output of which nothing was said holds; None where that must be asked."""
    is_vector = len(shape) >= 1 and all(size == 1 for size in shape[1:])
    if activation is not None and activation.axis is not None:
        return Kind(holds="classes", axis=activation.axis)
    if not shape or (is_vector and shape[0] == 1):
        return Kind(holds="labels" if activation is not None else "values")
    if not is_vector:
        return None
    if activation is not None:
        return Kind(holds="labels")
    if values is not None:
        flat = values.flatten(1).double()
        ones = torch.ones(len(flat), dtype=torch.float64)
        if bool((flat >= 0).all()) and torch.allclose(flat.sum(1), ones, atol=_SUM_ERROR):
            return Kind(holds="classes", activation="softmax")
        if torch.allclose(flat.norm(dim=1), ones, atol=_SUM_ERROR):
            return Kind(holds="values", embedding=True)
    return Kind(holds="classes") if alone else None


def _check(name: str, kind: Kind, shape: tuple[int, ...], activation: FinalActivation | None, source: str) -> None:
    """Raise UserError where neither shape nor graph allow the kind."""
    word = next(word for word, known in OUTPUT_KINDS.items() if known.holds == kind.holds)
    place = kind.axis - 1 if kind.axis > 0 else kind.axis
    if kind.holds == "classes" and (not shape or shape[place] == 1):
        raise UserError(
            f"--output-kinds {name}={word}: {source} gives it the shape {batch_shape(shape)}, with no two classes"
            " there to choose from; labels (a yes or no each) and values are possible"
        )
    if activation is None or activation.axis is None or kind.holds == "values":
        return
    axis = kind.axis % (1 + len(shape))
    if kind.holds == "labels" or axis != activation.axis:
        last = "-last" if activation.axis == len(shape) and activation.axis != 1 else ""
        raise UserError(
            f"--output-kinds {name}: {source} ends it in a {activation.kind} over axis {activation.axis}, so that one"
            f" entry there is right: {name}=classes{last}, or {name}=values for numbers that are no choice"
        )
