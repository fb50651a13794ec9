"""What a tensor still carries of the integers and factors before it, which a compiler moves over many operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray
from onnx import NodeProto

WriterOf = Callable[[str], NodeProto | None]
ValueOf = Callable[[str], NDArray[Any] | None]

NORMALISATIONS = frozenset({"LayerNormalization", "InstanceNormalization"})
_MEANS = frozenset({"ReduceMean", "GlobalAveragePool"})
#: What no factor is moved over: layers, which have a bias, bounds by a Max or Min, and functions that curve.
_ENDS = frozenset(
    {
        *("Conv", "ConvTranspose", "Gemm", "Max", "Min", "Softmax", "LogSoftmax", "Gelu", "Erf", "Sigmoid", "Tanh"),
        *("HardSigmoid", "HardSwish", "Elu", "Celu", "Selu", "Softplus", "Mish", "Exp", "Log", "Sqrt", "Reciprocal"),
        *("Sin", "Cos", "Atan", "Pow"),
    }
)
#: What only moves values.
_MOVES = frozenset(
    {
        *("Reshape", "Flatten", "Transpose", "Slice", "Gather", "Split", "Squeeze", "Unsqueeze", "Concat", "Expand"),
        *("Identity", "MaxPool"),
    }
)
_ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "MatMul"})


def normalised(operator: str, inputs: Sequence[str], writer_of: WriterOf) -> bool:
    """Whether a node normalises its first input, or is the difference from its mean that such a form begins with."""
    if operator in NORMALISATIONS:
        return True
    mean = writer_of(inputs[1]) if operator == "Sub" else None
    return mean is not None and mean.op_type in _MEANS and mean.input[0] == inputs[0]


def carries_factor(tensor: str, writer_of: WriterOf, value_of: ValueOf) -> bool:
    """Whether a tensor is the product of a constant and of others, changed or not since by what factors pass through.

    Integers and their scale are such a product, but where a zero point is taken away and no more than moved.
    """
    stack, seen = [(tensor, True)], set[tuple[str, bool]]()
    while stack:
        name, moved = stack.pop()
        node = writer_of(name)
        if node is None or (name, moved) in seen or node.op_type in _ENDS:
            continue
        seen.add((name, moved))
        if node.op_type == "DequantizeLinear":
            zero = value_of(node.input[2]) if len(node.input) > 2 else None
            if not moved or zero is None or not zero.any():
                return True
        elif node.op_type in NORMALISATIONS:
            return True  # its weights
        elif node.op_type in ("Mul", "Div") and any(_is_stored(operand, writer_of, value_of) for operand in node.input):
            return True
        else:
            stack.extend((source, moved and node.op_type in _MOVES) for source in _read(node))
    return False


def carries_integers(tensor: str, writer_of: WriterOf, value_of: ValueOf) -> bool:
    """Whether a tensor is made of integers that are read, moved or changed since, but with no other tensor."""
    stack, seen = [tensor], set[str]()
    while stack:
        name = stack.pop()
        node = writer_of(name)
        if node is None or name in seen or node.op_type in _ENDS | NORMALISATIONS | {"QuantizeLinear"}:
            continue
        seen.add(name)
        if node.op_type == "DequantizeLinear":
            return True
        computed = [operand for operand in _read(node) if not _is_stored(operand, writer_of, value_of)]
        if len(computed) == 1 or node.op_type == "Concat":
            stack.extend(computed)
    return False


def _read(node: NodeProto) -> list[str]:
    """The tensors whose values a node computes with; other inputs are sizes, places and parameters."""
    return list(node.input) if node.op_type in _ARITHMETIC | {"Concat"} else list(node.input[:1])


def _is_stored(tensor: str, writer_of: WriterOf, value_of: ValueOf) -> bool:
    """Whether it is a constant, of floats or of integers behind a DequantizeLinear."""
    node = writer_of(tensor)
    if node is not None and node.op_type in ("DequantizeLinear", "Cast"):
        return _is_stored(node.input[0], writer_of, value_of)
    return node is None and value_of(tensor) is not None
