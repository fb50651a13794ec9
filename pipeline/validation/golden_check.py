"""Whether a bundle's model still gives its golden outputs: what hashes cannot show of one that was vouched for anew."""

from __future__ import annotations

import torch

from backends.base import Backend
from backends.device.bundle_check.compare import compared
from backends.device.bundle_check.same_answer import least_share
from calibration.errors import UserError
from pipeline.bundle.bundle import Bundle
from pipeline.images.batches import images_at_once
from pipeline.validation.subject import oracle_of

_BATCH = 16


def check_golden(bundle: Bundle, backend: Backend, *, most: int | None = None) -> None:
    """Run the oracle on the golden inputs, `most` of them at the most, and hold it against the golden outputs.

    The oracle wrote them: whatever the runtime may round its own way, integers come out of it equal to the bit. Floats
    in between are those of another processor's libraries perhaps, and are held to the limits of all comparisons.

    Raises:
        UserError: an output is another; model or golden images are not those of the bundle's run.
    """
    plan, golden = bundle.plan, bundle.golden
    inputs = torch.from_numpy(golden.inputs[:most])
    try:
        oracle = oracle_of(bundle.model, backend)
        batches = torch.split(inputs, images_at_once(bundle.preprocessing, _BATCH))
        columns = [torch.cat(parts).numpy() for parts in zip(*map(oracle, batches), strict=True)]
    except (RuntimeError, ValueError, LookupError, TypeError) as error:  # a graph that no run has written
        raise UserError(f"{_other(bundle)}: it cannot be computed ({' '.join(str(error).split())[:200]})") from error
    if len(columns) != len(bundle.manifest.outputs):
        raise UserError(f"{_other(bundle)}: it has {len(columns)} outputs, not {len(bundle.manifest.outputs)}")
    for entry, output in zip(bundle.manifest.outputs, columns, strict=True):
        expected = golden.outputs[entry.name][: len(inputs)]
        if output.shape != expected.shape:
            raise UserError(f"{_other(bundle)}: {entry.name} is {list(output.shape)}, not {list(expected.shape)}")
        exact = not plan.float_nodes
        result = compared(output, expected, entry, least_share(floats=not exact), exact=exact)
        if not result["passed"]:
            raise UserError(
                f"{_other(bundle)}: of {entry.name} {100 * (1 - result['equal']):.3g} % of the numbers are others, by"
                f" up to {result['largest_difference']:.3g}"
            )


def _other(bundle: Bundle) -> str:
    return (
        f"{bundle.folder}: model.onnx does not give the outputs of golden.npz, whatever their hashes say; copy the"
        " bundle anew, or make it anew"
    )
