"""How the result is scored, and how TensorRT's engines are built for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from calibration.errors import UserError
from pipeline.config import flags
from pipeline.config.sources import check_source

ENGINE_GROUP = Group.create_ordered("TensorRT engine")
"""Heading of the flags of `EngineConfig`, which two commands have."""

DEFAULT_MAX_DROP = 1.0
"""Percentage points that an output may lose unless a user or an earlier run says otherwise."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How the result is scored on the runtime, and what it must reach."""

    eval_data: Annotated[
        str | None,
        Parameter(
            metavar="KIND:REST",
            help="Images to score on, with labels if there are any: npz:FILE#images,labels, images:FOLDER "
            "with class folders, or as --data. Default: agreement with the teacher on held-out images.",
        ),
    ] = None
    classes: Annotated[
        Path | None,
        Parameter(
            metavar="FILE",
            help="Class names, one a line, in the order of the network's outputs: class folders are matched by name. "
            "Default: the source's own, else the sorted names of as many folders as the network has classes.",
        ),
    ] = None
    threads: Annotated[int, Parameter(metavar="COUNT", help="Threads of the runtime in the latency measurement.")] = 1
    batch: Annotated[int, Parameter(metavar="COUNT", help="Images per inference in the latency measurement.")] = 1
    max_drop: Annotated[
        float | None,
        Parameter(
            metavar="POINTS",
            help="Gate: what every output may lose against the teacher, percentage points. Default: 1; for a finished "
            "bundle that of its run.",
        ),
    ] = None
    output_max_drop: Annotated[
        tuple[str, ...],
        Parameter(
            converter=flags.split_text,
            consume_multiple=True,
            negative=(),
            metavar="NAME=POINTS,...",
            show_default=False,
            help="Other limits for outputs of these names (agreement, or R2 of values), or none. "
            "Default: that of --max-drop for every output.",
        ),
    ] = ()
    parity_images: Annotated[
        int | Literal["all"],
        Parameter(
            metavar="COUNT|all",
            help="Images on which simulation and oracle are held to the runtime, drawn by the seed; the runtime is "
            "scored on all.",
        ),
    ] = 256
    min_speedup: Annotated[
        float | None,
        Parameter(metavar="FACTOR", help="Gate: float over quantised median latency at least. Default: no gate."),
    ] = None

    def __post_init__(self) -> None:
        flags.check_fields(self)
        if self.eval_data is not None:
            check_source("eval-data", self.eval_data)
        flags.check_at_least(self, threads=1, batch=1)
        if self.parity_images != "all" and self.parity_images < 1:
            raise UserError(f"--parity-images {self.parity_images}: must be at least 1, or all")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise UserError(f"--max-drop {self.max_drop:g}: must be 0 to 100 percentage points")
        flags.check_above_zero(self, "min_speedup")
        for pair in self.output_max_drop:
            _output_limit(pair)

    @property
    def drop_limit(self) -> float:
        """Percentage points that an output may lose unless `output_limits` says otherwise."""
        return DEFAULT_MAX_DROP if self.max_drop is None else self.max_drop

    @property
    def output_limits(self) -> dict[str, float | None]:
        """Output -> percentage points that it may lose, None where it has no gate; the others have `drop_limit`."""
        return dict(_output_limit(pair) for pair in self.output_max_drop)


def _output_limit(pair: str) -> tuple[str, float | None]:
    """Read NAME=POINTS or NAME=none."""
    name, equals, words = pair.rpartition("=")
    try:
        limit = None if words == "none" else float(words)
    except ValueError:
        limit = -1.0
    if not name or not equals or (limit is not None and not 0 <= limit <= 100):
        raise UserError(f"--output-max-drop {pair}: must be NAME=POINTS, 0 to 100 percentage points, or NAME=none")
    return name, limit


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How TensorRT's engines are built and run where the bundle is validated."""

    runner: Annotated[
        Literal["tensorrt", "onnxruntime"],
        Parameter(help="What runs the engine: the SDK itself, or ONNX Runtime's TensorRT execution provider."),
    ] = "tensorrt"
    batches: Annotated[
        tuple[int, ...] | None,
        Parameter(
            converter=flags.split_whole_numbers,
            consume_multiple=True,
            negative=(),
            metavar="MIN,OPT,MAX",
            help="Batches that the engine takes; kernels are chosen for OPT. Default: that of --batch alone.",
        ),
    ] = None
    workspace: Annotated[
        int | None, Parameter(name="--workspace-mib", metavar="MIB", help="Memory kernels may use. Default: all.")
    ] = None
    optimisation_level: Annotated[
        int | None, Parameter(metavar="0..5", help="How much the builder tries. Default: the SDK's own, 3.")
    ] = None
    hardware_compatibility: Annotated[
        Literal["none", "ampere-plus", "same-compute-capability"],
        Parameter(help="Other GPUs that may load the engine; costs speed."),
    ] = "none"
    version_compatible: Annotated[
        bool, Parameter(negative=(), help="Later versions of the SDK may load the engine; costs speed.")
    ] = False
    timing_cache: Annotated[
        Path | None,
        Parameter(metavar="FILE", help="Kernel timings kept between builds. Default: in the user's cache folder."),
    ] = None

    def __post_init__(self) -> None:
        flags.check_fields(self)
        flags.check_at_least(self, workspace=1, optimisation_level=0)
        if self.optimisation_level is not None and self.optimisation_level > 5:
            raise UserError(f"--optimisation-level {self.optimisation_level}: must be 0 to 5")
        if self.batches is not None:
            rising = sorted(self.batches) == list(self.batches)
            if len(self.batches) != 3 or self.batches[0] < 1 or not rising:
                raise UserError(f"--batches {flags.as_typed(self.batches)}: must be MIN,OPT,MAX, from 1 on and rising")


def check_engine(engine: EngineConfig, *, backend: str, batch: int) -> None:
    """Check that flags of an engine come with a backend that builds one, and that it takes the measured batch.

    Raises:
        UserError: a flag would have no effect, or --batch lies outside of --batches.
    """
    if backend != "tensorrt":
        default, typed = flags.settings_of(EngineConfig()), flags.settings_of(engine)
        if changed := [key for key, value in typed.items() if value != default[key]]:
            raise UserError(f"--{changed[0]} is for --backend tensorrt: {backend} builds no engine")
    if engine.batches is not None and not engine.batches[0] <= batch <= engine.batches[2]:
        raise UserError(f"--batch {batch} lies outside of --batches {flags.as_typed(engine.batches)}")
