"""`torchvision:NAME`: torchvision's networks, pretrained or with the user's checkpoint."""

from __future__ import annotations

import inspect
import logging
import re
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import nn

from backends.device.bundle_check.stored import digest_of_file
from calibration.errors import UserError
from pipeline.images.device_preprocess import INTERPOLATIONS
from pipeline.images.preprocessing import Preprocessing
from pipeline.networks.checkpoints.files import read_checkpoint
from pipeline.networks.sources.sourced import CLASSIFIER, SourcedModel, module_with_state, reproducible_weights
from pipeline.networks.sources.torchvision_detection import WITHOUT_EPSILON, dense_part, is_detector, without_epsilon
from pipeline.tools.source_text import close_matches, split_options, whole_number

_LOGGER = logging.getLogger(__name__)

# Published weights of these expect their input transformed inside the network; init_weights=False spares a
# warning and a slow initialisation.
_INCEPTION_OPTIONS = {"init_weights": False, "transform_input": True}
_BUILDER_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": _INCEPTION_OPTIONS,
    "inception_v3": _INCEPTION_OPTIONS,
}
# DenseNets' published files have a dot where the modules' names may have none (torchvision's own renaming).
_DENSENET_KEY = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")


def load_torchvision(rest: str, weights: Path | None) -> SourcedModel:
    """Load `NAME[?weights=ENUM|none&num_classes=N]`.

    Without a file the architecture's best published weights are loaded (from torch's cache, or downloaded),
    or those that ?weights= names, such as IMAGENET1K_V1; none: random. The preprocessing is always theirs.

    Raises:
        UserError: unknown name or weights, no connection, or weights that do not fit.
    """
    source = f"torchvision:{rest}"
    name, options = split_options(rest, ("weights", "num_classes"), source)
    from torchvision import models  # here: the import takes a second that other sources need not wait

    # Networks whose builder is already quantised have nothing left for us to place.
    known = [candidate for candidate in models.list_models() if not candidate.startswith("quantized_")]
    if name not in known:
        raise UserError(f"unknown torchvision network {name!r}: {close_matches(name, known)}")
    classes = whole_number(options, "num_classes", source)
    published = models.get_model_weights(name).__members__
    asked = options.get("weights", "DEFAULT")
    if asked not in ("none", *(published or ("DEFAULT",))):
        raise UserError(f"{source}: unknown weights {asked!r}; known: {', '.join(('none', *published))}")
    chosen: Any = published.get(asked, published.get("DEFAULT"))
    preprocessing, notes = _preprocessing(chosen)
    parameters = inspect.signature(models.get_model_builder(name)).parameters

    def build(count: int | None, *, auxiliary: bool = False) -> nn.Module:
        kwargs = _BUILDER_OPTIONS.get(name, {}) | ({} if count is None else {"num_classes": count})
        if "weights_backbone" in parameters:
            kwargs["weights_backbone"] = None  # otherwise the backbone would be downloaded
        if auxiliary and "aux_loss" in parameters:
            kwargs["aux_loss"] = True
        with reproducible_weights():
            module: nn.Module = models.get_model(name, weights=None, **kwargs)
        return module

    if weights is None and asked == "none":
        module, notes = build(classes), (*notes, "random weights")
        if is_detector(module):
            return dense_part(module, source, notes=notes)
        return SourcedModel(module=module, preprocessing=preprocessing, notes=notes, output_kinds=_kinds(module))
    if weights is None and classes is not None:
        raise UserError(f"{source}: num_classes needs --weights FILE or weights=none")
    if weights is None and chosen is None:
        raise UserError(f"{source} has no published weights: add --weights FILE (?weights=none: random)")
    file = weights if weights is not None else _published_file(chosen.url, source)
    checkpoint = read_checkpoint(file)
    auxiliary = any("aux_classifier." in key for key in checkpoint.contents.tensors)
    module, more = module_with_state(
        partial(build, auxiliary=auxiliary),
        checkpoint,
        classes=classes,
        source=source,
        rename=lambda key: _DENSENET_KEY.sub(r"\1\2", key),
    )
    if auxiliary and hasattr(module, "aux_classifier"):
        module.register_module("aux_classifier", None)  # a second output that only training looks at
    if weights is not None and len(set(published.values())) > 1 and "weights" not in options:
        others = ", ".join(member for member, value in published.items() if value is not chosen)
        more += (f"preprocessing of {chosen.name} assumed (?weights= chooses that of {others})",)
    if is_detector(module):
        if weights is None and chosen.name == "COCO_V1" and name in WITHOUT_EPSILON:
            without_epsilon(module)
        return dense_part(module, source, notes=notes + more, class_names=_class_names(chosen, file))
    return SourcedModel(
        module=module,
        preprocessing=preprocessing,
        notes=notes + more,
        output_kinds=_kinds(module),
        class_names=_class_names(chosen, file),
    )


def _kinds(module: nn.Module) -> dict[str, str]:
    """What the outputs hold: torchvision's segmentation networks and classifiers both give logits of classes."""
    segments = type(module).__module__.startswith("torchvision.models.segmentation")
    return dict.fromkeys(("out", "aux"), "classes") if segments else dict(CLASSIFIER)


def _class_names(chosen: Any, file: Path) -> tuple[str, ...]:
    """The classes of published weights; nothing of a user's own, which may well be for others."""
    published = chosen is not None and file.name == Path(urlparse(chosen.url).path).name
    return tuple(chosen.meta.get("categories", ())) if published else ()


def _published_file(url: str, source: str) -> Path:
    """Return a published checkpoint in torch's cache, held against the hash in its name, wherever it came from.

    Not torchvision's own loading, which would unpickle the file.

    Raises:
        UserError: it cannot be downloaded, or what is in the cache is something else.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    expected = re.search(r"-([a-f0-9]+)\.", file.name)
    if file.is_file():
        if expected is not None and not digest_of_file(file).startswith(expected[1]):
            raise UserError(
                f"{source}: {file} is not what was published under its name (its SHA-256 does not begin with"
                f" {expected[1]}): remove it, and it is downloaded anew"
            )
        return file
    _LOGGER.info("downloading %s to %s", url, file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), expected[1] if expected else None, progress=False)
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"{source}: cannot download {url} ({reason}): fetch it elsewhere and give it with --weights FILE"
        ) from None
    except RuntimeError as error:
        if "invalid hash value" not in str(error):
            raise
        raise UserError(f"{source}: the download of {url} is damaged ({error}): try again") from None
    return file


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
        notes = (f"torchvision evaluates this network on whole images; a centre crop of {resize} px is taken",)
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
