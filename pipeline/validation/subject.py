"""What is validated: an artifact with all that its measurement needs, new from a run or out of a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import torch
from torch import Tensor

from backends.base import Backend
from backends.onnx_file.serialised import Serialised
from calibration.plan import Plan
from pipeline.config.distillation import DistillationConfig
from pipeline.config.quantisation import QuantisationConfig
from pipeline.config.validation import ValidationConfig
from pipeline.images.data import ImageSource
from pipeline.images.preprocessing import Preprocessing
from pipeline.networks.outputs.meaning import Output
from pipeline.report.schema import Bits
from pipeline.validation.score import Outputs, ScoredImages, oracle_outputs


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where an artifact comes from, for the report: its networks, widths, seed and the quantiser that made it."""

    teacher: str
    student: str
    bits: Bits
    seed: int = 0
    quantiser: str | None = "faqd"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked of a quantised student, as far as it is judged by that and told what else to try."""

    quantisation: QuantisationConfig
    learning: DistillationConfig
    limits: ValidationConfig
    seed: int
    student: str | None = None
    """Name of the network that was quantised; None: that of the teacher."""
    bundle: Path | None = None
    """Where it will lie; None: in memory alone."""


@dataclass(frozen=True, kw_only=True)
class ImagesToScore:
    """Images in batches, and how many there are at the most."""

    batches: Iterable[ScoredImages]
    count: int
    source: ImageSource | None = None
    """Where they come from, to tell of those that could not be read; None where that is told already."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An artifact, its float counterpart where there is one, and the images and columns that it is judged by."""

    origin: Origin
    backend: Backend
    absent: str | None
    """Why the artifact cannot run here; None where it can."""
    model: Serialised
    float_model: Serialised | None
    plan: Plan
    preprocessing: Preprocessing
    outputs: tuple[Output, ...]
    fixed_batch: int | None
    least_parity: float
    """The share of answers, 0 to 1, that must be the same in simulation, oracle and runtime."""
    columns: Mapping[str, Outputs]
    """All columns of `score` but the runtime's, which the measurement adds."""
    images: ImagesToScore
    example: Tensor
    """Normalised images float32 [B, C, H, W] that latency is measured with."""
    other_size: Tensor | None = None
    """Images of another size, for a file that takes any; None for other files."""
    noise: Mapping[str, float] = field(default_factory=dict)
    """Of weighted layers, in the simulation, dB."""
    exact: bool = False
    """Whether every number of the runtime must be the oracle's to the bit: those of a bundle on its golden inputs."""
    target: str | None = None
    """Processor that the artifact is for."""
    graph: torch.fx.GraphModule | None = None
    """The float network, where it is at hand to say what to write otherwise."""
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    """The same of the images that are scored."""


def oracle_of(model: Serialised, backend: Backend) -> Outputs:
    """The integer oracle with the semantics of a backend's kernels."""
    profile = backend.profile
    return oracle_outputs(model, fused_rounding=profile.fused_rounding, arm_arithmetic=profile.arm_arithmetic)


def fixed_batch_of(model: Serialised) -> int | None:
    """The only batch size that a model takes; None where it is free."""
    graph = onnx.load_model_from_string(model if isinstance(model, bytes) else model.graph).graph
    return graph.input[0].type.tensor_type.shape.dim[0].dim_value or None


def bits_of(plan: Plan) -> Bits:
    """The narrowest widths of a plan: of weights and of activations; 32 where all are float."""
    return Bits(
        weights=min((placement.grid.bits for placement in plan.weights), default=32),
        activations=min((placement.grid.bits for placement in plan.activations), default=32),
    )
