"""Freeze the trained student and write the artifact, linted for its runtime."""

from __future__ import annotations

from torch.fx import GraphModule

from backends.base import Backend
from backends.facts.limits import LARGEST_MODEL
from backends.onnx_file.emit import emit
from backends.onnx_file.runtime_refusals import nodes_named_in
from backends.onnx_file.serialised import Serialised, parsed, serialise
from backends.onnx_file.view import INT4_OPSET
from calibration.errors import MissingExtra, UserError
from calibration.plan import Plan
from calibration.simulation.freeze import freeze
from calibration.simulation.prepared import PreparedNetwork
from pipeline.artifacts import FLOAT_MODEL, MODEL, CompiledModel, PreparedStudent

# The float counterpart is only compared with: any opset that all runtimes read serves.
_FLOAT_OPSET = 20


def check_convertible(folded: GraphModule, backend: Backend, *, opset: int | None, most: int = LARGEST_MODEL) -> None:
    """Raise UserError, naming operator and module, for a network that the file format cannot hold.

    `most`: bytes of weights that one file may hold. Asked before training: an operator without a translation must not
    cost the user an hour first.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in folded.state_dict().values())
    if size > most and not backend.reads_split_models:
        raise UserError(
            f"the network has {size / 1e9:.3g} GB of weights, and one ONNX file may hold {most / 1e9:.3g} GB: --backend"
            f" {backend.name} reads no weights beside it, --backend onnxruntime does; or quantise a part of the network"
            " with --submodule (docs/networks.md)"
        )
    for name, tensor in folded.state_dict().items():
        if (bytes_held := tensor.numel() * tensor.element_size()) > LARGEST_MODEL:
            raise UserError(
                f"{name} alone has {bytes_held / 1e9:.3g} GB, and one ONNX tensor holds {LARGEST_MODEL / 1e9:.3g} GB:"
                " split that layer in a builder given as --teacher python:package.module:function"
            )
    emit(folded, opset=opset or _FLOAT_OPSET)


def check_opset(plan: Plan, opset: int | None) -> None:
    """Raise UserError, before training, where the plan stores weights that the opset has no type for."""
    blocked = [placement.layer for placement in plan.weights if placement.weight_only]
    if blocked and opset is not None and opset < INT4_OPSET:
        raise UserError(
            f"--opset {opset} has no 4-bit tensors, as which the weights of {blocked[0]} are stored: use --opset"
            f" {INT4_OPSET} or more, or --weight-only none"
        )


def check_loads(
    student: PreparedStudent,
    teacher: GraphModule,
    backend: Backend,
    *,
    opset: int | None,
    batch: int | None = None,
    most: int = LARGEST_MODEL,
) -> None:
    """Convert the calibrated, untrained student and let the runtime that is here load it, and run the float file.

    TensorRT's compiler is asked where no GPU is. Nothing is asked where no runtime is here. Raises UserError naming
    the nodes that the runtime refuses, before anything is trained.
    """
    compiled = compile_model(student.network(), student.folded, teacher, backend, opset=opset, batch=batch, most=most)
    for model, word in ((compiled.model, "quantised"), (compiled.float_model, "float")):
        try:
            if word == "quantised":
                backend.census(model, [placement.layer for placement in student.plan.weights])
            elif backend.unavailable() is None:
                with backend.runner(model, threads=1):
                    pass
        except MissingExtra:
            return
        except UserError as error:
            nodes = nodes_named_in(str(error), parsed(model))
            where = f" at {', '.join(nodes[:3])}" if nodes else ""
            raise UserError(
                f"the {word} file, tried before anything is trained, is refused{where}: {error}; write that part"
                " otherwise in a builder given as --teacher python:package.module:function (docs/networks.md)"
            ) from error


def compile_model(
    network: PreparedNetwork,
    folded: GraphModule,
    teacher: GraphModule,
    backend: Backend,
    *,
    opset: int | None,
    batch: int | None = None,
    most: int = LARGEST_MODEL,
) -> CompiledModel:
    """The quantised artifact and the float teacher's, over a free batch size or for batches of `batch` alone.

    `most`: bytes of weights beyond which they are for a file beside the model's.

    Raises UserError naming node and rule when the file would break one of the backend's rules.
    """
    frozen = freeze(network, folded)
    model = backend.emit(frozen, opset=opset, batch=batch)
    return CompiledModel(
        model=serialise(model, name=MODEL, most=most),
        float_model=float_counterpart(teacher, opset=opset, batch=batch, most=most),
    )


def float_counterpart(
    folded: GraphModule, *, opset: int | None, batch: int | None = None, most: int = LARGEST_MODEL
) -> Serialised:
    """The float file of a folded network, for comparisons."""
    return serialise(emit(folded, opset=opset or _FLOAT_OPSET, batch=batch), name=FLOAT_MODEL, most=most)
