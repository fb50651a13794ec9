"""The vocabulary in which a backend states its facts: rules per operator, grids, limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from calibration.grid import Grid
from calibration.rewrites.rewrite import Rewrite, check_order


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
    """One runtime's facts as data. `non_negative` and `signed` are the grids of the two sorts of activation;
    `integer_movement`: operators that only move values run on the integers themselves; `fused_rounding`: a kernel
    goes from sums to rounded integers in one multiplication, else over float32 reals; `weight_limit` bounds weight
    integers (63 on x86 without VNNI); `skip_layer` names a reason to leave a weighted layer float, or None.
    `weight_only`: linear layers that multiply float inputs by weights of few bits, instead of all that else holds.
    `movement_in_file`: whether the file moves those integers, or the reals read from them where the runtime's passes
    want it so; `inexact`: how the runtime's kernels round other than the oracle does, empty where they are equal;
    `wide_storage`: why weights of 4 bits or fewer take 8 in the file, empty where they take 4.

    Where the processor matters, `cpu` names it (a key of `backends.facts.cpu.CPUS`), `variant` this profile among all
    of the runtime, and `source` says where what is special about it is known from. `session_options` must be set by
    whoever loads the file; `arm_arithmetic`: QLinearAdd scales by 22-bit integers and rounds halves away from zero,
    and QLinearMul rounds once; `shares_constants`: layers may read one stored weight, and one zero point of weights;
    `merged_channels`: groups of convolutions are written as one, with zeros between them, up to so many channels (0: as
    they are); `rewrites`: the forms of a folded network that the runtime has kernels for, in the order in which they
    are written;
    `averages_as_convolutions`: average poolings with equal windows are depthwise convolutions of ones in the file;
    `maximum_for_prelu`: a PReLU is written as the larger of x and slope times x;
    `numbers_in_scales`: a number that multiplies a rounded tensor changes a scale and no integer.
    """

    name: str
    rules: Mapping[str, Rule]
    non_negative: Grid
    signed: Grid
    integer_bias: bool
    integer_movement: bool
    fused_rounding: bool = True
    weight_limit: int | None = None
    skip_layer: Callable[[LayerShape], str | None] | None = None
    weight_only: WeightOnly | None = None
    movement_in_file: Literal["integers", "reals"] = "integers"
    inexact: str = ""
    wide_storage: str = ""
    cpu: str | None = None
    variant: str = ""
    source: str = ""
    session_options: Mapping[str, str] = field(default_factory=dict)
    shares_constants: bool = True
    arm_arithmetic: bool = False
    merged_channels: int = 0
    rewrites: tuple[Rewrite, ...] = ()
    averages_as_convolutions: bool = False
    maximum_for_prelu: bool = False
    numbers_in_scales: bool = False

    def __post_init__(self) -> None:
        check_order(self.rewrites)
