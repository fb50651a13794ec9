"""Every operator of the tables with every argument of torch's schema: read, and then right, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node

from backends.onnx_file.emit import emit
from backends.onnx_file.translations import TRANSLATORS
from backends.onnxruntime.backend import OnnxRuntime
from calibration.capture.graph_from_module import capture, exported_graph
from calibration.errors import UserError
from calibration.graph.arguments import IMMATERIAL, READS, Reads, unread
from calibration.graph.nearness import apart
from calibration.graph.operators import KINDS
from calibration.normal_form.mutation import functional, is_in_place
from calibration.normal_form.no_effect import CONVERSIONS, NO_OPERATION
from calibration.normal_form.rules import _RULES
from calibration.normal_form.spellings import IN_PARTS
from calibration.proof.module_and_graph import check_first_link
from calibration.rewrites.fold import fold

aten = torch.ops.aten

#: Calls of operators, y a map [B, 4, 6, 6], r rows [B, 4, 6], i the images, with arguments that are not as by default;
#: the network's float file computes each as the call does.
CALLS = """
conv1d(r, n.w1, n.b, [2], [1], [2], 2) | conv1d.padding(r, n.w1, n.b, [1], 'same', [2], 2)
conv2d.padding(y, n.w2, n.b, [2, 1], 'valid', groups=2) | conv1d.padding(r, n.w1, n.b, [2], 'valid', groups=2)
conv2d(y, n.w2, n.b, [2, 1], [1, 0], [2, 1], 2) | conv2d.padding(y, n.w2, n.b, [1, 1], 'same', [2, 1], 2)
conv_transpose1d(r, n.w1, n.b, [2], [1], [1], 2, [2]) | conv_transpose2d.input(y, n.w2, n.b, [2], [1], [1], 2, [2])
baddbmm(r @ r.mT, r, r.mT, beta=0.5, alpha=2)
linear(r, n.square, n.b6) | scaled_dot_product_attention(r, r, r, n.square[:4, :4], 0.0, False, scale=0.3)
scaled_dot_product_attention(r, r, r, None, 0.0, True)
scaled_dot_product_attention(y, y[:, :2], y[:, :2], enable_gqa=True) | einsum('bcl,bdl->bcd', [r, r], path=[0, 1])
celu(y, 0.7) | clamp(y, -0.5, 0.3) | clamp(y, None, 0.3) | clamp.Tensor(y, n.low, n.low + 1) | elu(y, 0.7)
elu(y, 0.7, 1.3) | elu(y, 0.5, 1, 2.0) | gelu(y, approximate='tanh') | glu(y, 1) | hardshrink(y, 0.2)
hardtanh(y, -0.5, 0.2) | leaky_relu(y, 0.3) | rrelu(y, 0.2, 0.6) | softplus(y, 2, 0.5) | softplus(y, 1, 30)
softshrink(y, 0.2) | add.Tensor(y, y, alpha=2) | sub.Tensor(y, y.sin(), alpha=2) | rsub.Scalar(y, 2, 3)
rsub.Tensor(y, y.sin(), alpha=3) | addcdiv(y, y, y.abs() + 1, value=2) | addcmul(y, y, y, value=2) | diff(y, 1, 2)
amax(y, [1], True) | amin(y, [1], True) | linalg_vector_norm(y, 1, [1], True) | logsumexp(y, [1], True)
max.dim(y, 1, True)[0] | min.dim(y, 1, True)[0] | mean.dim(y, [1], True) | norm.ScalarOpt_dim(y, 1, [1], True)
std.correction(y, [1], correction=0, keepdim=True) | std.dim(y, [1], False, True) | sum.dim_IntList(y, [1], True)
var.correction(y, [1], correction=2, keepdim=True) | var.dim(y, [1], False, True)
group_norm(y, 2, n.b, n.b + 1, 0.1, False) | layer_norm(y, [6], n.b6, n.b6 + 1, 0.1, False)
rms_norm(y, [6], n.b6, 0.1) | avg_pool1d(r, [3], [2], [1], True, False)
avg_pool2d(y, [3, 3], [2, 2], [1, 1], False, False) | avg_pool2d(y, [2, 2], [2, 2], [1, 1], True)
avg_pool3d(y.unsqueeze(1), [2, 1, 1], [1, 1, 1]) | max_pool1d(r, [2], [1], [1], [2], True)
max_pool2d(y, [2, 2], [1, 2], [1, 1], [2, 2], True) | cat([y, y], 1) | chunk(y, 2, 1)[1]
constant_pad_nd(y, [1, 0], 0.5) | flatten.using_ints(y, 1, 2) | pad(y, [1, 1, 1, 1], 'reflect')
pad(y, [1, 1], 'constant', 0.5) | roll(y, [1], [1]) | slice.Tensor(y, 1, 1, 4, 2)
slice_scatter(y, y[:, 1:4:2] * 2, 1, 1, 4, 2) | split.Tensor(y, 3, 1)[0] | split_with_sizes(y, [1, 3], 1)[1]
stack([y, y], 1) | unbind.int(y, 1)[2] | clone(y, memory_format=torch.channels_last)
contiguous(y, memory_format=torch.channels_last) | copy(y, y.sin(), True)
_to_copy(y, dtype=torch.float32, non_blocking=True) | to.device(y, 'cpu', torch.float32, True, True)
to.dtype(y, torch.float32, True, True, torch.channels_last) | to.dtype_layout(y, dtype=torch.float32, copy=True)
to.other(y, n.b, True, True) | any.dim(y > 0, 1, True) * y | any.dims(y > 0, [1, 2], True) * y
all.dim(y > 0, 1, True) * y | all.dims(y > 0, [1], True) * y | round.default(y * 4) | round.decimals(y, decimals=1)
linalg_norm(y, 3, [1], True) | linalg_norm.ord_str(y, 'fro', [1, 2], True) | linalg_vector_norm(y, 3, [2, 3])
linalg_vector_norm(y, -math.inf, [1]) | linalg_matrix_norm.str_ord(y, 'fro', [1, 2], True)
var_mean.dim(y, [1], False, True)[0] | var_mean.correction(y, [1], correction=0, keepdim=True)[1]
std_mean.dim(y, [1], False, True)[0] | std_mean.correction(y, [1], correction=2, keepdim=True)[0]
index_add(y, 1, n.places, y[:, :2], alpha=2) | index_copy(y, 1, n.places, y[:, :2])
index_put(y, [None, n.places], y[:, :2] * 2) | index_put(y, [y < 0], torch.tensor(0.5))
index_put(y, [None, n.places, n.places - 1], y[:, 0, :2]) | index_fill.int_Scalar(y, 1, n.places, 0.5)
tensor_split.sections(y, 3, 1)[0] | tensor_split.indices(y, [1, 3], -3)[1] | hsplit.int(y, 2)[1]
dsplit.array(y, [1, 4])[1] | hstack([y, y]) | dstack([y, y]) | fmax(y, y.sin()) | fmin(y, y.sin())
where.self(y > 0, y, y.sin()) | where.ScalarOther(y.sin() <= y, y, 0.5) | masked_fill.Scalar(y, y >= 0, -1.5)
avg_pool2d(y, [2, 2], divisor_override=3) | avg_pool2d(y, [3, 2], [2, 3], [1, 0], True, False, -2)
masked_fill.Tensor(y, (y > -1) & ~(y.sin() < 0), n.low) | heaviside(y, n.low) | where.Scalar(y != 0, 2, 1) * y
softmax.int(aten.masked_fill.Scalar(y, y < y.mean(-1, True), -math.inf), -1)
"""

#: Calls that the captured graph computes as torch does, and that no file holds.
CAPTURED = """
diff(y, 2, 1) | avg_pool3d(y.unsqueeze(1), [2, 1, 1], [1, 1, 1], [1, 0, 0]) | diff(y, 1, 1, y[:, :1], y[:, :1])
full_like(y, 2, dtype=torch.float64, pin_memory=False)
ones_like(y, dtype=torch.float64) | zeros_like(y, dtype=torch.float64)
new_full(y, [2, 3], 2.0, dtype=torch.float64) * y[..., :1, :3]
new_ones(y, [2, 3], dtype=torch.float64) * y[..., :1, :3] | new_zeros(y, [2, 3], dtype=torch.float64) * y[..., :1, :3]
"""

#: Calls with an argument that nothing of ours reads -> its name.
UNREAD = {
    "avg_pool3d(y.unsqueeze(1), [2, 1, 1], [1, 1, 1], [0, 0, 0], True)": "ceil_mode",
    "avg_pool3d(y.unsqueeze(1), [2, 1, 1], [1, 1, 1], [0, 0, 0], False, False)": "count_include_pad",
    "avg_pool3d(y.unsqueeze(1), [2, 1, 1], [1, 1, 1], divisor_override=3)": "divisor_override",
    "elu(y, 1.0, 2.0, 3.0)": "scale",
    "expand(y[:, :1], [-1, 4, 6, 6], implicit=True)": "implicit",
    "index_put(y, [None, n.places], y[:, :2], True)": "accumulate",
    "linalg_matrix_norm.str_ord(y, 'nuc')": "ord",
    "linalg_matrix_norm.str_ord(y, dtype=torch.float64)": "dtype",
    "linalg_norm(y, 2, [1], False, dtype=torch.float64)": "dtype",
    "linalg_norm.ord_str(y, 'fro', [1, 2], False, dtype=torch.float64)": "dtype",
    "linalg_vector_norm(y, 2, [1], False, dtype=torch.float64)": "dtype",
    "log_softmax.int(y, 1, torch.float64)": "dtype",
    "mean.dim(y, [1], False, dtype=torch.float64)": "dtype",
    "mean.dim(y, [2, 3], False, dtype=torch.float64)": "dtype",
    "rrelu(y, 0.2, 0.6, True)": "training",
    "scaled_dot_product_attention(r, r, r, None, 0.5)": "dropout_p",
    "softmax.int(y, 1, torch.float64)": "dtype",
    "sum.dim_IntList(y, [1], False, dtype=torch.float64)": "dtype",
}


def listed(text: str) -> list[str]:
    return [call.strip() for line in text.strip().splitlines() for call in line.split("|")]


class Calls(nn.Module):
    """Calls of ATen's operators on a map and on rows, all of them outputs."""

    def __init__(self, *calls: str) -> None:
        super().__init__()
        # Tables are sets, so calls come in any order: weights of their own would at times compare equal numbers.
        torch.manual_seed(0)
        self.stem, self.calls = nn.Conv2d(3, 4, 3), calls
        with torch.no_grad():
            for name, size in {"w1": (4, 2, 2), "w2": (4, 2, 2, 2), "square": (6, 6), "b": (4,), "b6": (6,)}.items():
                self.register_parameter(name, nn.Parameter(torch.randn(size)))
            self.register_buffer("low", torch.tensor(-0.4))
            self.register_buffer("places", torch.tensor([3, 1]))

    def forward(self, i: Tensor) -> tuple[Tensor, ...]:
        y = self.stem(i)
        names = {"n": self, "i": i, "y": y, "r": y.mean(3), "torch": torch, "aten": aten, "math": math}
        return tuple(eval(f"aten.{call}", names) for call in self.calls)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def target_of(node: Node) -> Any:
    return functional(node) if is_in_place(node) else node.target


def changed_arguments(calls: list[str], images: Tensor) -> set[tuple[str, str]]:
    """Operator and name of every argument that these calls give another value than torch's schema."""
    exported, _ = exported_graph(Calls(*calls), images, source="calls")
    changed = set[tuple[str, str]]()
    for node in exported.graph.nodes:
        for position, slot in enumerate(node.target._schema.arguments if hasattr(node.target, "_schema") else ()):
            is_said = len(node.args) > position or slot.name in node.kwargs
            value = node.args[position] if len(node.args) > position else node.kwargs.get(slot.name)
            if slot.has_default_value() and is_said and (isinstance(value, Node) or value != slot.default_value):
                changed.add((str(target_of(node)), slot.name))
    return changed


def arguments_of_tables() -> Iterator[tuple[Any, Reads | None, list[str]]]:
    """Every operator of ATen that something of ours reads, its row, and its arguments with a default."""
    rewritten = {*_RULES, *NO_OPERATION, *CONVERSIONS, *IN_PARTS}
    for operator in {target for target in (*rewritten, *TRANSLATORS, *KINDS) if hasattr(target, "_schema")}:
        slots = [slot.name for slot in operator._schema.arguments if slot.has_default_value()]
        row = READS.get(operator)
        assert row is not None or not slots, f"{operator} has no row, and its options are {slots}"
        if row is not None:
            assert operator not in rewritten or row.rule is not None, f"{operator} has no column of its rule"
            stays = operator in TRANSLATORS or operator in KINDS
            assert not stays or row.kept is not None, f"{operator} stays, and its row does not say what is read"
        yield operator, row, slots


def test_every_argument_of_every_operator_is_read_and_tried_or_refused_and_tried(images: Tensor) -> None:
    tried = changed_arguments(listed(CALLS) + listed(CAPTURED), images)
    refused = changed_arguments(list(UNREAD), images)
    operators = set[Any]()
    for operator, row, slots in arguments_of_tables():
        operators.add(operator)
        read = set() if row is None else set(f"{row.rule or ''} {row.kept or ''}".split())
        assert read <= set(slots), f"{operator} has no options {read - set(slots)}"
        for slot in set(slots) - IMMATERIAL - {"layout", "generator"}:
            where = tried if slot in read else refused
            assert (str(operator), slot) in where, f"{operator}: no call of this test changes {slot}"
    assert len(operators) > 180 and READS.keys() <= operators


def test_what_is_read_is_the_same_eager_captured_and_as_a_file(images: Tensor) -> None:
    module = Calls(*listed(CALLS)).eval()
    captured = capture(module, images[:2], source="calls")
    check_first_link(module, captured, images, source="calls", shown="random images")
    with OnnxRuntime().runner(emit(fold(captured), opset=20).SerializeToString(), threads=1) as runner:
        outputs = [torch.from_numpy(output) for output in runner.run(images.numpy())]
    with torch.no_grad():
        for call, expected, output in zip(module.calls, module(images), outputs, strict=True):
            assert apart(output, expected) < 1e-5, call


def test_what_no_file_holds_is_captured_as_it_is(images: Tensor) -> None:
    module = Calls(*listed(CAPTURED)).eval()
    captured = capture(module, images[:2], source="calls")
    with torch.no_grad():
        for call, expected, output in zip(module.calls, module(images), captured(images), strict=True):
            assert torch.equal(output, expected) or apart(output, expected) < 1e-6, call
            assert output.dtype == expected.dtype


@pytest.mark.parametrize("call", UNREAD)
def test_what_nothing_reads_is_refused_by_name_and_value(call: str, images: Tensor) -> None:
    with pytest.raises(UserError) as raised:
        capture(Calls(call).eval(), images[:2], source="my network")
    message, name = str(raised.value), UNREAD[call]
    assert message.startswith("my network: ") and "\n" not in message and "--teacher python:" in message
    assert f"(aten.{call.partition('(')[0]}" in message and f"its argument {name}=" in message
    assert f"and {name} must be " in message


def test_constants_are_computed_with_all_their_arguments(images: Tensor) -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.table = nn.Conv2d(3, 4, 3), nn.Parameter(torch.randn(4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.stem(x)
            return y * self.table.softmax(0, dtype=torch.float64).float()

    module = Table().eval()
    captured = capture(module, images[:2], source="table")
    check_first_link(module, captured, images, source="table", shown="random images")
    emit(fold(captured), opset=20)


def test_a_default_that_is_said_is_no_other_value() -> None:
    graph = torch.fx.Graph()
    source = graph.placeholder("x")
    for arguments in ((source, 1), (source, 1.0, 1.0, 1)):
        assert unread(graph.call_function(aten.elu.default, arguments), "") is None
    assert unread(graph.call_function(aten.softmax.int, (source, 1, torch.float32)), "") is None
    said = unread(graph.call_function(aten.elu.default, (source, 1, 2.0)), "alpha")
    assert said == "its argument scale=2.0 has no translation: of its options alpha are read, and scale must be 1"
