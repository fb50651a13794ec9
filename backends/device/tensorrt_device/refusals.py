"""What the SDK's refusals mean, in our words: one row per kind of message, with the rule that the file breaks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import DeviceError


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """One row: what the SDK's text holds, the number of the rule (docs/tensorrt.md) and what it means for the user."""

    pattern: str
    rule: int | None
    meaning: str


#: Checked in this order. Patterns without a remark: text of TensorRT-RTX 1.7's parser, the same code as TensorRT's.
REFUSALS: tuple[Refusal, ...] = (
    Refusal(
        # Error code 2 of the CUDA runtime; the SDK's own word is OutOfMemory (NvInferRuntimeBase.h, ErrorCode).
        pattern=r"out of memory|OutOfMemory|cudaErrorMemoryAllocation|insufficient (device )?memory|failed to allocate",
        rule=None,
        meaning="the device's memory does not suffice for building: free some (on a Jetson, stop the desktop), lower"
        " the largest batch (--batches) or --workspace-mib, or add swap",
    ),
    Refusal(pattern=r"shiftIsAllZeros|[Zz]ero.?points?.*(zero|0)", rule=1, meaning="a zero point is not 0"),
    Refusal(
        pattern=r"input has type Int32|INT32.*[Dd]equantize|[Dd]equantize.*Int32",
        rule=3,
        meaning="it dequantises int32; biases stay float for TensorRT",
    ),
    Refusal(pattern=r"UINT8|UInt8|uint8", rule=2, meaning="it works on uint8, TensorRT has int8 only"),
    Refusal(pattern=r"scaleAllPositive|scale.*positive|positive.*scale", rule=24, meaning="a scale is not positive"),
    Refusal(
        # Of the compiler, not of the parser: a convolution with an int4 weight gets as far as that.
        pattern=r"\bINT4\b|\bInt4\b|int4|dtype == W\.type\(\)",
        rule=25,
        meaning="4-bit weights stand where no kernel reads them",
    ),
    Refusal(
        pattern=r"must be of (the )?same type|must have the same (data )?type",
        rule=8,
        meaning="float types are mixed, and nothing is cast by itself",
    ),
    Refusal(pattern=r"INT16|Int16|int16", rule=2, meaning="it works on 16-bit integers, TensorRT has int8 only"),
    Refusal(
        pattern=r"Failed to import initializer",
        rule=2,
        meaning="a constant is of a type that TensorRT does not have, such as 16-bit integers",
    ),
    Refusal(
        pattern=r"No importer registered|Unsupported operator|plugin creator|Plugin not found",
        rule=None,
        meaning="this version of TensorRT has no such operator",
    ),
    Refusal(
        # Error code 10 of TensorRT 8 to 11, from many public threads; not seen from TensorRT-RTX.
        pattern=r"[Cc]ould not find any implementation",
        rule=None,
        meaning="TensorRT has no kernel for this layer on this GPU within the memory that it may use: raise"
        " --workspace-mib, or keep the layer float",
    ),
    Refusal(pattern=r"opset", rule=27, meaning="this version of TensorRT does not read the file's opset"),
)

_MOST = 400


def explained(text: str) -> str:
    """Our words for a refusal, and the rule that was broken; the SDK's words alone where no row fits."""
    row = next((row for row in REFUSALS if re.search(row.pattern, text)), None)
    said = f"the SDK says: {' '.join(text.split())[:_MOST]}"
    if row is None:
        return said
    rule = f"rule {row.rule}: " if row.rule is not None else ""
    return f"{rule}{row.meaning}; {said}"


def refused_node(text: str) -> str | None:
    """The layer or layers that a builder's message names, without the decoration of fused ones."""
    match = (
        re.search(r"node \{(.+)\}", text)
        or re.search(r"\[ONNX Layer: ([^\]]+)\]", text)
        or re.search(r"node ([^\s{}]+?)[.)]*(?:\s|$)", text)
    )
    return re.sub(r"ForeignNode\[(.+?)\.\.\.(.+?)\]", r"the layers \1 to \2", match[1].strip()) if match else None


def parser_refusal(product: str, node: str, operator: str, text: str) -> DeviceError:
    """The error for a model that the parser does not take."""
    where = f"{node} ({operator})" if node else "the model"
    return DeviceError(f"{where}: {product} refuses it when parsing; {explained(text)}")


def builder_refusal(product: str, errors: Sequence[str]) -> DeviceError:
    """The error for a network that parses and of which no engine can be built; the telling message decides."""
    texts = [text for text in errors if "cudaError 35" not in text] or list(errors)
    telling = [text for text in texts if any(re.search(row.pattern, text) for row in REFUSALS)]
    text = (telling or texts or ["nothing"])[0]
    where = refused_node(text) or "the model"
    return DeviceError(f"{where}: {product} builds no engine; {explained(text)}")
