"""What a report holds, block by block; `pipeline.report.schema` is the report itself.

A value that could not be measured here is None (`null`), never 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from backends.device.bundle_check import records
from pipeline.report.course import Course
from pipeline.report.gate import EXIT_STATUS, Gate, Status, verdict

SCHEMA: Final = 1


@dataclass(frozen=True, kw_only=True)
class Bits:
    """Widths of the grids, bits."""

    weights: int
    activations: int

    def __post_init__(self) -> None:
        records.check(self)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Scores of the same images on each stage of the way, fractions in [0, 1]."""

    metric: Literal["top1", "agreement", "r2", "centred-cosine", "cosine"]
    """top1: against labels; agreement: same argmax as the float teacher, of a map per position; r2: of a network that
    decides nothing, the share explained of the variance of the teacher's values between images; centred-cosine: of one
    whose output is an embedding, the mean cosine with the teacher's, its mean embedding taken from both; cosine: the
    same of the vectors as they are, in older reports."""
    images: int
    teacher: float | None
    simulated: float | None
    oracle: float | None
    runtime: float | None

    def __post_init__(self) -> None:
        records.check(self)
        _check_fractions(self, "teacher", "simulated", "oracle", "runtime")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Scores of a sample of the images on every stage of the way, where some stages ran on it alone.

    Of these `Accuracy`, outputs and `Distillation` hold None; all that compares stages is of the sample.
    """

    images: int
    """How many; drawn by the seed, all over the source."""
    teacher: float | None
    calibrated: float | None
    simulated: float | None
    oracle: float | None
    runtime: float | None

    def __post_init__(self) -> None:
        records.check(self)
        _check_fractions(self, "teacher", "calibrated", "simulated", "oracle", "runtime")


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The runtime's outputs against the integer oracle's on the same images."""

    argmax_agreement: float | None
    """Fraction of images (of maps: positions) with the same argmax; None also where no output decides anything."""
    exact_fraction: float | None
    """Fraction of outputs that are equal to the bit."""
    max_difference: float | None
    """Largest absolute difference of one output, in units of the outputs."""

    def __post_init__(self) -> None:
        records.check(self)
        _check_fractions(self, "argmax_agreement", "exact_fraction")


@dataclass(frozen=True, kw_only=True)
class FloatLayer:
    """A weighted layer that the runtime computes in float."""

    name: str
    reason: str

    def __post_init__(self) -> None:
        records.check(self)


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """Weighted layers by the arithmetic of the kernel that the runtime chose, counts."""

    integer: int | None
    float: int | None
    float_layers: tuple[FloatLayer, ...]

    def __post_init__(self) -> None:
        records.check(self)


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Time of one inference call, milliseconds."""

    median: float
    p90: float

    def __post_init__(self) -> None:
        records.check(self)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Float and quantised network on the same runtime, measured interleaved."""

    batch: int
    """Images per inference call."""
    threads: int
    float_ms: Percentiles | None
    quantised_ms: Percentiles | None
    speedup: float | None
    """Float over quantised median; above 1 the quantised network is faster."""

    def __post_init__(self) -> None:
        records.check(self)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of the two model files, bytes."""

    float_bytes: int | None
    quantised_bytes: int | None

    def __post_init__(self) -> None:
        records.check(self)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What training did."""

    steps: int
    learning_rate: float
    """Peak rate in the end, after any backing off."""
    loss_calibrated: float | None
    """Distillation loss on held-out unlabelled images before training, with calibrated ranges."""
    loss_final: float | None
    """The same after training."""
    chosen: Literal["trained", "calibrated"]
    """Which weights went on; the calibrated ones unless training lowered the held-out loss beyond chance."""
    backoffs: int
    """Times that the learning rate was lowered because the loss diverged."""
    diverged: bool
    """Whether training was given up for divergence."""
    accuracy_calibrated: float | None = None
    """Score of the calibrated network before training, as `Accuracy` measures it, a fraction."""
    curve: tuple[tuple[int, float], ...] = ()
    """Training loss: (step, loss), a few hundred points at most."""
    gain: float | None = None
    """Mean over the held-out images by which training lowered the loss of each; below 0 where it raised it."""
    gain_error: float | None = None
    """Standard error of that mean; None for a single image, which says nothing about chance."""
    remarks: tuple[str, ...] = ()
    """What a user should know about the weights that went on."""
    planned_steps: int | None = None
    """Steps that were to be taken, where training ended before, as the held-out loss fell no longer."""

    def __post_init__(self) -> None:
        records.check(self)
        _check_fractions(self, "accuracy_calibrated")


@dataclass(frozen=True, kw_only=True)
class Data:
    """The unlabelled images that were used."""

    images: int
    unreadable: int = 0
    unreadable_names: tuple[str, ...] = ()
    """The first few of them."""
    generated: str | None = None
    """Some of them as a PNG in base64, where they were generated from the teacher."""

    def __post_init__(self) -> None:
        records.check(self)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One weighted layer of the plan."""

    name: str
    kind: str
    weight_bits: int | None
    """None: left float."""
    sqnr_db: float | None
    """Signal to quantisation noise ratio of the layer's output against the float network's, decibels."""
    integer: bool | None
    """Whether the runtime runs it on an integer kernel; None: not known here."""
    reason: str
    """Why it is not quantised or not on an integer kernel; empty when it is."""

    def __post_init__(self) -> None:
        records.check(self)


@dataclass(frozen=True, kw_only=True)
class Entries:
    """Numbers of one kind in a tensor that holds several, such as the coordinates beside scores."""

    axis: int
    """Axis that they lie along, the batch's being 0."""
    places: tuple[tuple[int, int], ...]
    """Their places there, as runs: (first, last)."""
    spread: float
    """Standard deviation of the teacher's numbers between images, each from its own mean, in their unit."""
    explained: float
    """R2 of runtime (oracle) to teacher, 0 to 1."""

    def __post_init__(self) -> None:
        records.check(self)
        _check_fractions(self, "explained")


@dataclass(frozen=True, kw_only=True)
class OutputScore:
    """One output of the network: what it is, and how far each stage of the way gives what the teacher gives."""

    name: str
    holds: Literal["classes", "labels", "values"]
    shape: tuple[int, ...]
    """Without the batch; -1 where it is free."""
    decisions: int | None
    """Classes or labels decided per image: 1 for a classifier, the pixels of a map; None for values."""
    metric: Literal["agreement", "r2", "centred-cosine", "cosine"]
    """agreement: fraction of equal decisions; r2: share explained of the variance of the teacher's values among images;
    centred-cosine: of embeddings, the mean over images of the cosine with the teacher's vector, the teacher's mean
    vector taken from both, 0 where below; cosine: of the vectors as they are, in older reports."""
    teacher: float | None
    simulated: float | None
    oracle: float | None
    runtime: float | None
    mean_iou: float | None
    """Of dense decisions: intersection over union of runtime (oracle where it is not here) and teacher, averaged over
    the classes that either names; of labels that of the yes."""
    rms_error: float | None
    """Of values: root mean square of runtime (oracle) minus teacher, in their unit."""
    oracle_vs_simulated: float | None
    """Agreement or R2 of simulation and oracle; R2 of embeddings too."""
    runtime_vs_oracle: float | None
    exact_fraction: float | None
    """Fraction of the runtime's elements that equal the oracle's to the bit."""
    max_difference: float | None
    simulated_difference: float | None = None
    """Largest absolute difference of simulation and oracle, relative to the oracle's largest value."""
    worst: float | None = None
    """Of embeddings: that cosine of runtime (oracle) and teacher which one image in twenty does not exceed."""
    cosine: float | None = None
    """Of embeddings: the mean cosine of runtime (oracle) and teacher, of the vectors as they are."""
    entries: tuple[Entries, ...] = ()
    """Of values: the kinds of numbers that one tensor holds, from the least spread to the largest; absent where it
    holds one kind alone."""

    def __post_init__(self) -> None:
        records.check(self)
        _check_fractions(self, "teacher", "simulated", "oracle", "runtime", "mean_iou", "worst", "cosine")
        _check_fractions(self, "oracle_vs_simulated", "runtime_vs_oracle", "exact_fraction")


@dataclass(frozen=True, kw_only=True)
class ReportFields:
    """All that a run found."""

    schema: Literal[1] = SCHEMA
    status: Status
    backend: str
    bits: Bits
    teacher: str
    student: str
    seed: int
    versions: dict[str, str]
    host: dict[str, str | int | float | bool | None]
    accuracy: Accuracy
    parity: Parity
    kernels: Kernels
    latency: Latency
    size: Size
    seconds: dict[str, float]
    gates: tuple[Gate, ...]
    distillation: Distillation | None = None
    data: Data | None = None
    preprocessing: dict[str, Any] | None = None
    """What the device must do to an image before the network, as `Preprocessing.to_json` says it."""
    notes: tuple[str, ...] = ()
    """Deliberate fall-backs and assumptions, a line each."""
    layers: tuple[Layer, ...] = ()
    outputs: tuple[OutputScore, ...] = ()
    quantiser: str | None = None
    """How the integers were found: faqd, or another tool's way; None in reports older than the choice."""
    target: str | None = None
    """Processor that the artifact is for, a key of `backends.facts.cpu.CPUS`; None where the backend runs on none."""
    sample: Sample | None = None
    """The images on which simulation and oracle were held to the runtime; None: on all that were scored."""
    run: str | None = None
    """Which run it is of, a hash of all that decided it, as the bundle's manifest has it; None of what no run made."""
    strategy: Course | None = None
    """What became of each student on the way, where the run was to stop at its goal."""

    def __post_init__(self) -> None:
        records.check(self)
        expected = verdict(self.gates, on_target=self.accuracy.runtime is not None)
        if self.status != expected:
            raise ValueError(f"Report.status is {self.status!r}: its gates and accuracy say {expected!r}")

    @property
    def exit_status(self) -> int:
        """Exit status of the command that made this report: 0, 1, 3 or 4."""
        return EXIT_STATUS[self.status]


def _check_fractions(record: object, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{type(record).__name__}.{name} is {value!r}: must be a fraction, 0 to 1")
