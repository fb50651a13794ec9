"""Teachers and students by name, `kind:rest`, with what their images must look like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Unpack

import torch
from torch import nn

from calibration.errors import UserError
from pipeline.images.preprocessing import Preprocessing
from pipeline.images.preprocessing_overrides import FLAGS, Overrides, assumed_preprocessing, with_overrides
from pipeline.networks.sources.loose_names import full_source
from pipeline.networks.sources.sourced import SourcedModel
from pipeline.networks.sources.table import MODEL_SOURCES
from pipeline.networks.unsuitable_parts import check_numbers, check_parts, without_inference_mode
from pipeline.tools.source_text import close_matches, split_kind
from pipeline.tools.user_code import UserCode


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A float network with what its images must look like."""

    module: nn.Module  # in eval mode, float32, on the CPU
    preprocessing: Preprocessing
    source: str  # kind:rest, also where it was named otherwise
    notes: tuple[str, ...]  # what the user should be told, such as an assumed preprocessing
    output_kinds: Mapping[str, str] = field(default_factory=dict)  # output -> a key of OUTPUT_KINDS, where known
    class_names: tuple[str, ...] = ()  # in the order of the outputs, where the source knows them
    features: bool = False  # whether it is a part of a network, whose outputs are no answers but features


def load_model(
    source: str,
    *,
    weights: Path | None = None,
    submodule: str | None = None,
    otherwise: Preprocessing | None = None,
    **overrides: Unpack[Overrides],
) -> LoadedModel:
    """Load the network that `kind:rest` names, with the weights of a file where one is given.

    `submodule` is the dotted path of the part to hand over instead of the whole.

    Overrides complete a source that carries no preprocessing, 224 px and ImageNet's statistics by default, and replace
    the parts of one that does; the notes say either. `otherwise` is taken in place of these defaults.

    Raises:
        UserError: whatever is wrong with the source, the file or the numbers, in one line.
    """
    source, taken = full_source(source)
    kind, rest = split_kind(source, MODEL_SOURCES, "network")
    sourced = MODEL_SOURCES[kind](rest, weights)
    sourced = replace(sourced, notes=taken + sourced.notes)
    return completed(sourced, source, submodule=submodule, otherwise=otherwise, **overrides)


def completed(
    sourced: SourcedModel,
    source: str,
    *,
    submodule: str | None = None,
    otherwise: Preprocessing | None = None,
    **overrides: Unpack[Overrides],
) -> LoadedModel:
    """A network as a source hands it over, or as a user has it in hand, ready to be captured; see `load_model`.

    Its module is made float32, in evaluation mode and moved to the CPU, in place. `source` names it in errors.
    """
    module, notes, output_kinds = sourced.module, sourced.notes, sourced.output_kinds
    if submodule is not None:
        module, output_kinds = _part(module, submodule, source), {}
        notes += (f"{source}: its sub-module {submodule} alone is quantised; what follows it stays outside",)
    elif sourced.only_parts:
        raise UserError(sourced.only_parts)
    with UserCode(source):  # a network may have its own versions of all that it is asked for, which need not return it
        check_parts(module, source)
        module = without_inference_mode(module)
        tensors = [*module.parameters(), *module.buffers()]
        dtypes = {str(tensor.dtype) for tensor in tensors if tensor.is_floating_point()}
        module.to(device="cpu", dtype=torch.float32)
        module.eval()
        check_numbers(module, source)
    if dtypes - {"torch.float32"}:
        notes += (f"converted to float32 from {', '.join(sorted(dtypes))}",)
    if sourced.preprocessing is None and otherwise is not None:
        preprocessing = with_overrides(otherwise, **overrides)
    elif sourced.preprocessing is None:
        preprocessing = assumed_preprocessing(_image_channels(module), source, **overrides)
        assumed = [FLAGS[name] for name in ("image_size", "mean", "std") if overrides.get(name) is None]
        if assumed:
            notes += (
                f"{source} carries no preprocessing: {preprocessing_words(preprocessing)} assumed; "
                f"where that is wrong, set {', '.join(assumed)}",
            )
    else:
        preprocessing = with_overrides(sourced.preprocessing, **overrides)
        if preprocessing != sourced.preprocessing:
            notes += (
                f"{preprocessing_words(preprocessing)}, as asked for, instead of the source's own "
                f"{preprocessing_words(sourced.preprocessing)}",
            )
    return LoadedModel(
        module=module,
        preprocessing=preprocessing,
        source=source,
        notes=notes,
        output_kinds=output_kinds,
        class_names=() if submodule is not None else sourced.class_names,
        features=submodule is not None,
    )


def _image_channels(module: nn.Module) -> int | None:
    """Channels of the first convolution, where they are those of images."""
    first = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
    return first.in_channels if first is not None and first.in_channels in (1, 3) else None


def _part(module: nn.Module, path: str, source: str) -> nn.Module:
    """The sub-module of a dotted path."""
    parts: dict[str, nn.Module] = dict(module.named_modules())
    if not path or path not in parts:
        raise UserError(f"--submodule {path!r}: {source} has no such part; {close_matches(path, [*parts][1:])}")
    return parts[path]


def fit_words(preprocessing: Preprocessing) -> str:
    """How an image of any shape becomes one of the network's size, in words."""
    p = preprocessing
    size = f"{p.width}x{p.height} px"
    if p.fit == "letterbox":
        return f"letterboxed to {size} ({p.placement}, {_numbers(p.fill or ())} around)"
    if isinstance(p.resize, tuple):
        return f"stretched to {p.resize[0]}x{p.resize[1]} px and a crop of {size}"
    return f"shorter side to {p.resize} px and a crop of {size}" if p.resize else f"stretched to {size}"


def preprocessing_words(preprocessing: Preprocessing) -> str:
    """From an image to the network's input, in words."""
    p = preprocessing
    division = "" if p.divisor == 255 else f"divided by {p.divisor:.4g}, "
    deep = "" if p.stored_bits == 16 else f", {p.stored_bits} bits of deep grey"
    return (
        f"{fit_words(p)}, {p.interpolation}, {p.channel_order}, {division}mean {_numbers(p.mean)}, std"
        f" {_numbers(p.std)}{deep}"
    )


def _numbers(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:.4g}" for value in values)
