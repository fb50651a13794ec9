"""`python:package.module:function`: the user's own network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from calibration.errors import UserError
from pipeline.images.preprocessing import Preprocessing, preprocessing_from_fields
from pipeline.networks.sources.returned import refused, unwrapped
from pipeline.networks.sources.sourced import SourcedModel, reproducible_weights
from pipeline.networks.unsuitable_parts import check_parts
from pipeline.networks.weights import load_weights
from pipeline.tools.user_code import call_user_function


def load_python(rest: str, weights: Path | None) -> SourcedModel:
    """Call `package.module:function` for a module, or for (module, Preprocessing or a dict of its fields).

    Raises:
        UserError: the function cannot be called, fails, returns something else, or the weights do not fit.
    """
    source = f"python:{rest}"
    with reproducible_weights():
        returned = call_user_function(rest, source)
    module, preprocessing = _parts(returned, source)
    check_parts(module, source)
    module, notes = unwrapped(module, source)
    if weights is not None:
        notes += load_weights(weights, module, f"{weights} for {source}")
    return SourcedModel(module=module, preprocessing=preprocessing, notes=notes)


def _parts(returned: Any, source: str) -> tuple[nn.Module, Preprocessing | None]:
    if isinstance(returned, nn.Module):
        return returned, None
    if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[0], nn.Module):
        raise refused(returned, source)
    module, preprocessing = returned
    if isinstance(preprocessing, dict):
        preprocessing = preprocessing_from_fields(preprocessing, where=source)
    if not isinstance(preprocessing, Preprocessing):
        raise UserError(
            f"{source} returned a {type(preprocessing).__name__} beside the module; it must be Preprocessing or a dict"
            " of its fields"
        )
    return module, preprocessing
