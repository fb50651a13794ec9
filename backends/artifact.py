"""How every target writes its artifact: emitted, then held against the target's rules."""

from __future__ import annotations

import onnx

from backends.facts.profile import Profile
from backends.lint.rule import lint_rules
from backends.lint.table import require_clean
from backends.onnx_file.emit import emit, holds_int4
from backends.onnx_file.view import INT4_OPSET
from calibration.simulation.freeze import FrozenNetwork

# The newest opset that every version of the runtimes from pyproject on reads, and the exporter's default of torch.
_DEFAULT_OPSET = 20


def linted_artifact(
    network: FrozenNetwork, profile: Profile, *, opset: int | None, batch: int | None
) -> onnx.ModelProto:
    """The linted ONNX file of a frozen network, in the profile's form.

    `opset` None takes the oldest that suits; `batch` None leaves the batch size free. Raises UserError naming node and
    rule when the file would break one of the profile's rules.
    """
    chosen = opset if opset is not None else INT4_OPSET if holds_int4(network, profile.form) else _DEFAULT_OPSET
    model = emit(network, opset=chosen, form=profile.form, batch=batch)
    require_clean(model, lint_rules(profile, network.plan))
    return model
