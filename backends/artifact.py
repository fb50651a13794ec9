"""How every target writes its artifact: emitted, then held against the target's rules."""

from __future__ import annotations

import onnx

from backends.facts.profile import Profile
from backends.lint.rule import lint_rules
from backends.lint.table import require_clean
from backends.onnx_file.emit import emit
from backends.onnx_file.view import INT4_OPSET
from calibration.simulation.freeze import FrozenNetwork

# The newest opset that every version of the runtimes from pyproject on reads, and the exporter's default of torch.
_DEFAULT_OPSET = 20
# What int4 initialisers can hold.
_INT4_BITS = 4


def linted_artifact(
    network: FrozenNetwork, profile: Profile, *, packs_int4: bool, opset: int | None, batch: int | None
) -> onnx.ModelProto:
    """The linted ONNX file of a frozen network.

    `packs_int4`: weights on grids of 4 bits or fewer are stored as int4, which needs opset 21 or newer; so do weights
    in blocks, which are int4 always; `opset` None takes the oldest that suits; `batch` None leaves the batch size free.
    Raises UserError naming node and rule when the file would break one of the profile's rules.
    """
    packed = packs_int4 and any(placement.grid.bits <= _INT4_BITS for placement in network.plan.weights)
    has_int4 = packed or any(placement.weight_only for placement in network.plan.weights)
    chosen = opset if opset is not None else INT4_OPSET if has_int4 else _DEFAULT_OPSET
    model = emit(
        network,
        opset=chosen,
        pack_int4=packed,
        batch=batch,
        move_reals=profile.movement_in_file == "reals",
        share_constants=profile.shares_constants,
        merged_channels=profile.merged_channels,
        maximum_for_prelu=profile.maximum_for_prelu,
    )
    require_clean(model, lint_rules(profile, network.plan))
    return model
