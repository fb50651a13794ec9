"""Which of several equal forms a runtime's files are written in: one field per question that the writer asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class FileForm:
    """How one runtime wants a quantised network written; whatever is chosen, the file computes the same.

    The defaults are the plain form, each operator as the graph has it. Where a field departs from it, the runtime's own
    table (`backends/facts/*_rules.py`) says why. "A Max of the lowest number" and "1e-30 for 0" change no value that a
    grid tells apart: they are there for what the passes of a compiler make of them.
    """

    #: What only moves values moves integers, or the reals read from them.
    movement: Literal["integers", "reals"] = "integers"
    #: Layers read one copy of equal weights and zero points; else each layer has its own.
    shared_constants: bool = True
    #: Weights of 4 bits or fewer are stored as int4 and cast to int8, from opset 21 on; else they are stored as int8.
    packs_int4: bool = False
    #: Groups of integer convolutions become one, with zeros between them, up to so many channels; 0: they stay.
    merged_channels: int = 0
    #: A PReLU is the larger of x and slope times x.
    prelu_as_maximum: bool = False
    #: A Max of the lowest number stands behind an average pooling that is written as products with shares.
    shares_apart: bool = False
    #: A Max of the lowest number stands behind a max pooling of reals of which an activation reads that also falls.
    maxima_apart: bool = False
    #: A Max of the lowest number stands behind a product with constants of which some are negative.
    negative_factors_apart: bool = False
    #: A ReLU or clip that nothing absorbs, behind a matrix product on integers that writes floats, is a Max, a Min or
    #: both.
    bounds_behind_products: bool = False
    #: A Max of the lowest number stands between a rounded tensor and a softmax whose result is rounded.
    softmax_apart: bool = False
    #: A Max of the lowest number stands behind every largest or smallest value along axes.
    reductions_apart: bool = False
    #: A Max of the lowest number stands behind a concatenation of positions in float to which a number is added, or by
    #: which it is multiplied.
    joins_apart: bool = False
    #: A Max of the lowest number stands before a normalisation of what is a product with a constant, integers and their
    #: scale too, however it was changed since.
    normalised_apart: bool = False
    #: A Max of the lowest number stands before a clip of what integers stand for, moved or changed since or not.
    clips_apart: bool = False
    #: A Max of the lowest number stands between a concatenation of reals and its rounding, where it joins positions or
    #: parts of it are taken or turned behind.
    rounded_joins_apart: bool = False
    #: A Max of the lowest number stands between a convolution's output, with constants added or not, and a factor.
    factors_apart: bool = False
    #: A Max of a row of lowest numbers stands behind channels that became positions and were turned in float, where a
    #: function of single values follows.
    turned_apart: bool = False
    #: A Max of the lowest number stands behind the tanh of a Mish that no layer's kernel takes in.
    mish_in_parts: bool = False
    #: A layer on integers that has no bias, or one of zeros, has one of 1e-30.
    bias_everywhere: bool = False
    #: A border of zeros that is moved as reals into an average of values of both signs holds 1e-30 for 0.
    borders_next_to_zero: bool = False
    #: All channels in another order are taken in two halves on integers as well; on reals they are in every file.
    orders_in_halves: bool = False
    #: What is spread over a free batch is added to zeros made of the images; else the batch's size is computed.
    spreads_by_values: bool = False
    #: What an integer kernel computes and rounds has no reader, and no output of the network, that sees it in float.
    rounded_for_all: bool = False

    def __post_init__(self) -> None:
        if self.movement not in ("integers", "reals"):
            raise ValueError(f"movement of {self.movement!r}: integers and reals are possible")
        if self.merged_channels < 0:
            raise ValueError(f"groups are merged up to {self.merged_channels} channels: 0 or more are possible")


#: Each operator as the graph has it: what a float file takes, which every runtime reads.
PLAIN = FileForm()
