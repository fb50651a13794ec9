"""Layer by layer: a bundle's model as the oracle computes it against its runtime, or against another model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # its stubs are a package apart
from numpy.typing import NDArray
from torch import Tensor

from backends import BACKENDS, title_of
from backends.base import Backend, Runner
from backends.facts.cpu import cpu_flags
from backends.onnx_file.exposed import exposed, rounded_tensors
from backends.onnx_file.serialised import parsed, serialise
from backends.oracle.differences import Comparison, why
from calibration.errors import UserError
from pipeline.artifacts import MODEL
from pipeline.bundle.bundle import Bundle
from pipeline.config.compare import CompareConfig
from pipeline.config.validation import EngineConfig
from pipeline.images.batches import images_at_once
from pipeline.images.data import ImageSource, open_images, ordered_batches
from pipeline.images.preprocessing import normalise
from pipeline.networks.outputs.agreement import OutputTally
from pipeline.report.comparison import ComparedOutput, ComparedTensor, ComparisonReport
from pipeline.setup.chosen_backend import stored_backend
from pipeline.tools.progress import Progress
from pipeline.tools.regular_file import irregular
from pipeline.validation.gates import least_parity_of_bundle
from pipeline.validation.golden_check import check_golden
from pipeline.validation.running import filled_up

_BATCH = 16


def compare_bundle(bundle: Bundle, config: CompareConfig, progress: Progress) -> ComparisonReport:
    """Compare the oracle over a bundle's model with its runtime; or, with `against`, with another model.

    Every rounded tensor is an output of what runs; the other model runs on the bundle's runtime, on the oracle where
    that is not here. Raises UserError when there is nothing to compare with, or the models share no tensor.
    """
    backend = stored_backend(bundle, EngineConfig(), batch=bundle.fixed_batch or _BATCH, progress=progress)
    notes = list[str]()
    check_golden(bundle, backend)
    absent = backend.unavailable()
    model = parsed(bundle.model)
    other = None if config.against is None else _read(config.against)
    runs_on = title_of(backend.name)
    if absent is not None:
        if other is None:
            raise UserError(f"there is nothing to compare the oracle with: {absent}; or name another model: --against")
        # With the arithmetic of the bundle's own runtime, or the two would differ where their models do not.
        backend, runs_on = BACKENDS["reference"].make(backend.profile), title_of("reference")
        notes.append(f"{absent}: the other model is executed by the oracle")
    if config.against is not None and other is not None:
        _check_fits(config.against, other, bundle)
    if config.threads is not None and backend.name == "tensorrt":
        raise UserError(f"--threads {config.threads} has no meaning for a TensorRT bundle, which runs on the GPU")
    profile = backend.profile
    comparison = Comparison(model, other, fused_rounding=profile.fused_rounding, arm_arithmetic=profile.arm_arithmetic)
    if not comparison.names:
        raise UserError(f"--against {config.against}: it shares no rounded tensor with the model of {bundle.folder}")
    left_out = len(rounded_tensors(model)) - len(comparison.names)
    if left_out:
        notes.append(
            f"{left_out} rounded tensors of the bundle's model have no counterpart of that name and are left out"
        )
    images, source = 0, None if config.data is None else open_images(config.data, bundle.preprocessing)
    asked = len(bundle.golden.inputs) if source is None else min(config.count, len(source))
    tallies = [OutputTally(output) for output in bundle.outputs]
    running = other if other is not None else model
    with _runner(backend, exposed(running, comparison.names), config.threads) as runner:
        for shown in _batches(bundle, source, asked):
            batch = shown if bundle.fixed_batch is None else filled_up(shown, bundle.fixed_batch)
            tensors = [torch.from_numpy(np.asarray(values)) for values in _run(runner, batch, config.against)]
            kept = len(running.graph.output)
            theirs = dict(zip(comparison.names, tensors[kept:], strict=True))
            mine = comparison.add(batch, theirs)
            for tally, here, there in zip(tallies, mine, tensors[:kept], strict=True):
                _count(tally, here, there)
            images += len(shown)
            progress.step(images, asked)
    if source is not None and (broken := source.unreadable.summary()):
        notes.append(f"{images} of {asked} images are compared: {broken}")
    if source is not None and asked < config.count:
        notes.append(f"--data {config.data} has {len(source)} images, fewer than --count {config.count}")
    first = comparison.first()
    # Of its own runtime a bundle is asked no more here than by its run; another model is to give the same bits.
    least = least_parity_of_bundle(bundle, backend) if other is None else None
    return ComparisonReport(
        here=f"oracle on {bundle.folder.name}",
        there=f"{runs_on} on {config.against.name if config.against else bundle.folder.name}",
        images=images,
        tolerance=config.tolerance,
        first=None if first is None else first.name,
        tensors=tuple(_tensors(comparison)),
        outputs=tuple(_output(tally, least) for tally in tallies),
        notes=tuple(notes),
    )


def _read(path: Path) -> onnx.ModelProto:
    if (wrong := irregular(path)) is not None:
        raise UserError(f"--against {path} {wrong}")
    try:
        model = onnx.load(path)
    except OSError as error:
        raise UserError(f"--against {path}: cannot read it: {error.strerror or error}") from error
    except DecodeError as error:
        raise UserError(f"--against {path} is no ONNX file: {error}") from error
    if not model.graph.node:
        raise UserError(f"--against {path} is no ONNX file: it holds no graph")
    return model


def _check_fits(path: Path, other: onnx.ModelProto, bundle: Bundle) -> None:
    """Raise UserError unless another model takes the bundle's input and gives as many outputs."""
    constants = {tensor.name for tensor in other.graph.initializer}
    inputs = [value for value in other.graph.input if value.name not in constants]
    kinds = [onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type) for value in inputs]
    shapes = [
        [size.dim_value if size.HasField("dim_value") else "free" for size in value.type.tensor_type.shape.dim]
        for value in inputs
    ]
    batch = bundle.fixed_batch or "free"
    takes = [batch, *bundle.golden.inputs.shape[1:]]
    fits = len(inputs) == 1 and kinds == ["FLOAT"] and len(shapes[0]) == len(takes)
    if not fits or any(size not in ("free", here) for size, here in zip(shapes[0], takes, strict=True)):
        theirs = ", ".join(f"{kind} {_shown(shape)}" for kind, shape in zip(kinds, shapes, strict=True)) or "nothing"
        raise UserError(
            f"--against {path}: it takes {theirs}, the model of {bundle.folder} FLOAT {_shown(takes)}: both read the"
            " same images, so name a model of the same input (channels, height, width, --static-batch)"
        )
    if (outputs := len(other.graph.output)) != len(bundle.outputs):
        raise UserError(
            f"--against {path}: it has {outputs} outputs, the model of {bundle.folder} {len(bundle.outputs)}: name a"
            " model of the same network"
        )


def _shown(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _run(runner: Runner, images: Tensor, against: Path | None) -> list[NDArray[Any]]:
    """All outputs of what runs; a model that the user named may fail in ways that are its own."""
    try:
        return runner.run(images.numpy())
    except Exception as error:
        if against is None:
            raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"--against {against}: it fails on images {list(images.shape)}, which the bundle's model takes ({reason}):"
            " name a model of the same network"
        ) from error


def _runner(backend: Backend, model: onnx.ModelProto, threads: int | None) -> AbstractContextManager[Runner]:
    return backend.runner(serialise(model, name=MODEL), threads=threads or torch.get_num_threads())


def _batches(bundle: Bundle, source: ImageSource | None, count: int) -> Iterator[Tensor]:
    """Normalised images: the first `count` of a source, or the bundle's golden ones."""
    if source is None:
        yield from torch.split(torch.from_numpy(bundle.golden.inputs), bundle.fixed_batch or _BATCH)
        return
    preprocessing, indices = bundle.preprocessing, np.arange(count, dtype=np.int64)
    most = bundle.fixed_batch or images_at_once(preprocessing, _BATCH)
    for batch in ordered_batches(source, indices, preprocessing, batch_size=most):
        yield normalise(batch.images, preprocessing)


def _count(tally: OutputTally, here: Tensor, there: Tensor) -> None:
    if here.shape != there.shape:
        raise UserError(f"--against: its output has the shape {list(there.shape)}, the bundle's {list(here.shape)}")
    tally.add({"oracle": here, "runtime": there})


def _output(tally: OutputTally, least: float | None) -> ComparedOutput:
    """One output's entry; `least` is the share of what it says, 0 to 1, that must be the same; None: every bit."""
    scored = tally.score()
    return ComparedOutput(
        name=scored.name,
        elements=tally.elements,
        differing=tally.elements - tally.equal,
        largest=tally.largest,
        share=scored.runtime_vs_oracle,
        least=None if least is None else tally.limit(least),
    )


def _tensors(comparison: Comparison) -> Iterator[ComparedTensor]:
    flags = cpu_flags()
    saturating = flags is not None and not flags & {"avx512_vnni", "avx_vnni"}
    for entry in comparison.tensors.values():
        yield ComparedTensor(
            name=entry.name,
            node=entry.node,
            operators=entry.operators,
            elements=entry.elements,
            differing=entry.differing,
            largest=entry.largest,
            own=entry.own,
            own_largest=entry.own_largest,
            ties=entry.ties,
            example=entry.example,
            why=why(entry, saturating_products=saturating) if entry.differing or entry.arises else "",
        )
