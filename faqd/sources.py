"""Networks and images, named as on the command line or at hand, as the stages of a run take them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from calibration.errors import UserError
from calibration.graph.sharing import derived
from calibration.proof.module_and_graph import check_first_link
from faqd.checks import OPEN, check_kind, overrides_of, path_of, section
from faqd.images_at_hand import AT_HAND, opened_source
from faqd.results import Images
from pipeline.artifacts import Network
from pipeline.config import (
    NO_DATA,
    DataConfig,
    ExecutionConfig,
    RunConfig,
)
from pipeline.images.data import EvaluationSet, open_held, open_labelled
from pipeline.images.preprocessing import Preprocessing, preprocessing_from_fields
from pipeline.images.preprocessing_overrides import Overrides
from pipeline.networks.declared import Declared
from pipeline.networks.models import completed
from pipeline.networks.sources.returned import unwrapped
from pipeline.networks.sources.sourced import SourcedModel
from pipeline.networks.unsuitable_parts import check_parts
from pipeline.setup.networks import like_teacher, untrained
from pipeline.setup.run_images import generated_split, in_order, set_apart
from pipeline.stages.imagine import imagine
from pipeline.stages.teacher import check_same_outputs, load_network, network_of
from pipeline.tools.progress import Progress
from pipeline.validation.preflight import check_readable, check_taught_labels


def captured_network(
    model: nn.Module,
    example: Any,
    declared: Declared,
    *,
    preprocessing: Preprocessing | Mapping[str, Any] | None,
    name: str | None,
    overrides: Overrides,
) -> Network:
    """See `faqd.capture`."""
    if not isinstance(model, nn.Module):
        raise UserError(f"capture takes the network itself, an nn.Module, not a {type(model).__name__}")
    overrides = overrides_of(overrides, "capture")
    source = str(name or type(model).__name__)
    images = None if example is None else _example(example, source)
    if images is not None:
        height, width = images.shape[2:]
        asked = overrides.get("image_size")
        if asked is not None and asked not in ((width, height), height if height == width else None):
            raise UserError(f"{source}: the example is {width}x{height} px, and image_size={asked!r}: give one of them")
        if preprocessing is None:
            overrides = {**overrides, "image_size": (width, height)}
    check_parts(model, source)
    # A copy: what happens to the user's own network from now on is theirs, and it is left in its mode, on its device.
    module, notes = unwrapped(copy.deepcopy(model, dict(derived(model))), source)
    if isinstance(preprocessing, Mapping):
        preprocessing = preprocessing_from_fields(preprocessing, where=source)
    if preprocessing is not None and not isinstance(preprocessing, Preprocessing):
        raise UserError(
            f"capture(preprocessing={type(preprocessing).__name__}): must be a faqd.Preprocessing or a dict of its"
            " fields, such as height, width, mean, std"
        )
    sourced = SourcedModel(module=module, preprocessing=preprocessing, notes=notes)
    loaded = completed(sourced, source, submodule=declared.submodule, **overrides)
    if images is not None:
        _check_shape(images, loaded.preprocessing, source)
    network = network_of(loaded, declared)
    if images is not None:
        check_first_link(network.module, network.captured, images, source=source, shown="the example", numbers=True)
    return network


def _example(example: Any, source: str) -> Tensor:
    images = torch.from_numpy(example) if isinstance(example, np.ndarray) else example
    if isinstance(images, Tensor) and images.is_floating_point() and images.ndim == 4 and len(images):
        if not bool(images.isfinite().all()):
            raise UserError(f"{source}: the example holds NaN or infinity: give images as the network takes them")
        return images.detach().to(device="cpu", dtype=torch.float32)
    shown = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else f"a {type(images).__name__}"
    raise UserError(
        f"{source}: the example is {shown}; it must be images as the network takes them, float32 [batch, channels,"
        " height, width]"
    )


def _check_shape(images: Tensor, p: Preprocessing, source: str) -> None:
    if tuple(images.shape[1:]) != (p.channels, p.height, p.width):
        raise UserError(
            f"{source}: the example has images {list(images.shape[1:])}, and its preprocessing makes"
            f" {[p.channels, p.height, p.width]}: give an example that the network will see, or set image_size and"
            " channel_order"
        )


def named_network(
    source: str, declared: Declared, *, weights: str | Path | None, like: Network | None, overrides: Overrides
) -> Network:
    """See `faqd.load_network`."""
    if not isinstance(source, str):
        raise UserError(
            f"load_network takes a name, KIND:REST, not a {type(source).__name__}; a network at hand is for"
            " faqd.capture(model)"
        )
    overrides = overrides_of(overrides, "load_network")
    file = None if weights is None else path_of(weights, "load_network(weights=...)", "the path of a checkpoint")
    if like is None:
        return load_network(source, declared, weights=file, **overrides)
    check_kind(like, Network, "load_network(like=...)", "a network, as faqd.capture or faqd.load_network makes one")
    if declared.dynamic_size:
        raise UserError("dynamic_size takes the teacher as the student: leave like out")
    p = like.preprocessing
    said: Overrides = {**overrides, **like_teacher(p)}
    beginning = untrained(source) if file is None else source
    network = load_network(beginning, declared, weights=file, otherwise=p, like=like.outputs, **said)
    check_same_outputs(network, like)
    return network


def opened_images(
    images: Any,
    network: Network | Preprocessing,
    *,
    labels: bool,
    seed: int,
    progress: Progress,
    settings: Mapping[str, Any],
) -> Images:
    """See `faqd.open_images`."""
    preprocessing = network.preprocessing if isinstance(network, Network) else network
    check_kind(
        preprocessing, Preprocessing, "open_images", "the network that they are for, or its preprocessing, second"
    )
    named = str(images) if isinstance(images, str) or hasattr(images, "__fspath__") else None
    data = section(DataConfig, settings, "open_images", source=named or OPEN.source)
    execution = ExecutionConfig(seed=seed)
    RunConfig(data=data, execution=execution)  # which knows what a setting needs in order to mean something
    if labels and not isinstance(network, Network):
        raise UserError("open_images(labels=True) matches labels with a network's classes: give the network itself")
    if named == NO_DATA:
        if not isinstance(network, Network) or labels:
            raise UserError("open_images('none') generates images from the network itself, without labels: give it")
        with progress.stage("imagine"):
            generated = imagine(network, data, seed=seed, progress=progress)
        split = generated_split(generated, data, seed=seed)
        return Images(split=split, preprocessing=preprocessing, seed=seed)
    known, order = None, ""
    if labels:
        assert isinstance(network, Network)
        opened = open_labelled(named, preprocessing) if named else _labelled(images, preprocessing)
        source, known, order = in_order(opened, network, named or AT_HAND)
        check_taught_labels(known, network)
    else:
        source = opened_source(images, preprocessing)
    if named is None and data.workers is None:
        data = replace(data, workers=0)  # they are in this process already
    check_readable(source, preprocessing)
    split = set_apart(source, data, preprocessing, seed=seed, labels=known, label_order=order)
    return Images(split=split, preprocessing=preprocessing, seed=seed)


def _labelled(images: Any, preprocessing: Preprocessing) -> EvaluationSet:
    opened = open_held(images, preprocessing, where=AT_HAND, labelled=True)
    if opened.labels is None:
        raise UserError("open_images(labels=True): no labels; give (images, labels), or a data set of (image, label)")
    return opened
