"""What compares values of the image, and chooses by that, in terms of numbers: a truth is 1, its contrary 0.

Spellings of the normal form. Behind them no tensor computed from the image holds truths or whole numbers: such as torch
has there are float32 here. Masks that depend on no image stay truths, as they become constants.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import nn
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from calibration.graph.constants import LOWEST
from calibration.graph.operators import argument, kind
from calibration.normal_form.known_values import known_value
from calibration.normal_form.spellings import Spelling, Write, rule_of, source_of

aten = torch.ops.aten

#: Operators of kind "other" that give for 1 and 0 what they give for truths and for whole numbers.
_ON_NUMBERS = frozenset(
    {
        aten.abs.default,
        aten.amax.default,
        aten.amin.default,
        aten.max.other,
        aten.maximum.default,
        aten.min.other,
        aten.minimum.default,
        aten.reciprocal.default,
        aten.sign.default,
        aten.sum.dim_IntList,
        aten.unbind.int,
        operator.getitem,
    }
)

# Beyond any score that a softmax or a maximum reads: a number that is added to x and swallows it.
_SWALLOWS = 1e30


#: Where a node keeps the exported one that it is written for while the graph is written, whose types are torch's.
EXPORTED: Final = "exported"


def is_number(operand: object) -> bool:
    """Whether an operand holds numbers of floating point, as all do that are computed from the image."""
    value = _first(operand)
    return value is not None and value.is_floating_point()


def was_truth(node: Node, place: int, name: str) -> bool:
    """Whether an argument holds truths in torch, which are numbers here where they are computed from the image."""
    operand = argument(node.meta[EXPORTED], place, name)
    return isinstance(operand, bool) or _is_truth(operand)


def settle(graph: Graph, written: Node, node: Node) -> None:
    """Let a node that stays as it was exported read and hold numbers, where the truths that it reads are numbers here.

    What wants truths or whole numbers is given such again, as the exported `node` was: it is refused by name later.
    """
    value, first = node.meta.get("val"), _first(node)
    theirs, ours = (pytree.tree_leaves((each.args, each.kwargs)) for each in (node, written))
    changed = {our: their for our, their in zip(ours, theirs, strict=False) if is_number(our) and not is_number(their)}
    if not changed or first is None:
        return
    if len(theirs) != len(ours) or kind(written) != "other" or written.target in _ON_NUMBERS:
        if not first.is_floating_point():
            written.meta["val"] = (
                [part.float() for part in value] if isinstance(value, (list, tuple)) else first.float()
            )
        return
    for our, their in changed.items():
        with graph.inserting_before(written):
            back = graph.call_function(aten.to.dtype, (our, their.meta["val"].dtype))
        back.meta = dict(their.meta)
        written.replace_input_with(our, back)


def _first(node: object) -> torch.Tensor | None:
    """The tensor that a node gives, or the first of several."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    value = value[0] if isinstance(value, (list, tuple)) and value else value
    return value if isinstance(value, torch.Tensor) else None


def beyond(w: Write, values: Any, threshold: Any) -> Node:
    """1 where a value lies above the threshold, else 0: the sign of their difference without that of lower ones."""
    return w(aten.relu.default, w(aten.sign.default, w(aten.sub.Tensor, values, threshold)))


def _below(w: Write, values: Any, threshold: Any) -> Node:
    difference = w(aten.sign.default, w(aten.sub.Tensor, values, threshold))
    return w(aten.relu.default, w(aten.mul.Tensor, difference, -1.0))


def contrary(w: Write, truths: Node) -> Node:
    """The numbers 1 - x."""
    return w(aten.add.Tensor, w(aten.mul.Tensor, truths, -1.0), 1.0)


def _unequal(w: Write, first: Any, second: Any) -> Node:
    return w(aten.abs.default, w(aten.sign.default, w(aten.sub.Tensor, first, second)))


def chosen(w: Write, mask: Node, there: float, elsewhere: float) -> Node:
    """Two numbers, one of them 0 or both 0 and 1, by a mask of truths or of numbers."""
    if not is_number(mask):
        return w(aten.where.Scalar, mask, there, elsewhere)
    if elsewhere == 0.0:
        return mask if there == 1.0 else w(aten.mul.Tensor, mask, there)
    others = contrary(w, mask)
    assert there == 0.0
    return others if elsewhere == 1.0 else w(aten.mul.Tensor, others, elsewhere)


def filled(w: Write, source: Node, mask: Node, value: float, *, contrarily: bool = False) -> Node | None:
    """A tensor with one number where a mask is true, or `contrarily` where it is not; None of NaN.

    The number takes the place of what is multiplied by 0; one beyond all values is added, as a softmax and a maximum
    make the same of it.
    """

    def numbers(there: float, elsewhere: float) -> Node:
        return chosen(w, mask, *((elsewhere, there) if contrarily else (there, elsewhere)))

    if math.isnan(value):
        return None
    if abs(value) > _SWALLOWS:
        return w(aten.add.Tensor, source, numbers(min(max(value, LOWEST), -LOWEST), 0.0))
    kept = w(aten.mul.Tensor, source, numbers(0.0, 1.0))
    return kept if value == 0 else w(aten.add.Tensor, kept, numbers(value, 0.0))


def _compared(compare: Callable[[Write, Any, Any], Node]) -> Spelling:
    """A comparison of numbers; one of whole numbers or truths, as those of positions, is left alone."""

    def spelling(w: Write, node: Node) -> Node | None:
        operands = node.args[:2]
        if not any(is_number(operand) for operand in operands) or known_value(node) is not None:
            return None
        first, second = (_number(w, operand) for operand in operands)
        result = compare(w, first, second)
        return result if result.meta["val"].dtype == torch.float32 else None

    return spelling


def _number(w: Write, operand: Any) -> Any:
    """An operand, of truths as numbers."""
    if isinstance(operand, bool):
        return float(operand)
    return w(aten.where.Scalar, operand, 1.0, 0.0) if _is_truth(operand) else operand


def _truths(w: Write, node: Node, place: int, name: str) -> Any:
    """1 where an argument is true, which a number is that is not 0."""
    operand = argument(node, place, name)
    if not isinstance(operand, Node):
        return float(bool(operand))
    return _number(w, operand) if was_truth(node, place, name) else _unequal(w, operand, 0.0)


def _is_truth(node: object) -> bool:
    """Whether a node's tensor is of truths."""
    value = _first(node)
    return value is not None and value.dtype == torch.bool


def _joined(join: Callable[[Write, Any, Any], Node]) -> Spelling:
    """Truths of two operands, one of them at least computed from the image, joined; whole numbers are left alone."""

    def spelling(w: Write, node: Node) -> Node | None:
        if not _is_truth(node) or not any(is_number(operand) for operand in node.args[:2]):
            return None
        if known_value(node) is not None:
            return None
        return join(w, *(_truths(w, node, place, name) for place, name in enumerate(("self", "other"))))

    return spelling


def _both(w: Write, first: Any, second: Any) -> Node:
    return w(aten.mul.Tensor, first, second)


def _either(w: Write, first: Any, second: Any) -> Node:
    is_tensor = isinstance(second, Node)
    return w(aten.maximum.default if is_tensor else aten.clamp_min.default, first, second)


def _neither(w: Write, node: Node) -> Node | None:
    if not _is_truth(node) or not is_number(source_of(node)) or known_value(node) is not None:
        return None
    return contrary(w, _truths(w, node, 0, "self"))


def _converted(w: Write, node: Node) -> Node | None:
    """Numbers that are truths or whole in torch stay what they are; truths are made of others by comparing with 0."""
    source, type_ = source_of(node), node.meta["val"].dtype
    if not is_number(source) or known_value(node) is not None:
        return None
    if type_ == torch.bool:
        truths: Node = _truths(w, node, 0, "self")
        return truths
    was_whole = not is_number(argument(node.meta[EXPORTED], 0, "self"))
    return source if was_whole and type_ in _HELD else None


#: Types whose values, where they come from truths, float32 holds: sums of sixteen million are exact.
_HELD = frozenset({torch.float32, torch.int32, torch.int64})


def _masked(w: Write, node: Node) -> Node | None:
    source, mask, value = source_of(node), argument(node, 1, "mask"), number_in(argument(node, 2, "value"))
    if not is_number(source):
        return None
    if value == -math.inf and known_value(source) is not None and known_value(mask) is not None:
        # A mask of attention, whose rows that are wholly hidden are to be told from such of the lowest number.
        return w(aten.add.Tensor, source, w(aten.where.Scalar, mask, value, 0.0))
    if value is None:
        return _one_of(w, mask, argument(node, 2, "value"), source)
    if source.target in _FILLED and (number := number_in(source)) is not None:
        return _as_large(w, node, _one_number_of(w, mask, value, number))
    return filled(w, source, mask, value)


def number_in(value: object) -> float | None:
    """The one number that a value is, or a tensor holds everywhere; None of any other."""
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, Node):
        return None
    if value.target in _FILLED:
        number = _FILLED[value.target]
        number = (
            argument(value, 2 if value.target is aten.new_full.default else 1, "fill_value")
            if number is None
            else number
        )
        return float(number) if isinstance(number, (int, float)) else None
    tensor = known_value(value)
    if tensor is None or isinstance(tensor, nn.Parameter) or tensor.numel() == 0 or tensor.is_complex():
        return None  # a parameter is trained
    first = tensor.reshape(-1)[:1]
    return float(first) if bool((tensor == first).all()) else None


#: New tensors of one value, which may be as large as the batch -> the value; None where an argument says it.
_FILLED: Mapping[Any, float | None] = {
    **dict.fromkeys((aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default), 0.0),
    **dict.fromkeys((aten.ones.default, aten.ones_like.default, aten.new_ones.default), 1.0),
    **dict.fromkeys((aten.full.default, aten.full_like.default, aten.new_full.default)),
}


def _where(w: Write, node: Node) -> Node | None:
    """One of two values each: numbers take the other's place, two tensors are multiplied by 1 and 0 and added."""
    mask, there, elsewhere = (argument(node, place, name) for place, name in enumerate(("condition", "self", "other")))
    if known_value(node) is not None or not (is_number(mask) or known_value(mask) is not None):
        return None
    first, second = number_in(there), number_in(elsewhere)
    if first is not None and second is not None:
        result: Node | None = _one_number_of(w, mask, first, second)
    elif second is not None and is_number(there):
        result = filled(w, there, mask, second, contrarily=True)
    elif first is not None and is_number(elsewhere):
        result = filled(w, elsewhere, mask, first)
    else:
        result = _one_of(w, mask, there, elsewhere)
    return _as_large(w, node, result)


def _one_number_of(w: Write, mask: Node, there: float, elsewhere: float) -> Node | None:
    """One of two numbers; of infinity the largest number is made, of which a softmax makes the same."""
    if math.isnan(there) or math.isnan(elsewhere):
        return None
    first, second = (min(max(number, LOWEST), -LOWEST) for number in (there, elsewhere))
    if second == 0.0:
        return chosen(w, mask, first, 0.0)
    others = chosen(w, mask, 0.0, second)
    return others if first == 0.0 else w(aten.add.Tensor, others, chosen(w, mask, first, 0.0))


def _one_of(w: Write, mask: Node, there: object, elsewhere: object) -> Node | None:
    if not is_number(there) or not is_number(elsewhere):
        return None
    first = w(aten.mul.Tensor, there, chosen(w, mask, 1.0, 0.0))
    return w(aten.add.Tensor, first, w(aten.mul.Tensor, elsewhere, chosen(w, mask, 0.0, 1.0)))


def _as_large(w: Write, node: Node, result: Node | None) -> Node | None:
    """A result, where it has the shape and type that torch gives it: a number has not the shape it was spread over."""
    if result is None or result.meta["val"].dtype != torch.float32:
        return None
    return result if result.meta["val"].dim() == node.meta["val"].dim() and _sizes(result) == _sizes(node) else None


def _sizes(node: Node) -> list[str]:
    return [str(size) for size in node.meta["val"].shape]


def _step(w: Write, node: Node) -> Node | None:
    """0 below 0, 1 above, and what is given at 0."""
    source, values = source_of(node), argument(node, 1, "values")
    at_zero = contrary(w, _unequal(w, source, 0.0))
    return w(aten.add.Tensor, beyond(w, source, 0.0), w(aten.mul.Tensor, at_zero, values))


def _reduced(target: Any) -> Spelling:
    """Whether any truth along axes is true, or all are."""

    def spelling(w: Write, node: Node) -> Node | None:
        axes = argument(node, 1, "dim")
        if not is_number(source_of(node)) or axes is None:
            return None
        named = [int(axis) for axis in axes] if isinstance(axes, (list, tuple)) else [int(axes)]
        return w(target, source_of(node), named, bool(argument(node, 2, "keepdim", False))) if named else None

    return spelling


def _overloads(word: str) -> list[Any]:
    return [
        getattr(getattr(aten, name), each)
        for name in (f"bitwise_{word}", f"__{word}__")
        for each in ("Tensor", "Scalar")
    ]


_SPELLINGS: Mapping[Any, Spelling] = {
    **dict.fromkeys((aten.gt.Scalar, aten.gt.Tensor), _compared(beyond)),
    **dict.fromkeys((aten.lt.Scalar, aten.lt.Tensor), _compared(_below)),
    **dict.fromkeys((aten.le.Scalar, aten.le.Tensor), _compared(lambda w, a, b: contrary(w, beyond(w, a, b)))),
    **dict.fromkeys((aten.ge.Scalar, aten.ge.Tensor), _compared(lambda w, a, b: contrary(w, _below(w, a, b)))),
    **dict.fromkeys((aten.ne.Scalar, aten.ne.Tensor), _compared(_unequal)),
    **dict.fromkeys((aten.eq.Scalar, aten.eq.Tensor), _compared(lambda w, a, b: contrary(w, _unequal(w, a, b)))),
    **dict.fromkeys((*_overloads("and"), aten.logical_and.default), _joined(_both)),
    **dict.fromkeys((*_overloads("or"), aten.logical_or.default), _joined(_either)),
    **dict.fromkeys((*_overloads("xor"), aten.logical_xor.default), _joined(_unequal)),
    **dict.fromkeys((aten.bitwise_not.default, aten.logical_not.default), _neither),
    aten.heaviside.default: _step,
    aten.masked_fill.Scalar: _masked,
    aten.masked_fill.Tensor: _masked,
    **dict.fromkeys((aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar), _where),
    **dict.fromkeys((aten.any.dim, aten.any.dims), _reduced(aten.amax.default)),
    **dict.fromkeys((aten.all.dim, aten.all.dims), _reduced(aten.amin.default)),
}

#: Rule of the normal form per operator.
COMPARISONS: Mapping[Any, tuple[Callable[[Graph, Node], Node], ...]] = {
    target: (rule_of(spelling),) for target, spelling in _SPELLINGS.items()
}
#: Rule of the normal form for a sum of truths, which is true where one of them is.
sum_of_truths = rule_of(_joined(_either))
#: Rule of the normal form for a conversion.
conversion_of_truths = rule_of(_converted)
