"""What an engine is made of: its kernels, read from the inspector's JSON (10.x and 11.x) or a compiler's listing."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import DeviceError

#: A type's word inside a format of 10.x ("Row major linear FP32"), and the inspector's own word for it in 11.x.
_TYPES = {
    "int8": "Int8",
    "fp8": "FP8",
    "int4": "Int4",
    "fp16": "Half",
    "half": "Half",
    "bf16": "BFloat16",
    "bfloat16": "BFloat16",
    "fp32": "Float",
    "float": "Float",
    "int32": "Int32",
    "int64": "Int64",
    "uint8": "UInt8",
    "bool": "Bool",
}
# Tactics that multiply integers say so: i8i8_i8i32 (CASK), s8 (CUTLASS), int8 or imma (others).
_INTEGER_TACTIC = re.compile(r"i8i8|_s8|s8s8|int8|imma", re.IGNORECASE)
_ROUNDING = re.compile(r"QuantizeLinear|DequantizeLinear|_(q|dq)_*$")


@dataclass(frozen=True, kw_only=True)
class EngineKernel:
    """One kernel of an engine: its kind, the nodes of the model that it computes, and the types that it works on.

    `inputs` and `outputs` are the types of its tensors, `weights` those of its constants of two dimensions or more,
    empty where the engine does not say; `tactic` is the name of the code that was chosen.
    """

    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    weights: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    name: str = ""
    tactic: str = ""

    @property
    def multiplies_integers(self) -> bool:
        """Whether it reads int8 data and int8 weights; where it does not say, the name of its code decides."""
        if "Int8" not in self.inputs:
            return False
        return "Int8" in self.weights if self.weights else bool(_INTEGER_TACTIC.search(self.tactic))

    @property
    def multiplies_int8_tensors(self) -> bool:
        """Whether it reads two tensors of int8 or more, as the products of attention do: alone or all in one kernel."""
        return self.inputs.count("Int8") >= 2

    @property
    def reads_int4(self) -> bool:
        """Whether it multiplies its data by int4 weights as they are; one that only expands those has no data."""
        return bool(self.inputs) and "Int4" in self.weights

    @property
    def is_reformat(self) -> bool:
        """Whether it only copies a tensor to another format or type."""
        return self.kind == "Reformat" or self.name.startswith("Reformatting CopyNode")

    @property
    def fused(self) -> int:
        """Nodes of the model that it computes, roundings left out."""
        return sum(not _ROUNDING.search(node) for node in self.nodes)


@dataclass(frozen=True, kw_only=True)
class EngineCensus:
    """Weighted layers by the arithmetic of their kernel, and how many kernels there are of what sort.

    `integer`, `floating`: layers of the plan; `unseen`: those of `floating` that no kernel names. `fused` counts
    kernels of two nodes or more, `reformats` the copies between formats, `integer_reformats` those of int8,
    `int4_products` the kernels that multiply by int4 weights as they are; `integer_products` and `float_products`:
    planned products of two activations, by whether both are read as int8.
    """

    integer: tuple[str, ...]
    floating: tuple[str, ...]
    unseen: tuple[str, ...]
    kernels: int
    fused: int
    reformats: int
    integer_reformats: int
    int4_products: int
    integer_products: tuple[str, ...]
    float_products: tuple[str, ...]
    kinds: Mapping[str, int]


def census(kernels: Sequence[EngineKernel], layers: Sequence[str], products: Sequence[str] = ()) -> EngineCensus:
    """Count an engine's kernels, and which of these layers and products of activations they compute on integers."""
    on_int8 = {node for kernel in kernels if kernel.multiplies_int8_tensors for node in kernel.nodes}
    integer = {node for kernel in kernels if kernel.multiplies_integers for node in kernel.nodes}
    seen = {node for kernel in kernels for node in kernel.nodes}
    floating = tuple(layer for layer in layers if layer not in integer)
    reformats = [kernel for kernel in kernels if kernel.is_reformat]
    return EngineCensus(
        integer=tuple(layer for layer in layers if layer not in floating),
        floating=floating,
        unseen=tuple(layer for layer in floating if layer not in seen),
        kernels=len(kernels),
        fused=sum(kernel.fused > 1 for kernel in kernels),
        reformats=len(reformats),
        integer_reformats=sum("Int8" in kernel.inputs + kernel.outputs for kernel in reformats),
        int4_products=sum(kernel.reads_int4 for kernel in kernels),
        integer_products=tuple(product for product in products if product in on_int8),
        float_products=tuple(product for product in products if product not in on_int8),
        kinds=dict(sorted(Counter(kernel.kind for kernel in kernels).items())),
    )


def parse_inspection(text: str) -> tuple[EngineKernel, ...]:
    """The kernels of `get_engine_information(JSON)`, of 10.x (one field Format/Datatype) or 11.x (two fields).

    Raises DeviceError for text that is no such JSON, and for an engine that was built without the layers' details.
    """
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise DeviceError(f"the engine inspector's answer is no JSON with Layers ({error})") from error
    if any(not isinstance(layer, dict) for layer in layers):
        raise DeviceError(
            "the engine holds its layers' names only: build it with detailed profiling verbosity"
            " (trtexec --profilingVerbosity=detailed)"
        )
    return tuple(_kernel(layer) for layer in layers)


def _kernel(layer: Mapping[str, Any]) -> EngineKernel:
    name = str(layer.get("Name", ""))
    weights = [layer[key]["Type"] for key in ("Weights",) if isinstance(layer.get(key), dict) and "Type" in layer[key]]
    constants = [entry for entry in layer.get("Constants", ()) if len(entry.get("Dimensions", ())) >= 2]
    return EngineKernel(
        kind=str(layer.get("LayerType", "unknown")),
        nodes=_nodes(name, str(layer.get("Metadata", ""))),
        inputs=tuple(map(_type, layer.get("Inputs", ()))),
        outputs=tuple(map(_type, layer.get("Outputs", ()))),
        weights=tuple(_TYPES.get(str(word).lower(), str(word)) for word in weights) + tuple(map(_type, constants)),
        name=name,
        tactic=str(layer.get("TacticName", "")),
    )


def _type(tensor: Mapping[str, Any]) -> str:
    """The type of a tensor's entry: a field of its own in 11.x, a word of the format in 10.x."""
    own = tensor.get("Datatype", tensor.get("DataType"))
    words = [str(own)] if own is not None else re.findall(r"\w+", str(tensor.get("Format/Datatype", "")))
    return next((_TYPES[word.lower()] for word in words if word.lower() in _TYPES), "unknown")


def _nodes(name: str, metadata: str) -> tuple[str, ...]:
    """The model's nodes in a kernel: the parser's metadata, else the joined names of 10.x; none in a mere copy."""
    if name.startswith("Reformatting CopyNode"):
        return ()
    names = re.findall(r"\[ONNX Layer: ([^\]]*)\]", metadata)
    return tuple(dict.fromkeys(names or [part.strip() for part in name.split(" + ") if part.strip()]))


def parse_listing(listing: str) -> tuple[EngineKernel, ...]:
    """The kernels of a compiler's "Layers:" message, in its order; lines that name no kernel are skipped."""
    kernels = []
    for line in listing.splitlines():
        kind = re.search(r"LayerType: ([^,]+)", line)
        if not line.startswith("Name:") or kind is None:
            continue
        parts = {word: _listed(line, word) for word in ("Inputs", "Constants", "Outputs")}
        tactic = re.search(r"TacticName: ([^,]*)", line)
        kernels.append(
            EngineKernel(
                kind=kind[1],
                nodes=tuple(re.findall(r"\[ONNX Layer: ([^\]]*)\]", line)),
                inputs=tuple(dtype for _, dtype in parts["Inputs"]),
                weights=tuple(dtype for rank, dtype in parts["Constants"] if rank >= 2),
                outputs=tuple(dtype for _, dtype in parts["Outputs"]),
                name=line[len("Name:") :].partition(",")[0].strip(),
                tactic=tactic[1].strip() if tactic else "",
            )
        )
    return tuple(kernels)


def _listed(line: str, word: str) -> list[tuple[int, str]]:
    """Rank and type of every tensor in one list of a kernel's line."""
    match = re.search(rf"{word}: \[(.*?)\], (?:Constants|Outputs|TacticName):", line)
    tensors = re.findall(r"Dimensions: \[([^\]]*)\].*?Datatype: (\w+)", match[1]) if match else []
    return [(len(dimensions.split(",")), dtype) for dimensions, dtype in tensors]
