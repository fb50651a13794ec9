"""The vocabulary in which a backend states its facts: rules per operator, grids, limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from backends.facts.file_form import PLAIN, FileForm
from backends.facts.widths import Widths
from calibration.grid import Grid
from calibration.rewrites.rewrite import Rewrite, check_order
from calibration.rewrites.wide_branches import WIDE_BRANCHES

#: Runtimes whose kernels read files of ours; a profile is for one of them, and so are the linter's rules.
RuntimeName = Literal["onnxruntime", "tensorrt", "openvino"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a runtime does with one kind of operator; `source` says where that is known from.

    `integer`: "always"; "fed" (when all full-size inputs come from integer kernels); "stored" (the weight is stored
    and the input rounded, but the kernel computes in float on them) or "never". `inputs`: which inputs are rounded
    ("skip": only the skip branch of a residual add). `output`: "quantised" when the integer kernel needs a rounded
    output, "free" when it can write float. `absorbs`: kinds of activation that the kernel performs; `epilogue` says
    when: "rounding", where a rounding behind the activation does its work, or "any".
    """

    integer: Literal["always", "fed", "stored", "never"]
    source: str
    inputs: Literal["all", "skip"] = "all"
    output: Literal["quantised", "free"] = "quantised"
    absorbs: frozenset[str] = frozenset()
    epilogue: Literal["rounding", "any"] = "rounding"


@dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What a backend may decide a weighted layer's fate by.

    `inputs` channels per group; `kernel` empty for a linear layer; `first`: it reads the network's input itself;
    `rows` of the matrix product of a linear layer, None where the batch size is free; `rows_per_image` of them.
    """

    kind: str
    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()
    groups: int = 1
    first: bool = False
    rows: int | None = None
    rows_per_image: int | None = None


@dataclass(frozen=True, kw_only=True)
class WeightOnly:
    """Which linear layers read float inputs and weights of few bits, and why: a row of a backend's table.

    `bits`: of the widest weights that are stored so; `blocks`: inputs that may share a scale, the preferred number
    first, of which one must divide the layer's inputs; `least_weights`: smaller layers gain nothing.
    """

    bits: int
    blocks: tuple[int, ...]
    least_weights: int
    reason: str
    source: str

    def block(self, layer: LayerShape, bits: int) -> int | None:
        """Inputs per scale for a layer whose weights have so many bits; None where the row does not concern it."""
        if layer.kind != "linear" or bits > self.bits or layer.rows_per_image != 1:
            return None
        if layer.inputs * layer.outputs < self.least_weights:
            return None
        # One block in all is a scale per channel, and is treated as such.
        return next((block for block in self.blocks if block < layer.inputs and layer.inputs % block == 0), None)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One runtime's facts as data: what it computes on integers, with which arithmetic, from which form of a file."""

    #: Whose kernels read the file; the linter holds it against the rules of that runtime.
    name: RuntimeName
    #: This profile among all of the runtime; empty where nothing but the runtime tells it apart.
    variant: str = ""
    #: The processor that it is for, a key of `backends.facts.cpu.CPUS`; None where that does not matter.
    cpu: str | None = None
    #: Where what is special about the processor is known from.
    source: str = ""
    #: What whoever loads the file must set, by the runtime's own names.
    session_options: Mapping[str, str] = field(default_factory=dict)

    # The network that is placed.

    #: What gives a folded network the forms that the runtime has kernels for, in order; see `rewrites_for`.
    rewrites: tuple[Rewrite, ...] = ()
    #: Kind of operator -> what the runtime does with it; kinds that are not listed run in float.
    rules: Mapping[str, Rule]
    #: Why a weighted layer of this shape stays float, None where it need not; None in all: shape does not matter.
    skip_layer: Callable[[LayerShape], str | None] | None = None
    #: Linear layers that multiply float inputs by weights of few bits, instead of all that else holds.
    weight_only: WeightOnly | None = None
    #: Operators that only move values run on the integers themselves, which then keep scale and zero point.
    integer_movement: bool
    #: A number that multiplies a rounded tensor changes its scale and no integer.
    numbers_in_scales: bool = False

    # Its integers.

    #: The grid of activations that are never negative.
    non_negative: Grid
    #: The grid of all other activations.
    signed: Grid
    #: Largest magnitude of an 8-bit weight, where sums of two products saturate beyond it; None: the grid's own.
    weight_limit: int | None = None
    #: Biases are int32 at input scale times weight scale; else they stay float.
    integer_bias: bool

    # Its arithmetic.

    #: A kernel goes from sums to rounded integers in one multiplication; else over float32 reals.
    fused_rounding: bool = True
    #: Average poolings with equal windows are depthwise convolutions of ones, whose sums are exact.
    averages_as_convolutions: bool = False
    #: QLinearAdd scales by 22-bit integers and rounds halves away from zero, and QLinearMul rounds once.
    arm_arithmetic: bool = False
    #: How the kernels round other than the oracle does; empty where they are equal.
    inexact: str = ""

    # Its file.

    #: Which of several equal forms the file is written in.
    form: FileForm = PLAIN
    #: Why weights of 4 bits or fewer take 8 in the file; empty where they take 4 (`form.packs_int4`).
    wide_storage: str = ""

    def __post_init__(self) -> None:
        check_order((*self.rewrites, WIDE_BRANCHES))
        if bool(self.wide_storage) == self.form.packs_int4:
            raise ValueError(f"{self.name}: wide_storage says why weights of 4 bits are not packed, and only then")

    def rewrites_for(self, widths: Widths) -> tuple[Rewrite, ...]:
        """The rows that give a folded network the form of this runtime and these widths, in the order of a run."""
        return (*self.rewrites, WIDE_BRANCHES) if widths.activations < 8 else self.rewrites
