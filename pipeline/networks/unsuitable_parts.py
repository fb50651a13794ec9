"""What of a network makes it none that can be captured: said by the part's name before anything of it runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from calibration.errors import UserError
from pipeline.tools.source_text import shortened

# Packages whose modules are quantised, or observe and imitate it; the classes of the second line are float.
_QUANTISED = (
    "torch.ao.nn.quantized", "torch.ao.nn.qat", "torch.ao.nn.intrinsic.q", "torch.ao.nn.quantizable", "torch.ao.quant",
    "torchao", "nncf", "brevitas", "pytorch_quantization", "modelopt", "bitsandbytes", "quanto", "optimum.quanto",
)  # fmt: skip
_FLOAT = {"QuantStub", "DeQuantStub", "QuantWrapper", "FloatFunctional"}


def check_parts(module: nn.Module, source: str) -> None:
    """Raise UserError for parts and tensors that no float graph can be captured of; `source` names the network.

    TorchScript, exported programs, quantised parts, lazy and meta parameters, sparse and complex tensors.
    """
    if not isinstance(module, torch.jit.ScriptModule) and "_modules" not in module.__dict__:
        raise UserError(f"{source}: {type(module).__name__}.__init__ does not call super().__init__()")
    for name, part in module.named_modules():
        where = f"its part {name}" if name else "the network"
        if isinstance(part, torch.jit.ScriptModule):
            raise UserError(
                f"{source}: {where} is TorchScript, of which no graph can be captured: return the Python network that"
                " it was made from, with its weights from torch.jit.load(FILE).state_dict()"
            )
        if isinstance(part, GraphModule) and "eval" in part.__dict__:
            raise UserError(
                f"{source}: {where} is an exported program, whose sizes are fixed: return the network that it was"
                " exported from"
            )
        kind = type(part)
        if kind.__module__.startswith(_QUANTISED) and kind.__name__ not in _FLOAT:
            raise UserError(
                f"{source}: {where} is quantised already, or prepared for it ({kind.__module__}.{kind.__name__}):"
                " return the float network, before torch.ao, torchao or another tool has changed it"
            )
    if getattr(type(module), "forward", None) is nn.Module.forward and "forward" not in module.__dict__:
        raise UserError(
            f"{source}: a {type(module).__name__} has no forward that takes an image: return a network that has one,"
            " such as an nn.Sequential"
        )
    for name, tensor in _tensors(module):
        problem = _problem(tensor)
        if problem:
            raise UserError(f"{source}: its tensor {name} {problem}")


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _problem(tensor: Tensor) -> str:
    """What is wrong with a parameter or buffer, and what to do; empty where nothing is."""
    if nn.parameter.is_lazy(tensor):
        return "has no size yet (a lazy layer): show the network an image in the builder before returning it"
    if tensor.is_meta:
        return "lies on the meta device, without values: build the network on the CPU and load its weights"
    if tensor.is_nested:
        return "is nested, rows of several lengths, for which no runtime has kernels: keep them as plain tensors"
    if tensor.layout is not torch.strided:
        kind = str(tensor.layout).removeprefix("torch.")
        return f"is sparse ({kind}), for which no runtime has kernels: make it dense with .to_dense() in the builder"
    if tensor.is_complex():
        return "is complex, for which no runtime has kernels: compute with real and imaginary parts apart"
    if tensor.is_quantized or type(tensor.data) not in (Tensor, nn.Parameter):
        kind = "quantised" if tensor.is_quantized else f"a {type(tensor.data).__name__}, no plain tensor"
        return f"is {kind}: return the float network, before another tool has changed it"
    return ""


def check_numbers(module: nn.Module, source: str) -> None:
    """Raise UserError where parameters are NaN or infinite, or buffers NaN or statistics that are infinite."""

    def finite(tensor: Tensor) -> bool:
        return bool(torch.isfinite(tensor).all())

    parameters = [name for name, parameter in module.named_parameters() if not finite(parameter.detach())]
    buffers = [
        name
        for name, buffer in module.named_buffers()
        if buffer.is_floating_point() and (buffer.isnan().any() or ("running_" in name and not finite(buffer)))
    ]
    for names, what in ((parameters, "parameters"), (buffers, "buffers")):
        if names:
            raise UserError(f"{source} has NaN or infinity in {len(names)} {what} ({shortened(names)})")


def without_inference_mode(module: nn.Module) -> nn.Module:
    """The network with ordinary tensors in place of those made in torch.inference_mode, which nothing may change."""
    copies: dict[int, Tensor] = {}
    for part in module.modules():
        tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is None or not tensor.is_inference():
                    continue
                if id(tensor) not in copies:
                    plain = tensor.detach().clone()
                    copies[id(tensor)] = nn.Parameter(plain) if isinstance(tensor, nn.Parameter) else plain
                table[name] = copies[id(tensor)]
    return module
