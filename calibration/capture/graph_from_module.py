"""From a trained module to a plain graph of ATen operators, ready to be folded and quantised."""

from __future__ import annotations

import builtins
import contextlib
import inspect
import io
import logging
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.export.graph_signature import ConstantArgument, OutputKind, TensorArgument
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from calibration.capture.eager import own_copy
from calibration.capture.one_image import changes_constants, of_any_batch
from calibration.capture.preconditions import check_outputs, check_parameters, tell_of_hooks
from calibration.capture.returned_containers import make_known
from calibration.errors import UserError, is_ours_to_report, message_of, raise_lack_of_memory
from calibration.graph.arguments import check_kept
from calibration.graph.interface import Interface, make_graph_module
from calibration.graph.sharing import sharing_copy
from calibration.normal_form.mutation import mutates_a_view
from calibration.normal_form.no_effect import NO_OPERATION
from calibration.normal_form.regions import without_regions
from calibration.normal_form.rules import normal_form

_REMEDY = (
    "wrap or replace that part with a builder given as --teacher python:package.module:function, or name a part that"
    " can be captured with --submodule (docs/networks.md)"
)

#: Operators that are tagged as drawing random numbers for a dropout of theirs, which drops nothing in evaluation mode.
_TAGGED_FOR_MORE = ("attention", "lstm", "gru", "rnn_")


def capture(module: nn.Module, example: Tensor, *, source: str, one_image: bool = False) -> GraphModule:
    """Capture `module` in evaluation mode as a graph of functional ATen operators over a free batch size.

    `example` float32 [B, C, H, W] with B >= 2; `source` names the network in errors. With `one_image` the module is
    shown its first image alone, and the graph gives each of several what the module gives it so. The result returns a
    tuple of tensors, whose names its interface has (`interface_of`); its nodes are named after the modules they come
    from, its parameters lie in the module's memory. Raises UserError naming module and line when the network
    cannot be captured.
    """
    captured, names = exported_graph(module, example, source=source, one_image=one_image)
    graph = normal_form(captured, source=source)
    check_outputs(graph, names, source)
    plain = make_graph_module(captured, graph, Interface(outputs=names, one_image=one_image))
    _check_chance(plain, source)
    check_kept(plain.graph, source)
    for parameter in plain.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return plain


def exported_graph(
    module: nn.Module, example: Tensor, *, source: str, one_image: bool = False
) -> tuple[GraphModule, tuple[str, ...]]:
    """The graph as torch.export gives it, before the normal form, and the names of its outputs; see `capture`."""
    _check_arguments(module, source)
    check_parameters(module, source)
    tell_of_hooks(module, source)
    exported, names = _export(module, example[:1] if one_image else example, source, one_image)
    with _hushed():
        if mutates_a_view(exported.graph, harmless=NO_OPERATION) or (one_image and changes_constants(exported.graph)):
            # A write through a view changes a tensor that other nodes read: only full functionalisation is right.
            exported = exported.run_decompositions({})
        graph_module = exported.module(check_guards=False)  # checks of what it is called with are no operators
        if one_image:
            graph_module = without_regions(graph_module, source)
            _check_chance(graph_module, source)
            graph_module = of_any_batch(graph_module, names=names, source=source)
        return graph_module, names


def _export(
    module: nn.Module, example: Tensor, source: str, one_image: bool
) -> tuple[ExportedProgram, tuple[str, ...]]:
    """The exported program of a copy of the module, and the names of its outputs."""
    try:
        with _hushed():
            module = sharing_copy(module)
            module.eval()  # a network's own version need not return it
        # Before exporting, which runs on tensors without values: older versions of torch check less there.
        _check_takes(own_copy(module), example, source)
        with _hushed(), _length_of_tensors():
            exported = export(module, (example,), strict=False) if one_image else _of_any_batch(module, example)
    except BaseException as error:
        # The network's own code runs here, so any exception may come; it is reported, never swallowed.
        if not is_ours_to_report(error):
            raise
        raise UserError(
            f"{source}: the network cannot be captured as a graph: {_reason(error)}"
            f" (in {_where(module, error.__traceback__)}); {_REMEDY}"
        ) from error
    return exported, _output_names(exported, source)


@contextlib.contextmanager
def _length_of_tensors() -> Iterator[None]:
    """Inside, len(x) of a tensor is x.shape[0], which exporting keeps free: Python's own len turns it into a number.

    Code such as tokens.expand(len(x), -1, -1) works for every batch size, and only this keeps it from being captured.
    """
    original = builtins.len

    def length(value: Any, /) -> Any:
        return value.shape[0] if isinstance(value, Tensor) and value.dim() else original(value)

    builtins.len = length
    try:
        yield
    finally:
        builtins.len = original


def _of_any_batch(module: nn.Module, example: Tensor) -> ExportedProgram:
    """The exported program, its batch size free.

    A network that keeps something per shape of its input (the anchors of YOLO's heads) compares the shape of its last
    call with the one at hand. Where both are of one batch size, torch takes that size for a condition, so the network
    is exported again after a call with another: then it makes anew what it keeps.
    """

    def exported(network: nn.Module) -> ExportedProgram:
        return export(network, (example,), dynamic_shapes=_free_batch(network), strict=False)

    try:
        return exported(module)
    except Exception as error:  # the network's own code runs here; the second attempt reports it
        raise_lack_of_memory(error)
        if not _is_of_one_batch_size(error):
            raise
    recalled = own_copy(module)
    recalled(torch.cat([example, example[:1]]))
    return exported(recalled)


def _is_of_one_batch_size(error: BaseException) -> bool:
    return message_of(error).strip().startswith("Constraints violated")  # torch's line speaks of L['x'].size()[0]


def _check_chance(graph_module: GraphModule, source: str) -> None:
    """Refuse a graph that draws random numbers."""
    for node in graph_module.graph.nodes:
        tags = getattr(node.target, "tags", ()) if node.target not in NO_OPERATION else ()
        if torch.Tag.nondeterministic_seeded in tags and not any(word in str(node.target) for word in _TAGGED_FOR_MORE):
            raise UserError(
                f"{source}: {node.name} ({node.target}) draws random numbers in evaluation mode, so that no two answers"
                f" are the same; {_REMEDY}"
            )


def _arguments(module: nn.Module) -> list[inspect.Parameter]:
    """What the network's forward takes by name, the image first."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except Exception as error:  # no signature, or the user's own code failed: the call will tell
        raise_lack_of_memory(error)
        return []
    return [p for p in parameters if p.kind not in variadic]


def _free_batch(module: nn.Module) -> tuple[Any, ...]:
    """What says to torch that the first axis of the image is free; an image that `*args` takes is one of several."""
    free = {0: Dim.DYNAMIC}
    return (free,) if _arguments(module) else ((free,),)


def _check_arguments(module: nn.Module, source: str) -> None:
    """Refuse a network that needs more than its image."""
    others = [p.name for p in _arguments(module)[1:] if p.default is inspect.Parameter.empty]
    if others:
        raise UserError(
            f"{source}: the network also needs its input {others[0]}, which is no image: data sources yield images"
            f" alone, so fix {', '.join(others)} in a builder given as --teacher python:package.module:function"
            " (docs/networks.md)"
        )


def _check_takes(module: nn.Module, example: Tensor, source: str) -> None:
    """Refuse a network whose own code does not run on images; one that does is left to the caller."""
    try:
        with _hushed():
            results = module(example)
    except BaseException as error:  # whatever the network's own code raises
        if not is_ours_to_report(error):
            raise
        name = next((p.name for p in _arguments(module)), "input")
        remedy = _other_type(module, error) or (
            "--image-size, --mean and --std set the size and number of channels of images, a builder an input that is"
            " no image (docs/networks.md)"
        )
        raise UserError(
            f"{source}: the network does not take images float32 {list(example.shape)} as its input {name}:"
            f" {_reason(error)} (in {_where(module, error.__traceback__)}); {remedy}"
        ) from error
    make_known(results, source)


def _other_type(module: nn.Module, error: BaseException) -> str | None:
    """What to do where parameters are of another type than images; None where that is not why it failed."""
    if "type" not in message_of(error):
        return None
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            return (
                f"its {name} is {kind}, and networks are captured in float32: call .float() on the network, in a"
                " builder given as --teacher python:package.module:function (docs/networks.md)"
            )
    return None


@contextlib.contextmanager
def reported(module: nn.Module, source: str, shown: str) -> Iterator[None]:
    """Inside, exceptions are the network's own: one becomes a `UserError` that says with which images and where."""
    try:
        with _hushed():
            yield
    except BaseException as error:  # whatever the network's own code raises
        if not is_ours_to_report(error):
            raise
        raise UserError(
            f"{source}: the network does not run on {shown}, one by one and several at once: {_reason(error)}"
            f" (in {_where(module, error.__traceback__)}); {_REMEDY}"
        ) from error


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without gradients, warnings and torch's dump of the half-made graph: our one line says where it ended.

    What the network itself writes to stderr is passed on when it could be captured.
    """
    chatter, written = logging.getLogger("torch.fx.experimental.symbolic_shapes"), io.StringIO()
    disabled = chatter.disabled
    try:
        # Another level would empty what all loggers of the process remember of theirs, and torch asks all the time.
        chatter.disabled = True
        with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stderr(written):
            warnings.simplefilter("ignore")
            yield
        sys.stderr.write(written.getvalue())
    finally:
        chatter.disabled = disabled


def _reason(error: BaseException) -> str:
    """The kind of exception and the first line of its message, shortened."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r}), which ends the program"
    lines = message_of(error).strip().splitlines() or ["no message"]
    if _is_of_one_batch_size(error):
        return "it works for one batch size only, because its code turns the batch size into a constant"
    if type(error).__name__.startswith("GuardOnDataDependent"):  # torch's line speaks of symbols such as u0
        return "its control flow depends on the values of a tensor"
    return f"{type(error).__name__}: {lines[0][:300]}"


def _where(module: nn.Module, trace: TracebackType | None) -> str:
    """The path of the innermost sub-module that ran, and the innermost line of the network's own code."""
    paths = {id(child): name for name, child in module.named_modules() if name}
    standard_library, torch_library = Path(sysconfig.get_path("stdlib")), Path(torch.__file__).parent
    path, place = type(module).__name__, ""
    for frame, line in traceback.walk_tb(trace):
        names, file = frame.f_code.co_varnames, Path(frame.f_code.co_filename)
        if names:
            path = paths.get(id(frame.f_locals.get(names[0])), path)
        in_standard_library = standard_library in file.parents and "site-packages" not in file.parts
        ours = Path(__file__).parents[1] in file.parents
        if file.is_file() and not (torch_library in file.parents or in_standard_library or ours):
            place = f", {file}:{line}"
    return f"module {path}{place}"


def _output_names(exported: ExportedProgram, source: str) -> tuple[str, ...]:
    """Names of the outputs: `output` for a single one, the keys of a dictionary, otherwise output_0, output_1, ...

    Nested outputs are named by their path, as in `aux_0`; one that is None has no name: it is left out.
    """
    results = [spec.arg for spec in exported.graph_signature.output_specs if spec.kind is OutputKind.USER_OUTPUT]
    structure = exported.call_spec.out_spec
    assert structure is not None
    leaves, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(results, structure))
    names: list[str] = []
    for path, result in leaves:
        if isinstance(result, ConstantArgument) and result.value is None:
            continue
        words = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
        name = "_".join(words if words and not words[0].isdigit() else ["output", *words])
        if not isinstance(result, TensorArgument):
            kind = type(result.value).__name__ if isinstance(result, ConstantArgument) else "number"
            raise UserError(f"{source}: the network's output {name} is no tensor but a {kind}; {_REMEDY}")
        while name in names:
            name += f"_{len(names)}"
        names.append(name)
    return tuple(names)
