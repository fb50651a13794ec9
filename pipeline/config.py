"""One tree of frozen dataclasses that says all of a run: each field's type, default, flag and help, once.

A value that exists is valid. Stages unpack the groups into plain arguments; components never see them.
Every flag without its dashes is also a key of the file given with `--config`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from calibration.errors import UserError
from pipeline import flags
from pipeline.config_distillation import DistillationConfig
from pipeline.config_post_training import check_post_training

EMBEDDED = "digits"
"""Name of the teacher and of the data that ship with the package."""

Bits = Literal[8, 4, 3, 2, 1]
"""Of weights. 2 bits are three levels, 1 bit is two; the file stores 4 bits and less as 4."""

NO_DATA = "none"
"""Name of no data: images are generated."""

LARGEST_SEED = 2**63 - 1
"""torch.Generator takes a signed 64-bit seed."""


def _numbers(help: str) -> Parameter:
    return Parameter(converter=flags.split_numbers, consume_multiple=True, negative=(), metavar="R,G,B", help=help)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The float network to be quantised and the preprocessing that belongs to it."""

    source: Annotated[
        str,
        Parameter(
            name="--teacher",
            metavar="KIND:REST",
            help="torchvision:resnet18, timm:NAME, cifar:resnet20, python:package.module:function, digits.",
        ),
    ] = EMBEDDED
    weights: Annotated[
        Path | None, Parameter(metavar="FILE", help="Checkpoint of the teacher, .safetensors or .pth.")
    ] = None
    image_size: Annotated[
        int | None,
        Parameter(metavar="PIXELS", help="Input side, pixels. Default: the source's own, else 224."),
    ] = None
    mean: Annotated[
        tuple[float, ...] | None,
        _numbers("Mean per channel of values in [0, 1]. Default: the source's own, else ImageNet's."),
    ] = None
    std: Annotated[
        tuple[float, ...] | None,
        _numbers("Standard deviation per channel of values in [0, 1]. Default: as for --mean."),
    ] = None
    submodule: Annotated[
        str | None,
        Parameter(metavar="NAME", help="Part of the teacher to quantise, such as backbone. Default: all of it."),
    ] = None
    output_kinds: Annotated[
        tuple[str, ...],
        Parameter(
            converter=flags.split_text,
            consume_multiple=True,
            negative=(),
            metavar="NAME=KIND,...",
            help="What outputs hold: classes (on axis 1), classes-last, labels (yes or no each) or values. "
            "Default: the source's own, else classes where axis 1 has several entries, else values.",
        ),
    ] = ()
    co_sources: Annotated[
        tuple[str, ...] | None,
        Parameter(
            name="--co-teachers",
            converter=flags.split_text,
            consume_multiple=True,
            negative=(),
            metavar="KIND:REST,...",
            help="Further teachers, named as --teacher; the student learns the mean of all.",
        ),
    ] = None
    co_weights: Annotated[
        tuple[str, ...] | None,
        Parameter(
            converter=flags.split_text,
            consume_multiple=True,
            negative=(),
            metavar="FILE,...",
            help="Their checkpoints, in the same order; '-' for a network that has its own.",
        ),
    ] = None

    def __post_init__(self) -> None:
        flags.check_fields(self)
        check_source("teacher", self.source)
        for source in self.co_sources or ():
            check_source("co-teachers", source)
        if self.co_weights is not None and len(self.co_weights) != len(self.co_sources or ()):
            raise UserError(
                f"--co-weights names {len(self.co_weights)} files and --co-teachers {len(self.co_sources or ())} "
                "networks: give as many of each, '-' where a network has its own weights"
            )
        flags.check_at_least(self, image_size=1)
        if (self.mean is None) != (self.std is None):
            given, other = ("mean", "std") if self.std is None else ("std", "mean")
            raise UserError(f"--{given} {flags.shown(getattr(self, given))} needs --{other} with as many numbers")
        for flag, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, 3):
                raise UserError(f"--{flag} {flags.shown(values)}: must be 1 or 3 numbers, one per channel")
        if self.mean is not None and self.std is not None and len(self.mean) != len(self.std):
            raise UserError(f"--mean has {len(self.mean)} numbers and --std {len(self.std)}: give as many of each")
        if self.std is not None and min(self.std) <= 0:
            raise UserError(f"--std {flags.shown(self.std)}: every number must be greater than 0")


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The network that is quantised: the teacher's own architecture unless another is named."""

    source: Annotated[
        str | None,
        Parameter(
            name="--student",
            metavar="KIND:REST",
            help="Another architecture than the teacher's, named as --teacher. Default: the teacher's own.",
        ),
    ] = None
    weights: Annotated[
        Path | None,
        Parameter(name="--student-weights", metavar="FILE", help="Checkpoint of the student, .safetensors or .pth."),
    ] = None

    def __post_init__(self) -> None:
        flags.check_fields(self)
        if self.source is not None:
            check_source("student", self.source)
        elif self.weights is not None:
            raise UserError(f"--student-weights {self.weights} needs --student KIND:REST, the network they belong to")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The unlabelled images that calibrate and train."""

    source: Annotated[
        str,
        Parameter(
            name="--data",
            metavar="KIND:REST",
            help="Unlabelled images: images:FOLDER, npz:FILE#key, torchvision:CIFAR10?root=DIR&split=train, "
            "python:package.module:function, digits, or none: generated from the teacher (DAFL).",
        ),
    ] = EMBEDDED
    workers: Annotated[
        int | None,
        Parameter(
            metavar="COUNT",
            help="Processes that decode images. Default: chosen from the source and the host.",
        ),
    ] = None
    augmentation: Annotated[
        Literal["auto", "crop", "crop-flip", "none"],
        Parameter(help="Random crops and flips of training images; auto: what suits the source."),
    ] = "auto"
    calibration_images: Annotated[
        int, Parameter(metavar="COUNT", help="Images that the ranges of the activations are read from.")
    ] = 512
    held_out_images: Annotated[
        int,
        Parameter(
            metavar="COUNT",
            help="Unlabelled images at most kept out of training, to choose the final weights.",
        ),
    ] = 512

    generator_steps: Annotated[
        int, Parameter(metavar="COUNT", help="Steps in which the generator of --data none learns.")
    ] = 1000
    generated_images: Annotated[int, Parameter(metavar="COUNT", help="Images that it then draws.")] = 4096

    def __post_init__(self) -> None:
        flags.check_fields(self)
        check_source("data", self.source)
        flags.check_at_least(self, workers=0, calibration_images=1, held_out_images=1)
        flags.check_at_least(self, generator_steps=1, generated_images=2)


@dataclass(frozen=True, kw_only=True)
class QuantisationConfig:
    """Where the network will run and on which grids."""

    backend: Annotated[
        Literal["onnxruntime", "tensorrt", "openvino", "reference"],
        Parameter(help="Runtime that the quantisers are placed for; reference: the exact integer oracle."),
    ] = "onnxruntime"
    target: Annotated[
        Literal["x86-vnni", "x86-avx2", "arm64"] | None,
        Parameter(help="Processor that the artifact is for; x86-avx2: x86-64 without VNNI. Default: this machine's."),
    ] = None
    quantiser: Annotated[
        Literal["faqd", "nncf"],
        Parameter(help="How integers are found; faqd: calibration and distillation; nncf: NNCF's post-training."),
    ] = "faqd"
    bits: Annotated[
        Bits,
        Parameter(help="Bits of the weights, activations have 8. 4 and less: stored as 4 bits, multiplied as 8."),
    ] = 8
    first_bits: Annotated[Bits, Parameter(help="Bits of the first convolution's weights.")] = 8
    depthwise_bits: Annotated[Bits, Parameter(help="Bits of depthwise convolutions' weights.")] = 8
    last_bits: Annotated[Bits, Parameter(help="Bits of the last weighted layer's weights.")] = 8
    activation_bits: Annotated[
        Literal[8, 4, 3, 2],
        Parameter(
            help="Bits of what weighted layers read, but for the first and the last. Below 8 for --backend reference "
            "alone: no runtime multiplies so narrow convolutions."
        ),
    ] = 8
    range_method: Annotated[
        Literal["auto", "mse", "minmax", "moving-average", "percentile"],
        Parameter(name="--range", help="How activation ranges are chosen; auto: the best per tensor."),
    ] = "auto"
    learned_scales: Annotated[
        Literal["all", "weights", "none"], Parameter(help="Which quantiser scales are trained along (LSQ).")
    ] = "all"
    rest: Annotated[
        Literal["fp32", "fp16"],
        Parameter(help="Float type of all that is not integer; fp16: TensorRT only, where nothing casts by itself."),
    ] = "fp32"
    opset: Annotated[
        int | None,
        Parameter(metavar="NUMBER", help="ONNX opset of the model, 17 to 23. Default: what the grids need."),
    ] = None
    static_batch: Annotated[
        int | None, Parameter(metavar="COUNT", help="The only batch size that the model takes. Default: any.")
    ] = None

    def __post_init__(self) -> None:
        flags.check_fields(self)
        flags.check_at_least(self, static_batch=1)
        # Opset 17 is the oldest that the supported runtimes' manuals still test; 21 brought int4 tensors.
        if self.opset is not None and not 17 <= self.opset <= 23:
            raise UserError(f"--opset {self.opset}: must be 17 to 23")
        if self.rest == "fp16" and self.backend != "tensorrt":
            raise UserError(f"--rest fp16 is for --backend tensorrt: {self.backend} computes the rest in float32")
        if self.rest == "fp16" and self.opset is not None and self.opset < 19:
            raise UserError(f"--opset {self.opset} has no float16 roundings: use --opset 19 or more with --rest fp16")
        if self.opset is not None and self.opset < 21 and self.bits <= 4 and self.backend != "tensorrt":
            raise UserError(
                f"--opset {self.opset} has no 4-bit tensors: use --opset 21 or more with --bits {self.bits}"
            )
        if self.activation_bits < 8 and self.backend != "reference":
            raise UserError(
                f"--activation-bits {self.activation_bits}: --backend {self.backend} multiplies 8-bit activations; "
                "narrower ones are executed in integers by --backend reference alone"
            )


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
    threads: Annotated[int, Parameter(metavar="COUNT", help="Threads of the runtime in the latency measurement.")] = 1
    batch: Annotated[int, Parameter(metavar="COUNT", help="Images per inference in the latency measurement.")] = 1
    max_drop: Annotated[
        float,
        Parameter(metavar="POINTS", help="Gate: accuracy lost against the teacher, percentage points at most."),
    ] = 1.0
    min_speedup: Annotated[
        float | None,
        Parameter(metavar="FACTOR", help="Gate: float over quantised median latency at least. Default: no gate."),
    ] = None

    def __post_init__(self) -> None:
        flags.check_fields(self)
        if self.eval_data is not None:
            check_source("eval-data", self.eval_data)
        flags.check_at_least(self, threads=1, batch=1, max_drop=0)
        flags.check_above_zero(self, "min_speedup")


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
                raise UserError(f"--batches {flags.shown(self.batches)}: must be MIN,OPT,MAX, from 1 on and rising")


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """The machine that trains."""

    device: Annotated[
        str,
        Parameter(metavar="auto|cpu|cuda|cuda:N", help="Where training runs; auto: a GPU when there is one."),
    ] = "auto"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Parameter(
            help="Arithmetic of training; bfloat16: teacher in bfloat16, student in TF32, which holds its integers "
            "exactly; auto: that on a GPU, else float32."
        ),
    ] = "auto"
    seed: Annotated[int, Parameter(metavar="NUMBER", help="Seed of all randomness: same seed, same batches.")] = 0

    def __post_init__(self) -> None:
        flags.check_fields(self)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UserError(f"--device {self.device}: must be auto, cpu, cuda or cuda:N")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise UserError(f"--seed {self.seed}: must be 0 to {LARGEST_SEED}")


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where the results go, and what may be there already."""

    folder: Annotated[
        Path | None,
        Parameter(name="--output", metavar="DIR", help="Result folder. Default: artifacts/TEACHER-BACKEND-wXaY."),
    ] = None
    overwrite: Annotated[bool, Parameter(help="Replace the results of an earlier run in the folder.")] = False
    resume: Annotated[bool, Parameter(help="Go on after the last finished stage or training checkpoint.")] = False

    def __post_init__(self) -> None:
        flags.check_fields(self)
        if self.overwrite and self.resume:
            raise UserError("--overwrite starts anew and --resume goes on: give one of them")


def _group(title: str) -> Parameter:
    return Parameter(name="*", group=Group.create_ordered(title))


ENGINE_GROUP = Group.create_ordered("TensorRT engine")
"""Heading of the flags of `EngineConfig`, which two commands have."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that decides a run."""

    teacher: Annotated[TeacherConfig, _group("Teacher")] = field(default_factory=TeacherConfig)
    student: Annotated[StudentConfig, _group("Student")] = field(default_factory=StudentConfig)
    data: Annotated[DataConfig, _group("Data")] = field(default_factory=DataConfig)
    quantisation: Annotated[QuantisationConfig, _group("Quantisation")] = field(default_factory=QuantisationConfig)
    distillation: Annotated[DistillationConfig, _group("Distillation")] = field(default_factory=DistillationConfig)
    validation: Annotated[ValidationConfig, _group("Validation")] = field(default_factory=ValidationConfig)
    engine: Annotated[EngineConfig, Parameter(name="*", group=ENGINE_GROUP)] = field(default_factory=EngineConfig)
    execution: Annotated[ExecutionConfig, _group("Execution")] = field(default_factory=ExecutionConfig)
    output: Annotated[OutputConfig, _group("Output")] = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        if self.data.source == NO_DATA and self.distillation.label_weight is not None:
            raise UserError(f"--label-weight {self.distillation.label_weight} needs labels, and --data none has none")
        kind, fixed = self.teacher.source.partition(":")[0], self.quantisation.static_batch
        if fixed is not None and self.validation.batch not in (1, fixed):
            raise UserError(f"--batch {self.validation.batch}: --static-batch makes a model of batch {fixed} alone")
        # The user's own builder may well be for digits; every other source is a network of something else.
        if self.data.source == EMBEDDED and kind not in (EMBEDDED, "python"):
            raise UserError(
                f"--teacher {self.teacher.source} needs images of its own kind: add --data images:FOLDER or "
                "npz:FILE#key (the embedded digits suit only the embedded teacher)"
            )
        check_engine(self.engine, backend=self.quantisation.backend, batch=self.validation.batch)
        if self.quantisation.quantiser != "faqd":
            check_post_training(self.to_json(), RunConfig().to_json())

        if self.student.source is None and self.distillation.float_steps:
            raise UserError(
                f"--float-steps {self.distillation.float_steps} needs --student: the teacher's own copy has nothing to"
                " learn from it in float"
            )

    @property
    def evaluation_source(self) -> str | None:
        """Source of the images to score on; None: agreement on held-out images of the training source."""
        return self.validation.eval_data or (EMBEDDED if self.data.source == EMBEDDED else None)

    @property
    def folder(self) -> Path:
        """Result folder: the one given, else named after teacher, backend, target where one is given, and bits."""
        if self.output.folder is not None:
            return self.output.folder
        teacher = re.sub(r"[^A-Za-z0-9._]+", "-", self.teacher.source).strip("-.")
        bits = f"w{self.quantisation.bits}a{self.quantisation.activation_bits}"
        runtime = "-".join(filter(None, (self.quantisation.backend, self.quantisation.target)))
        other = "" if self.quantisation.quantiser == "faqd" else f"-{self.quantisation.quantiser}"
        return Path("artifacts") / f"{teacher}-{runtime}-{bits}{other}"

    def to_json(self) -> dict[str, Any]:
        """Return one flat JSON object: flag without dashes -> value, None where unset."""
        return flags.to_json(self)

    @classmethod
    def from_json(cls, settings: dict[str, Any], *, where: str = "configuration") -> RunConfig:
        """Build a configuration from `to_json`'s object; absent keys take their defaults.

        Raises:
            UserError: a key is unknown or a value is not allowed.
        """
        return flags.from_json(cls, settings, where=where)


def check_engine(engine: EngineConfig, *, backend: str, batch: int) -> None:
    """Check that flags of an engine come with a backend that builds one, and that it takes the measured batch.

    Raises:
        UserError: a flag would have no effect, or --batch lies outside of --batches.
    """
    if backend != "tensorrt":
        default, given = flags.to_json(EngineConfig()), flags.to_json(engine)
        if changed := [key for key, value in given.items() if value != default[key]]:
            raise UserError(f"--{changed[0]} is for --backend tensorrt: {backend} builds no engine")
    if engine.batches is not None and not engine.batches[0] <= batch <= engine.batches[2]:
        raise UserError(f"--batch {batch} lies outside of --batches {flags.shown(engine.batches)}")


def check_source(flag: str, source: str) -> None:
    """Raise UserError unless a source is KIND:REST or a kind alone."""
    kind, colon, rest = source.partition(":")
    if not kind or (colon and not rest):
        raise UserError(f"--{flag} {source!r}: must be KIND:REST, such as images:FOLDER, or {EMBEDDED}")
