"""A file for images of any size: what it computes at a second one, before training and on the runtime."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from backends.base import Backend, Runner
from backends.onnx_file.emit import emit
from backends.onnx_file.serialised import Serialised, parsed
from backends.oracle.backend import IntegerOracle
from calibration.errors import UserError
from pipeline.networks.outputs.meaning import Output
from pipeline.report.gate import Gate

# float32 sums in another order leave a deep network's outputs below this, relative to the largest one.
_LARGEST_DIFFERENCE = 1e-3


def check_other_size(folded: GraphModule, other: GraphModule, images: Tensor) -> None:
    """Raise UserError where the float file of a graph is not the network at another size, whose graph is `other`."""
    written, _ = IntegerOracle(emit(folded, opset=20), fused_rounding=False).run(images)
    with torch.no_grad():
        wanted = list(other(images))
    for name, mine, theirs in zip(folded.meta["outputs"], written, wanted, strict=True):
        difference = float((mine - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12))
        if not difference <= _LARGEST_DIFFERENCE:
            raise UserError(
                f"--dynamic-size: at {images.shape[3]}x{images.shape[2]} px the file's output {name} is not what the"
                f" network computes (by {difference:.3g} of the largest value): leave --dynamic-size out and make a"
                " file for each size (--image-size)"
            )


def gate_of_other_size(
    model: Serialised,
    backend: Backend,
    runner: Runner | None,
    outputs: tuple[Output, ...],
    images: Tensor,
    least: float,
) -> tuple[Gate, str | None]:
    """Runtime against oracle at another size: the share of equal decisions (or values), and what to say of it."""
    if runner is None:
        return Gate(name="dynamic-size", limit=least, value=None, passed=None), None
    profile = backend.profile
    oracle = IntegerOracle(parsed(model), fused_rounding=profile.fused_rounding, arm_arithmetic=profile.arm_arithmetic)
    expected, _ = oracle.run(images)
    found = [torch.from_numpy(np.asarray(values)) for values in runner.run(images.numpy())]
    same = total = equal = elements = 0
    for output, mine, theirs in zip(outputs, expected, found, strict=True):
        equal, elements = equal + int((mine == theirs).sum()), elements + mine.numel()
        decided = output.holds != "values"
        pair = [output.decided(values) for values in (mine, theirs)] if decided else [mine, theirs]
        alike = pair[0] == pair[1] if decided else torch.isclose(mine, theirs, rtol=1e-2, atol=1e-2 * float(mine.std()))
        same, total = same + int(alike.sum()), total + alike.numel()
    value = same / total
    said = (
        f"any height and width: at {images.shape[3]}x{images.shape[2]} px, {len(images)} images, runtime and oracle are"
        f" equal to the bit in {100 * equal / elements:.4g} % of the values"
    )
    return Gate(name="dynamic-size", limit=least, value=value, passed=value >= least), said
