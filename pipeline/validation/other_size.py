"""A file for images of any size: what it computes at a second one, before training and on the runtime."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from backends.onnx_file.emit import emit
from backends.oracle.backend import IntegerOracle
from calibration.errors import UserError
from calibration.graph.interface import interface_of
from calibration.graph.nearness import apart
from pipeline.networks.outputs.agreement import OutputTally
from pipeline.networks.outputs.meaning import Output
from pipeline.report.gate import Gate
from pipeline.validation.score import Outputs

# float32 sums in another order leave a deep network's outputs below this, relative to the largest one.
_LARGEST_DIFFERENCE = 1e-3


def check_other_size(folded: GraphModule, other: GraphModule, images: Tensor) -> None:
    """Raise UserError where the float file of a graph is not the network at another size, whose graph is `other`."""
    written, _ = IntegerOracle(emit(folded, opset=20), fused_rounding=False).run(images)
    with torch.no_grad():
        expected = list(other(images))
    for name, mine, theirs in zip(interface_of(folded).outputs, written, expected, strict=True):
        difference = apart(mine, theirs)
        if not difference <= _LARGEST_DIFFERENCE:
            raise UserError(
                f"--dynamic-size: at {images.shape[3]}x{images.shape[2]} px the file's output {name} is not what the"
                f" network computes (by {difference:.3g} of the largest value): leave --dynamic-size out and make a"
                " file for each size (--image-size)"
            )


def gate_of_other_size(
    oracle: Outputs, runtime: Outputs | None, outputs: Sequence[Output], images: Tensor, least: float
) -> tuple[Gate, str | None]:
    """Runtime against oracle at another size, by the measure and the limit `least` of every other comparison.

    `images` float32 [B, C, H, W] of that size. The output that is the least alike counts, and there is something to
    say of it; the runtime is None where it is not here.
    """
    if runtime is None:
        return Gate(name="dynamic-size", limit=least, value=None, passed=None), None
    tallies = [OutputTally(output) for output in outputs]
    for tally, expected, answered in zip(tallies, oracle(images), runtime(images), strict=True):
        tally.add({"oracle": expected, "runtime": answered})
    shares = [(tally.runtime_vs_oracle or 0.0, tally.limit(least)) for tally in tallies]
    value, limit = min(shares, key=lambda share: share[0] - share[1])
    equal, elements = (sum(counts) for counts in zip(*((t.equal, t.elements) for t in tallies), strict=True))
    said = (
        f"any height and width: at {images.shape[3]}x{images.shape[2]} px, {len(images)} images, runtime and oracle are"
        f" equal to the bit in {100 * equal / elements:.4g} % of the values"
    )
    return Gate(name="dynamic-size", limit=limit, value=value, passed=value >= limit), said
