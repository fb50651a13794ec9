"""Freeze the trained student and write the artifact, linted for its runtime."""

from __future__ import annotations

from torch.fx import GraphModule

from backends.base import Backend
from backends.onnx_graph import emit
from calibration.freeze import freeze
from calibration.prepared import PreparedNetwork
from pipeline.artifacts import CompiledModel

# The float counterpart is only compared with: any opset that all runtimes read serves.
_FLOAT_OPSET = 20


def check_convertible(folded: GraphModule, *, opset: int | None) -> None:
    """Raise UserError, naming operator and module, for a network that the file format cannot hold.

    Asked before training: an operator without a translation must not cost the user an hour first.
    """
    emit(folded, opset=opset or _FLOAT_OPSET)


def compile_model(
    network: PreparedNetwork,
    folded: GraphModule,
    teacher: GraphModule,
    backend: Backend,
    *,
    opset: int | None,
    batch: int | None = None,
) -> CompiledModel:
    """The quantised artifact and the float teacher's, over a free batch size or for batches of `batch` alone.

    Raises UserError naming node and rule when the file would break one of the backend's rules.
    """
    frozen = freeze(network, folded)
    model = backend.emit(frozen, opset=opset, batch=batch)
    float_model = emit(teacher, opset=opset or _FLOAT_OPSET, batch=batch)
    return CompiledModel(model=model.SerializeToString(), float_model=float_model.SerializeToString())
