"""Load a float network, capture it as a graph and fold its BatchNorms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from calibration.graph.interface import interface_of, set_free_size
from calibration.graph.nearness import apart
from calibration.graph.operators import fixed_layers, static_shape
from calibration.proof.module_and_graph import check_first_link
from calibration.rewrites.fold import fold
from pipeline.artifacts import Network
from pipeline.images.preprocessing import Preprocessing
from pipeline.images.preprocessing_overrides import Overrides
from pipeline.images.probe_images import noise
from pipeline.networks.checked_capture import checked_capture, of_one_image
from pipeline.networks.declared import NOTHING, Declared
from pipeline.networks.models import LoadedModel, load_model
from pipeline.networks.outputs.class_order import named_outputs
from pipeline.networks.outputs.described import describe_outputs
from pipeline.networks.outputs.meaning import Output, said_aloud


def load_network(
    source: str,
    declared: Declared = NOTHING,
    *,
    weights: Path | None = None,
    otherwise: Preprocessing | None = None,
    like: Sequence[Output] = (),
    **overrides: Unpack[Overrides],
) -> Network:
    """Load `kind:rest`, capture it over a free batch size and fold it; the fold is checked on random images.

    `like`: the outputs of a network that this one is to answer like. `otherwise` and overrides: as of `load_model`.

    Raises UserError for whatever is wrong with the source, and RewriteChangedOutputs when a row of
    `FOLDING` changed the network.
    """
    loaded = load_model(source, weights=weights, submodule=declared.submodule, otherwise=otherwise, **overrides)
    return network_of(loaded, declared, like=like)


def network_of(loaded: LoadedModel, declared: Declared = NOTHING, *, like: Sequence[Output] = ()) -> Network:
    """Capture what was loaded, of which `declared.submodule` names the part, and fold it; see `load_network`."""
    p, source = loaded.preprocessing, loaded.source
    named = source if declared.submodule is None else f"{source} (sub-module {declared.submodule})"
    captured, example = checked_capture(loaded.module, p, source=named, static_batch=declared.static_batch)
    one_image = interface_of(captured).one_image
    folded = fold(captured, check=example)
    difference = _difference_of(captured, folded, example)
    other = _at_another_size(loaded.module, p, named, one_image=one_image) if declared.dynamic_size else None
    if other is not None:
        set_free_size(folded, other)
    of_source = {name: kind for name, kind in loaded.output_kinds.items() if name in interface_of(folded).outputs}
    kinds = {**of_source, **declared.kinds}
    outputs = describe_outputs(folded, kinds, source=source, features=loaded.features, like=like, example=example)
    outputs = named_outputs(outputs, declared.class_names or loaded.class_names, said_by=declared.classes_said_by)
    known = {output.name for output in outputs} if loaded.features or like else kinds
    remarks = [*said_aloud(outputs, known), _of_fixed_layers(folded, source)]
    remarks += [of_one_image(source)] if one_image else []
    return Network(
        source=source,
        module=loaded.module,
        captured=captured,
        folded=folded,
        preprocessing=p,
        outputs=outputs,
        fold_difference=difference,
        notes=(*loaded.notes, *(remark for remark in remarks if remark)),
        other=other,
    )


def _difference_of(captured: GraphModule, folded: GraphModule, images: Tensor) -> float:
    """The largest difference that folding makes to an output for images [B, C, H, W], relative to its largest value."""
    with torch.no_grad():
        return max((apart(a, b) for a, b in zip(folded(images), captured(images), strict=True)), default=0.0)


def _of_fixed_layers(folded: GraphModule, source: str) -> str | None:
    """What to tell of layers that training cannot reach."""
    fixed = fixed_layers(folded)
    if not fixed:
        return None
    shown = ", ".join(fixed[:3]) + (f" and {len(fixed) - 3} more" if len(fixed) > 3 else "")
    return (
        f"{source}: the weights of {shown} are no parameters of the network: rounded, not trained; layers in a plain"
        " list belong into nn.ModuleList"
    )


def other_size(preprocessing: Preprocessing) -> Preprocessing:
    """The second size that a network of free size is captured and checked at; the sides differ, and grow by 32s."""
    height, width = preprocessing.height + 32, preprocessing.width + 64
    return replace(preprocessing, height=height, width=width, resize=None, fill=None, placement="centre")


def _at_another_size(module: nn.Module, preprocessing: Preprocessing, source: str, *, one_image: bool) -> GraphModule:
    try:
        example = noise(other_size(preprocessing), "another size")
        captured = capture(module, example, source=source, one_image=one_image)
        check_first_link(module, captured, example, source=source, shown="random images")
        return fold(captured)
    except UserError as error:
        raise UserError(f"--dynamic-size: at another size {error}") from error


def check_same_outputs(student: Network, teacher: Network, *, flag: str = "student") -> None:
    """Raise UserError when the two networks' inputs or outputs have other shapes: nothing could be distilled.

    `flag` named the first network.
    """
    if student.preprocessing != teacher.preprocessing:
        raise UserError(
            f"--{flag} {student.source} takes other images than --teacher {teacher.source}:"
            f" {_difference(student.preprocessing, teacher.preprocessing)}; say for both how they are prepared, with"
            " --image-size, --fit, --resize, --interpolation, --channel-order, --mean and --std"
        )
    shapes = []
    for network in (student, teacher):
        output = next(node for node in network.folded.graph.nodes if node.op == "output")
        shapes.append([static_shape(value) for value in output.args[0]])
    if shapes[0] != shapes[1]:
        raise UserError(
            f"--{flag} {student.source} has outputs {shapes[0]} and --teacher {teacher.source} {shapes[1]}:"
            " they must be the same, but for the batch"
        )


def _difference(own: Preprocessing, other: Preprocessing) -> str:
    """The fields in which two preprocessings differ, with both values."""
    mine, theirs = own.to_json(), other.to_json()
    return ", ".join(f"{key} {value}, not {theirs[key]}" for key, value in mine.items() if value != theirs[key])
