"""From a trained module to a plain graph of ATen operators, ready to be folded and quantised."""

from __future__ import annotations

import copy
import logging
import sys
import traceback
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, export
from torch.fx import Graph, GraphModule, Node

from calibration.errors import UserError
from calibration.operators import argument, make_graph_module, static_shape

aten = torch.ops.aten

#: Operators that do nothing in a network that only infers.
NO_OPERATION = frozenset(
    {
        aten.dropout.default,
        aten.dropout_.default,
        aten.feature_dropout.default,
        aten.alpha_dropout.default,
        aten.contiguous.default,
        aten.clone.default,
        aten.detach.default,
        aten.detach_.default,
        aten.alias.default,
        aten.lift_fresh_copy.default,
    }
)

#: Checks that export leaves behind; they hold by construction.
ASSERTIONS = frozenset({aten._assert_tensor_metadata.default, aten.sym_constrain_range_for_size.default})

#: Containers say nothing about what a node does: the operator's own word is added to their path.
_CONTAINERS = ("Sequential", "ModuleList", "ModuleDict")


def capture(module: nn.Module, example: Tensor, *, source: str) -> GraphModule:
    """Capture `module` in evaluation mode as a graph of functional ATen operators over a free batch size.

    `example` float32 [B, C, H, W] with B >= 2; `source` names the network in errors. The result owns copies of all
    parameters, returns a tuple of tensors, and lists their names in `meta["outputs"]`; nodes are named after the
    modules they come from. Raises UserError naming module and line when the network cannot be captured.
    """
    module = copy.deepcopy(module).eval()
    exported = _export(module, example, source)
    if _mutates_a_view(exported.graph):
        # A write through a view changes a tensor that other nodes read: only full functionalisation is right then.
        exported = exported.run_decompositions({})
    captured = exported.module()
    graph, names = _plain_graph(captured.graph), _output_names(exported)
    plain = make_graph_module(captured, graph)
    for parameter in plain.parameters():
        parameter.requires_grad_(True)
    plain.meta["outputs"] = names
    return plain


def _export(module: nn.Module, example: Tensor, source: str) -> torch.export.ExportedProgram:
    chatter = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = chatter.level
    try:
        chatter.setLevel(logging.CRITICAL)  # it dumps the half-made graph; our one line says where instead
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return export(module, (example,), dynamic_shapes=({0: Dim.DYNAMIC},), strict=False)
    except Exception as error:
        # The network's own code runs here, so any exception may come; it is reported, never swallowed.
        place = _where(module, error.__traceback__)
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        raise UserError(
            f"{source}: the network cannot be captured as a graph: {type(error).__name__}: {first_line[:300]}"
            f" (in {place}); wrap or replace that part with a builder given as --teacher python:package.module:function"
        ) from error
    finally:
        chatter.setLevel(level)


def _where(module: nn.Module, trace: TracebackType | None) -> str:
    """The innermost frame that is the network's own code, and the path of the sub-module it runs in."""
    names = {id(child): name or type(child).__name__ for name, child in module.named_modules()}
    library, found = Path(torch.__file__).parent, "torch.export itself"
    for frame, line in traceback.walk_tb(trace):
        first_argument = frame.f_code.co_varnames[:1]
        owner = frame.f_locals.get(first_argument[0]) if first_argument else None
        if isinstance(owner, nn.Module) and id(owner) in names:
            path = f"module {names[id(owner)]}, "
        elif library in Path(frame.f_code.co_filename).parents or frame.f_code.co_filename == __file__:
            continue
        else:
            path = ""
        if library not in Path(frame.f_code.co_filename).parents and "importlib" not in frame.f_code.co_filename:
            found = f"{path}{frame.f_code.co_filename}:{line}"
    return found


def _is_in_place(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


def _is_view(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or schema.is_mutable:
        return False
    return any(value.alias_info is not None for value in schema.returns)


def _mutates_a_view(graph: Graph) -> bool:
    """Whether an in-place operator writes a tensor that another node sees under another name."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if not _is_in_place(node) or node.target in NO_OPERATION or node.target in ASSERTIONS:
            continue
        written = node.args[0]
        if not isinstance(written, Node):
            return True
        shared = _is_view(written) or written.op in {"get_attr", "placeholder"} or written.target.__class__ is type(len)
        read_again = any(order[user] > order[node] or _is_view(user) for user in written.users)
        if shared or read_again:
            return True
    return False


def _plain_graph(captured: Graph) -> Graph:
    """Copy the exported graph: one namespace, functional operators, no checks, outputs as one flat tuple."""
    graph, copies = Graph(), {}
    for node in sorted(captured.nodes, key=lambda node: node.op != "placeholder"):
        if node.op == "call_module" or node.target in ASSERTIONS:
            continue  # the guards of export: the batch size is free and the image size checked by the caller
        if node.op == "call_function" and (node.target in NO_OPERATION or _is_whole_slice(node)):
            copies[node] = copies[node.args[0]]
            continue
        if node.op == "call_function" and node.target is aten.to.dtype and _keeps_type(node):
            copies[node] = copies[node.args[0]]
            continue
        copied = graph.node_copy(node, lambda source: copies[source])
        if _is_in_place(node):
            copied.target = _functional(node)
        if copied.target in (aten.view.default, aten.reshape.default):
            copied.target = aten.reshape.default  # a view asks for a memory layout; calls to contiguous() are gone
            sizes = static_shape(node)
            # One free dimension is inferred from the others, so the symbolic size need not be computed.
            if sizes.count(-1) <= 1:
                copied.args = (copied.args[0], list(sizes))
        if node.op == "call_function":
            copied._rename(_module_name(node))
        copies[node] = copied
    return graph


def _is_whole_slice(node: Node) -> bool:
    if node.target is not aten.slice.Tensor:
        return False
    start, end, step = (argument(node, i, name) for i, name in ((2, "start"), (3, "end"), (4, "step")))
    return start in (None, 0) and (end is None or end == sys.maxsize) and step in (None, 1)


def _keeps_type(node: Node) -> bool:
    source = node.args[0]
    return isinstance(source, Node) and source.meta["val"].dtype == node.meta["val"].dtype


def _functional(node: Node) -> Any:
    """The operator without the trailing underscore that computes what the in-place one writes."""
    packet, overload = str(node.target).removeprefix("aten.").split(".")
    return getattr(getattr(aten, packet.removesuffix("_")), overload)


def _module_name(node: Node) -> str:
    """The module path with dots as underscores; the operator's word is added where the module is no single layer."""
    stack = node.meta.get("nn_module_stack") or {}
    path, kind = list(stack.values())[-1] if stack else ("", "")
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    word = str(getattr(node.target, "__name__", node.target)).split(".")[0].strip("_")
    is_layer = kind.startswith("torch.nn.modules") and not kind.endswith(_CONTAINERS)
    name = path if is_layer and path else f"{path}_{word}" if path else word
    return name.replace(".", "_").replace("/", "_")


def _output_names(exported: torch.export.ExportedProgram) -> tuple[str, ...]:
    """Names of the flat outputs: a dictionary's keys, `output` for a single tensor, else output_0, output_1, ..."""
    count = len(exported.graph_signature.user_outputs)
    structure = exported.call_spec.out_spec
    keys = structure.context if structure is not None and structure.type in (dict,) else None
    if isinstance(keys, list) and len(keys) == count:
        return tuple(str(key) for key in keys)
    return ("output",) if count == 1 else tuple(f"output_{index}" for index in range(count))
