"""Where the network will run, and on which grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from backends import BackendName
from backends.facts.limits import LARGEST_MODEL
from backends.facts.widths import Widths
from calibration.errors import UserError
from pipeline.config import flags

Bits = Literal[8, 4, 3, 2, 1]
"""Of weights. 2 bits are three levels, 1 bit is two; the file stores 4 bits and less as 4."""


@dataclass(frozen=True, kw_only=True)
class QuantisationConfig:
    """Where the network will run and on which grids."""

    backend: Annotated[
        BackendName,
        Parameter(help="Runtime that the quantisers are placed for; reference: the exact integer oracle."),
    ] = "onnxruntime"
    target: Annotated[
        Literal["x86-vnni", "x86-avx2", "x86-avx2-limited", "x86-avx2-precise", "arm64"] | None,
        Parameter(
            help="Processor that the artifact is for; x86-avx2: x86-64 without VNNI, by the faster of its two ways"
            " where held-out images show no loss; -limited and -precise: by that one. Default: this machine's."
        ),
    ] = None
    quantiser: Annotated[
        Literal["faqd", "nncf"],
        Parameter(help="How integers are found; faqd: calibration and distillation; nncf: NNCF's post-training."),
    ] = "faqd"
    bits: Annotated[
        Bits,
        Parameter(help="Bits of the weights, activations have 8. 4 and less: stored as 4 bits, multiplied as 8."),
    ] = 8
    first_bits: Annotated[Bits, Parameter(help="Bits of the first convolution's weights, --bits or more.")] = 8
    depthwise_bits: Annotated[Bits, Parameter(help="Bits of depthwise convolutions' weights, --bits or more.")] = 8
    last_bits: Annotated[Bits, Parameter(help="Bits of the last weighted layer's weights, --bits or more.")] = 8
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
    rounding: Annotated[
        Literal["auto", "nearest", "least-squares"],
        Parameter(
            help="How calibration rounds weights; least-squares: so that layers' outputs come nearest to the float ones"
            "; auto: so below 8 bits, and at 8 where the calibrated network misses more than 1 % of its outputs' "
            "variance."
        ),
    ] = "auto"
    learned_scales: Annotated[
        Literal["all", "weights", "none"], Parameter(help="Which quantiser scales are trained along (LSQ).")
    ] = "all"
    weight_grids: Annotated[
        Literal["lsq", "faqd"],
        Parameter(
            help="How weights of 4 bits and less find their integers in training; lsq: a learned scale per channel; "
            "faqd: the formulas of FAQD's code, for 4, 2 and 1 bits."
        ),
    ] = "lsq"
    activation_grids: Annotated[
        Literal["lsq", "pact"],
        Parameter(help="What activation scales learn from; lsq: every rounded value; pact: clipped values alone."),
    ] = "lsq"
    rest: Annotated[
        Literal["fp32", "fp16"],
        Parameter(help="Float type of all that is not integer; fp16: TensorRT only, where nothing casts by itself."),
    ] = "fp32"
    weight_only: Annotated[
        Literal["auto", "none"],
        Parameter(
            help="auto: large linear layers of 4 bits or fewer read float inputs and int4 weights; TensorRT only, "
            "elsewhere as none."
        ),
    ] = "auto"
    opset: Annotated[
        int | None,
        Parameter(metavar="NUMBER", help="ONNX opset of the model, 17 to 23. Default: what the grids need."),
    ] = None
    static_batch: Annotated[
        int | None, Parameter(metavar="COUNT", help="The only batch size that the model takes. Default: any.")
    ] = None

    dynamic_size: Annotated[
        bool,
        Parameter(help="Leave height and width of images free in the model, where the network allows it."),
    ] = False
    external_data_above: Annotated[
        int,
        Parameter(
            metavar="BYTES",
            help="Size of a model's weights above which they lie in a file beside it; the default is all that one file "
            "can hold.",
        ),
    ] = LARGEST_MODEL

    def __post_init__(self) -> None:
        flags.check_fields(self)
        flags.check_at_least(self, static_batch=1, external_data_above=0)
        if self.external_data_above > LARGEST_MODEL:
            raise UserError(
                f"--external-data-above {self.external_data_above}: must be at most {LARGEST_MODEL}, which one file can"
                " hold"
            )
        # Opset 17 is the oldest that the supported runtimes' manuals still test; 21 brought int4 tensors.
        if self.opset is not None and not 17 <= self.opset <= 23:
            raise UserError(f"--opset {self.opset}: must be 17 to 23")
        if self.dynamic_size and self.backend not in ("onnxruntime", "reference"):
            raise UserError(f"--dynamic-size is for --backend onnxruntime and reference, not for {self.backend}")
        if self.rest == "fp16" and self.backend != "tensorrt":
            raise UserError(f"--rest fp16 is for --backend tensorrt: {self.backend} computes the rest in float32")
        if self.rest == "fp16" and self.opset is not None and self.opset < 19:
            raise UserError(f"--opset {self.opset} has no float16 roundings: use --opset 19 or more with --rest fp16")
        if self.opset is not None and self.opset < 21 and self.bits <= 4 and self.backend != "tensorrt":
            raise UserError(
                f"--opset {self.opset} has no 4-bit tensors: use --opset 21 or more with --bits {self.bits}"
            )
        widths = (self.bits, self.first_bits, self.depthwise_bits, self.last_bits)
        if self.weight_grids == "faqd" and not {4, 2, 1}.intersection(widths):
            raise UserError(f"--weight-grids faqd has formulas for 4, 2 and 1 bits: --bits {self.bits} is none of them")
        if self.activation_grids == "pact" and self.learned_scales != "all":
            raise UserError(f"--activation-grids pact needs --learned-scales all, not {self.learned_scales}")
        if self.activation_bits < 8 and self.backend != "reference":
            raise UserError(
                f"--activation-bits {self.activation_bits}: --backend {self.backend} multiplies 8-bit activations; "
                "narrower ones are executed in integers by --backend reference alone"
            )

    @property
    def trains(self) -> bool:
        """Whether the student is calibrated and trained here; what another quantiser makes is taken as it is."""
        return self.quantiser == "faqd"

    @property
    def resolved_rounding(self) -> Literal["auto", "nearest", "least-squares"]:
        """How calibration rounds weights: as asked for, else by their bits; at 8 the network itself decides (auto)."""
        return "least-squares" if self.rounding == "auto" and self.bits < 8 else self.rounding

    @property
    def widths(self) -> Widths:
        """Bits of weights and activations."""
        return Widths(
            weights=self.bits,
            first=self.first_bits,
            depthwise=self.depthwise_bits,
            last=self.last_bits,
            activations=self.activation_bits,
        )
