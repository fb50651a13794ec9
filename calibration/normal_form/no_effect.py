"""Operators without any effect on what a network computes: such as do nothing, conversions, and checks."""

from __future__ import annotations

from typing import Any, Final

import torch

aten = torch.ops.aten

#: Operators that do nothing in a network that only infers.
NO_OPERATION: Final[frozenset[Any]] = frozenset(
    {
        aten.dropout.default,
        aten.dropout_.default,
        aten.feature_dropout.default,
        aten.feature_dropout_.default,
        aten.alpha_dropout.default,
        aten.alpha_dropout_.default,
        aten.feature_alpha_dropout.default,
        aten.contiguous.default,
        aten.clone.default,
        aten.detach.default,
        aten.detach_.default,
        aten.alias.default,
        aten.lift_fresh_copy.default,
        aten.positive.default,
    }
)

#: Conversions; those that keep the type do nothing, as the whole network lies on one device.
CONVERSIONS: Final[frozenset[Any]] = frozenset(
    {
        aten.to.dtype,
        aten.to.dtype_layout,
        aten.to.device,
        aten.to.other,
        aten.type_as.default,
        aten._to_copy.default,
    }
)

#: Checks that export leaves behind: of shapes, which hold by construction, and of values, which no device checks.
CHECKS: Final[frozenset[Any]] = frozenset(
    {
        aten._assert_tensor_metadata.default,
        aten._assert_scalar.default,
        aten._assert_async.default,
        aten._assert_async.msg,
        aten.sym_constrain_range.default,
        aten.sym_constrain_range_for_size.default,
    }
)
