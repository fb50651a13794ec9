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
from pipeline.artifacts import FLOAT_MODEL, MODEL, CompiledModel, Network, PreparedStudent, QuantisedStudent
from pipeline.config.quantisation import QuantisationConfig
from pipeline.report.schema import Distillation

# The float counterpart is only compared with: any opset that all runtimes read serves.
_FLOAT_OPSET = 20


def check_convertible(folded: GraphModule, backend: Backend, quantisation: QuantisationConfig) -> None:
    """Raise UserError, naming operator and module, for a network that the file format cannot hold.

    Asked before training: an operator without a translation must not cost the user an hour first.
    """
    most = quantisation.external_data_above
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
    emit(folded, opset=quantisation.opset or _FLOAT_OPSET)


def check_opset(plan: Plan, opset: int | None) -> None:
    """Raise UserError, before training, where the plan stores weights that the opset has no type for."""
    blocked = [placement.layer for placement in plan.weights if placement.weight_only]
    if blocked and opset is not None and opset < INT4_OPSET:
        raise UserError(
            f"--opset {opset} has no 4-bit tensors, as which the weights of {blocked[0]} are stored: use --opset"
            f" {INT4_OPSET} or more, or --weight-only none"
        )


def check_loads(prepared: PreparedStudent, teacher: Network, backend: Backend) -> None:
    """Convert the calibrated, untrained student and let the runtime that is here load it, and run the float file.

    TensorRT's compiler is asked where no GPU is. Nothing is asked where no runtime is here. Raises UserError naming
    the nodes that the runtime refuses, before anything is trained, and for an opset that has no type for the plan.
    """
    check_opset(prepared.plan, prepared.quantisation.opset)
    compiled = compile_model(prepared, prepared.network(), teacher, backend)
    for model, word in ((compiled.model, "quantised"), (compiled.float_model, "float")):
        try:
            if word == "quantised":
                backend.census(model, [placement.layer for placement in prepared.plan.weights])
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


def convert(
    prepared: PreparedStudent,
    network: PreparedNetwork,
    teacher: Network,
    backend: Backend,
    *,
    distillation: Distillation | None = None,
) -> QuantisedStudent:
    """The artifact of a student's network, as `distillation` left it or as it was calibrated, for the backend.

    Raises UserError when the file would break one of the backend's rules.
    """
    return QuantisedStudent(
        backend=backend,
        compiled=compile_model(prepared, network, teacher, backend),
        plan=prepared.plan,
        prepared=prepared,
        simulated=network,
        distillation=distillation,
    )


def convert_untrained(prepared: PreparedStudent, teacher: Network, backend: Backend) -> QuantisedStudent:
    """The artifact of a student as it was calibrated, for the backend.

    Raises UserError when the file would break one of the backend's rules.
    """
    compiled = compile_model(prepared, prepared.network(), teacher, backend)
    return QuantisedStudent(backend=backend, compiled=compiled, plan=prepared.plan, prepared=prepared)


def compile_model(
    prepared: PreparedStudent, network: PreparedNetwork, teacher: Network, backend: Backend
) -> CompiledModel:
    """The quantised artifact of a student's network, trained or not, and the float teacher's.

    Raises UserError naming node and rule when the file would break one of the backend's rules.
    """
    asked = prepared.quantisation
    model = backend.emit(freeze(network, prepared.folded), opset=asked.opset, batch=asked.static_batch)
    return CompiledModel(
        model=serialise(model, name=MODEL, most=asked.external_data_above),
        float_model=float_counterpart(teacher, asked),
    )


def float_counterpart(network: Network, quantisation: QuantisationConfig) -> Serialised:
    """The float file of a network, for comparisons."""
    model = emit(network.folded, opset=quantisation.opset or _FLOAT_OPSET, batch=quantisation.static_batch)
    return serialise(model, name=FLOAT_MODEL, most=quantisation.external_data_above)
