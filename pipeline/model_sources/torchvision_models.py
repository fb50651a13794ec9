"""`torchvision:NAME`: torchvision's networks, pretrained or with the user's checkpoint."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from torch import nn

from calibration.errors import UserError
from pipeline.model_sources.sourced import SourcedModel, module_with_state, reproducible_weights
from pipeline.preprocessing import INTERPOLATIONS, Preprocessing
from pipeline.source_text import close_matches, split_options, whole_number
from pipeline.weights import load_state

# Without pretrained weights these two warn that their default initialisation is slow and about to change, and
# do not apply the input transformation that their own checkpoints need.
_INCEPTION_OPTIONS = {"init_weights": False, "transform_input": True}
_BUILDER_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": _INCEPTION_OPTIONS,
    "inception_v3": _INCEPTION_OPTIONS,
}


def load_torchvision(rest: str, weights: Path | None) -> SourcedModel:
    """Load `NAME[?weights=ENUM|none&num_classes=N]`.

    Without a file the architecture's best published weights are loaded (from the local cache, or downloaded),
    or those that ?weights= names, such as IMAGENET1K_V1; none: random. The preprocessing is always theirs.

    Raises:
        UserError: unknown name or weights, no network, or weights that do not fit.
    """
    source = f"torchvision:{rest}"
    name, options = split_options(rest, ("weights", "num_classes"), source)
    from torchvision import models  # here: the import takes a second that other sources need not wait

    # Networks whose builder is already quantised have nothing left for us to place.
    known = [candidate for candidate in models.list_models() if not candidate.startswith("quantized_")]
    if name not in known:
        raise UserError(f"unknown torchvision network {name!r}: {close_matches(name, known)}")
    classes = whole_number(options, "num_classes", source)
    published = models.get_model_weights(name)
    asked = options.get("weights", "DEFAULT" if len(published) else "none")
    if asked not in ("none", "DEFAULT", *published.__members__):
        known_weights = ", ".join(("none", "DEFAULT", *published.__members__))
        raise UserError(f"{source}: unknown weights {asked!r}; known: {known_weights}")
    chosen = published[asked if asked != "none" else "DEFAULT"] if len(published) else None
    preprocessing, notes = _preprocessing(chosen)

    def build(count: int | None) -> nn.Module:
        kwargs = _BUILDER_OPTIONS.get(name, {}) | ({} if count is None else {"num_classes": count})
        if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
            kwargs["weights_backbone"] = None  # otherwise the backbone would be downloaded
        with reproducible_weights():
            module: nn.Module = models.get_model(name, weights=None, **kwargs)
        return module

    if weights is not None:
        state = load_state(weights)
        module, more = module_with_state(build, state, classes=classes, path=weights, source=source)
        if chosen is not None and len(published) > 1 and "weights" not in options:
            others = ", ".join(member for member in published.__members__ if published[member] is not chosen)
            more += (f"preprocessing of {chosen.name} assumed (?weights= chooses that of {others})",)
        return SourcedModel(module=module, preprocessing=preprocessing, notes=notes + more)
    if asked == "none" or chosen is None:
        if "weights" not in options:
            raise UserError(f"{source} has no published weights: add --weights FILE (?weights=none: random)")
        return SourcedModel(
            module=build(classes), preprocessing=preprocessing, notes=(*notes, "random weights")
        )
    if classes is not None:
        raise UserError(
            f"{source}: num_classes needs --weights FILE or weights=none; {chosen.name} has its own"
        )
    try:
        with reproducible_weights():
            module = models.get_model(name, weights=chosen, progress=False)
    except OSError as error:
        raise UserError(
            f"{source}: cannot download {chosen.url} ({getattr(error, 'reason', error)}): fetch it "
            "elsewhere and "
            "give it with --weights FILE"
        ) from None
    except RuntimeError as error:
        if "hash" not in str(error):
            raise
        raise UserError(
            f"{source}: the download of {chosen.url} is damaged ({error}): give --weights FILE"
        ) from None
    return SourcedModel(module=module, preprocessing=preprocessing, notes=notes)


def _preprocessing(chosen: Any) -> tuple[Preprocessing | None, tuple[str, ...]]:
    """Read a weights enum's transforms; None where they are not those of a network for single images."""
    transforms: Any = chosen.transforms() if chosen is not None else None
    if not hasattr(transforms, "resize_size") or len(transforms.resize_size) != 1:
        return None, ()
    resize = transforms.resize_size[0]
    crop = getattr(transforms, "crop_size", None)
    notes: tuple[str, ...] = ()
    if crop is None:
        # Dense prediction: torchvision evaluates whole images of any size, a device needs one size.
        crop = [resize]
        notes = (
            f"torchvision evaluates this network on whole images; a centre crop of {resize} px is taken",
        )
    interpolation = transforms.interpolation.value
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"{chosen}: unexpected interpolation {interpolation}")
    return (
        Preprocessing(
            channels=3,
            height=crop[0],
            width=crop[-1],
            resize=resize,
            interpolation=interpolation,
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            channel_order="RGB",
        ),
        notes,
    )
