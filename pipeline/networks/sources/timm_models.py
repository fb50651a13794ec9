"""`timm:NAME`: timm's networks, pretrained or with the user's checkpoint."""

from __future__ import annotations

import math
import re
from pathlib import Path
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from torch import nn

from backends.device.bundle_check.stored import digest_of_file
from calibration.errors import MissingExtra, UserError
from pipeline.images.preprocessing import Preprocessing
from pipeline.networks.checkpoints.files import read_checkpoint
from pipeline.networks.sources.sourced import SourcedModel, module_with_state, reproducible_weights
from pipeline.tools.source_text import close_matches, split_options, whole_number, yes_or_no

# The names under which timm looks for weights (timm.models._hub), and how long the hub may take to answer at all.
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_HUB_SECONDS = 10


def load_timm(rest: str, weights: Path | None) -> SourcedModel:
    """Load `NAME[.TAG][?pretrained=false&num_classes=N]` with timm's own preprocessing.

    Raises:
        UserError: unknown name, no network, or weights that do not fit.
    """
    source = f"timm:{rest}"
    name, options = split_options(rest, ("pretrained", "num_classes"), source)
    try:
        import timm
        from timm.data.config import resolve_model_data_config
    except ModuleNotFoundError:
        raise MissingExtra("timm", extra="timm", needed_for=source) from None
    known = timm.list_models() + timm.list_pretrained()
    on_hub = name.startswith("hf_hub:")  # a repository of its own, known to nobody beforehand
    if name not in known and not on_hub:
        raise UserError(f"unknown timm network {name!r}: {close_matches(name, known)}")
    classes = whole_number(options, "num_classes", source)

    def build(count: int | None, *, pretrained: bool = False) -> nn.Module:
        kwargs: dict[str, Any] = {} if count is None else {"num_classes": count}
        with reproducible_weights():
            module: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
            return module

    notes: tuple[str, ...] = ()
    pretrained = yes_or_no(options, "pretrained", source, default=weights is None)
    if weights is not None and pretrained:
        raise UserError(f"{source}: pretrained=true and --weights {weights} exclude each other")
    if classes is not None and pretrained:
        raise UserError(
            f"{source}: num_classes needs --weights FILE or pretrained=false; pretrained ones have their own"
        )
    if pretrained and not on_hub and not timm.is_model_pretrained(name):
        raise UserError(f"{source} has no published weights: add --weights FILE (?pretrained=false: random)")
    try:
        if weights is not None:
            module, notes = module_with_state(build, read_checkpoint(weights), classes=classes, source=source)
        else:
            if pretrained:
                _require_hub(name)
            module = build(classes, pretrained=pretrained)
            notes = () if pretrained else ("random weights, as asked for by ?pretrained=false",)
    except OSError as error:
        raise UserError(
            f"{source}: cannot download from the Hugging Face hub ({error}): fetch the file elsewhere and "
            "give it with --weights FILE"
        ) from None
    config = resolve_model_data_config(module)  # type: ignore[no-untyped-call]  # timm's own
    preprocessing, more = _preprocessing(config, source)
    # Without classes a timm network gives the vector that its classifier would read.
    kinds = {"output": "classes" if getattr(module, "num_classes", 0) else "embedding"}
    return SourcedModel(module=module, preprocessing=preprocessing, notes=notes + more, output_kinds=kinds)


def _require_hub(name: str) -> None:
    """Ask the hub for a sign of life before a download: its own client tries for most of a minute before it gives up.

    Raises OSError where there is none and the network's weights are not in the hub's cache.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    hub_name = name.removeprefix("hf_hub:")
    published = None if hub_name != name else get_pretrained_cfg(name)
    repository = hub_name if published is None else published.hf_hub_id
    if not repository or constants.HF_HUB_OFFLINE:
        return  # not on the hub, or its client is told not to try
    cached = [path for name in _HUB_FILES if isinstance(path := try_to_load_from_cache(repository, name), str)]
    for path in cached:
        _check_cached(Path(path), name)
    if cached:
        return
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=_HUB_SECONDS).close()
    except URLError as error:
        # An answer of any kind is one, and what certificates the client accepts is its own affair.
        if not isinstance(error, HTTPError) and not isinstance(error.reason, SSLError):
            raise


def _check_cached(file: Path, name: str) -> None:
    """Raise UserError where a file of the hub's cache is not what its name says: the cache names large ones by hash."""
    content = file.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", content.name) and digest_of_file(content) != content.name:
        raise UserError(
            f"timm:{name}: {content} is not what was published (its SHA-256 is not its name): remove it, and it is"
            " downloaded anew"
        )


def _preprocessing(config: dict[str, Any], source: str) -> tuple[Preprocessing, tuple[str, ...]]:
    """Translate timm's data configuration; notes say where ours cannot express it.

    Source: timm.data.transforms_factory.transforms_imagenet_eval.
    """
    channels, height, width = config["input_size"]
    scaled = math.floor(min(height, width) / config["crop_pct"])
    resize: int | tuple[int, int] | None = scaled
    notes: tuple[str, ...] = ()
    mode = config["crop_mode"]
    if mode == "squash" and config["crop_pct"] != 1:
        resize = (math.floor(width / config["crop_pct"]), math.floor(height / config["crop_pct"]))
    elif mode == "squash" or height != width:
        resize = None
    elif mode != "center":
        notes = (f"timm's crop mode {mode!r} at {config['crop_pct']} is approximated by a centre crop",)
    if height != width and mode != "squash":
        notes = (f"timm crops to {width}x{height} px; whole images are resized to that instead",)
    if channels not in (1, 3):
        raise UserError(f"{source} takes {channels} channels; only 1 (greyscale) or 3 (RGB) can be prepared")
    return (
        Preprocessing(
            channels=channels,
            height=height,
            width=width,
            resize=resize,
            interpolation=config["interpolation"],
            mean=tuple(config["mean"])[:channels],
            std=tuple(config["std"])[:channels],
            channel_order="RGB" if channels == 3 else "L",
        ),
        notes,
    )
