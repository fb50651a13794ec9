"""The form of a network that a runtime has kernels for: the same function."""

from __future__ import annotations

from torch.fx import GraphModule

from backends.profile import Profile
from calibration.channels_last import rows_of_channels_last
from calibration.explicit_borders import borders_before_averages, strides_before_pointwise
from calibration.multipliers import numbers_before_products
from calibration.parts import with_layers_per_part
from calibration.subpixel import without_transposed_convolutions


def suited_graph(folded: GraphModule, profile: Profile) -> GraphModule:
    """A folded graph as the profile wants it, and the same object where it is so."""
    if profile.transposed_as_convolutions != "none":
        signed_alone = profile.transposed_as_convolutions == "signed"
        folded = without_transposed_convolutions(folded, signed_alone=signed_alone)
    if profile.explicit_borders:
        folded = strides_before_pointwise(borders_before_averages(folded))
    if profile.numbers_in_scales:
        folded = numbers_before_products(folded)
    if profile.parts_as_layers:
        folded = with_layers_per_part(folded)
    if profile.channels_last:
        folded = rows_of_channels_last(folded)
    return folded
