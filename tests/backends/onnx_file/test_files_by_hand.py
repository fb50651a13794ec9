"""What is read from a file, exposed in it and made float16 of it, on files of a few lines of text."""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.parser import parse_model

from backends.onnx_file.exposed import exposed, rounded_tensors
from backends.onnx_file.half import half_rest, half_scale
from backends.onnx_file.int4 import int4_tensor
from backends.onnx_file.scratch import scratch_folder
from backends.onnx_file.view import INTEGER_RANGES, OnnxView, attributes, node_name
from calibration.errors import UserError
from tests.backends.onnx_file.hand_graphs import read_aloud

LAYER = """
<ir_version: 9, opset_import: ["": {opset}]>
net (float[1,2] x) => (float[1,2] y, float[1,2] z) <
  float s = {{0.25}}, uint8 zero = {{3}}, float[2] ws = {{0.5, 0.0000002384185791015625}}, int8[2] wz = {{0, 0}},
  int8[2,2] w = {{1, -2, 100, -100}}, float[2] b = {{1, 2}},
  float tiny = {{-0.000000001}}, float[2] pair = {{0, 0.000000001}}
> {{
  [q] xq = QuantizeLinear(x, s, zero)
  [dq] xd = DequantizeLinear(xq, s, zero)
  [wd] wf = DequantizeLinear<axis = 1>(w, ws, wz)
  [fc] h = Gemm<transB = 1>(xd, wf, b)
  [plus] y = Add(h, tiny)
  [again] z = Mul(y, pair)
  [aside] x_half = Exp(h)
}}
"""


def layer(opset: int = 20) -> onnx.ModelProto:
    return parse_model(LAYER.format(opset=opset))


def test_the_rest_in_float16() -> None:
    model = layer()
    before = model.SerializeToString()
    half = half_rest(model)
    assert model.SerializeToString() == before
    assert read_aloud(half) == [
        "x_half_ = Cast(x) to=10",
        "q = QuantizeLinear(x_half_, f16:0.25, u8:3) -> xq",
        "dq = DequantizeLinear(xq, f16:0.25, u8:3) -> xd",
        # The second channel's scale, 2 to the -22nd, becomes 2 to the -20th: a quarter of its integers.
        "wd = DequantizeLinear(i8:[[1,0],[100,-25]], f16:[0.5,9.53674e-07], i8:[0,0]) axis=1 -> wf",
        "fc = Gemm(xd, wf, f16:[1,2]) transB=1 -> h",
        # A number alone does not become 0, which others may.
        "plus = Add(h, f16:-5.96046e-08) -> y_half",
        "again = Mul(y_half, f16:[0,0]) -> z_half",
        "aside = Exp(h) -> x_half",
        "y_half = Cast(y_half) to=1",
        "z_half = Cast(z_half) to=1",
    ]
    assert [entry.type.tensor_type.elem_type for entry in (*half.graph.input, *half.graph.output)] == [1, 1, 1]


def test_float16_needs_its_opset_and_its_range() -> None:
    half_rest(layer(opset=19))
    with pytest.raises(UserError, match="--rest fp16 with --opset 18: float16 roundings exist from opset 19 on"):
        half_rest(layer(opset=18))
    for value in (65504.0, -65504.0, np.inf):
        model = layer()
        model.graph.initializer[5].CopyFrom(numpy_helper.from_array(np.array([0, value], np.float32), "b"))
        assert OnnxView(half_rest(model)).value("b").tolist() == [0, value]  # type: ignore[union-attr]
    model.graph.initializer[5].CopyFrom(numpy_helper.from_array(np.array([-65505, 0], np.float32), "b"))
    with pytest.raises(UserError, match="b holds 65505: float16 ends at 65504; use --rest fp32"):
        half_rest(model)


def test_the_nearest_scale_or_the_next_above_where_float16_is_coarse() -> None:
    step = 2.0**-24  # of float16 below 2 to the -14th
    scales = np.array(
        [0.1, 2**-20, 2**-20 + step / 4, 2**-20 + 3 * step / 4, 2**-30, 0, 2**-14 * (1 + 2**-12)], np.float32
    )
    expected = [float(np.float16(0.1)), 2**-20, 2**-20 + step, 2**-20 + step, 2**-20, 2**-20, 2**-14]
    assert half_scale(scales).dtype == np.float16 and half_scale(scales).tolist() == expected
    assert half_scale(np.array(0.5, np.float32)).shape == ()


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.INT4])
@pytest.mark.parametrize("block", [0, 2])
def test_integers_follow_a_scale_that_moves(kind: int, block: int) -> None:
    values, small = np.array([[7, -7, 4, -4], [6, 2, 1, -3]], np.int8), 2.0**-21
    scale = [[small, 0.5], [1, small]] if block else small
    model = parse_model('<ir_version: 10, opset_import: ["": 21]> net (float[1] x) => (float[2,4] y) {y = Identity(x)}')
    stored = int4_tensor(values, "w") if kind == TensorProto.INT4 else numpy_helper.from_array(values, "w")
    model.graph.initializer.extend([stored, numpy_helper.from_array(np.array(scale, np.float32), "s")])
    del model.graph.node[:]
    options: dict[str, Any] = {"axis": 1, "block_size": block} if block else {}
    model.graph.node.append(helper.make_node("DequantizeLinear", ["w", "s"], ["wf"], name="d", **options))
    model.graph.node.append(helper.make_node("Add", ["wf", "x"], ["y"], name="y"))
    moved = OnnxView(half_rest(model))
    # Half of each, ties to even.
    expected = [[4, -4, 4, -4], [6, 2, 0, -2]] if block else [[4, -4, 2, -2], [3, 1, 0, -2]]
    assert moved.initialisers["w"].data_type == kind
    assert moved.value("w").tolist() == expected  # type: ignore[union-attr]


def test_no_integer_leaves_the_range_that_it_had() -> None:
    model = layer()
    # The scale of the first channel becomes smaller by 2 to the -12th, its integers larger; 127 stays.
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.array([1 + 2**-12, 1], np.float32), "ws"))
    model.graph.initializer[4].CopyFrom(numpy_helper.from_array(np.array([[127, 3], [-127, 4]], np.int8), "w"))
    assert OnnxView(half_rest(model)).value("w").tolist() == [[127, 3], [-127, 4]]  # type: ignore[union-attr]


def test_what_onnx_wants_in_float32_stays_and_casts_change() -> None:
    model = parse_model("""
    <ir_version: 9, opset_import: ["": 20]>
    net (float[1,1,2,2] x, int64[1] n) => (float[1,1,4,4] y, int64[1] m)
    <float[4] scales = {1, 1, 2, 2}, float[1] one = {1}> {
      [resize] r = Resize<mode = "nearest">(x, , scales)
      [count] f = Cast<to = 1>(n)
      [filled] c = ConstantOfShape<value = float[1] {0.1}>(n)
      [sum] y = Sum(r, f, one, c)
      [whole] m = Cast<to = 7>(f)
    }""")
    half = half_rest(model)
    assert read_aloud(half)[1:3] == [
        "resize = Resize(x_half, -, f32:[1,1,2,2]) mode=nearest -> r",
        "count = Cast(n) to=10 -> f",
    ]
    view = OnnxView(half)
    (fill,) = next(node.attribute for node in view.nodes if node.name == "filled")
    assert fill.t.data_type == TensorProto.FLOAT16 and numpy_helper.to_array(fill.t).tolist() == [
        float(np.float16(0.1))
    ]
    assert [node.name for node in view.nodes if node.op_type == "Cast"] == ["x_half", "count", "whole", "y_half"]
    assert attributes(view.nodes[5]) == {"to": 7}


def test_rounded_tensors_are_exposed_behind_the_results() -> None:
    model = layer()
    assert rounded_tensors(model) == ["xq"]
    extended = exposed(model, ["xq"])
    assert [output.name for output in extended.graph.output] == ["y", "z", "xq"]
    assert extended.graph.output[2].type.tensor_type.elem_type == TensorProto.UINT8
    assert len(model.graph.output) == 2 and extended.graph.node == model.graph.node
    for other in ("xd", "h", "x"):
        with pytest.raises(ValueError, match=f"{other} is not written by a QuantizeLinear with an explicit zero point"):
            exposed(model, [other])
    del model.graph.node[0].input[2]
    with pytest.raises(ValueError, match="xq is not written by"):
        exposed(model, ["xq"])


def test_a_view_says_who_writes_and_who_reads() -> None:
    view = OnnxView(layer())
    q, dq, wd, fc, plus, again, aside = view.nodes
    assert view.opset == 20 and view.outputs == {"y", "z"}
    assert view.producer("xq") == q and view.producer("x") is None and view.producer("w") is None
    assert view.readers("h") == [plus, aside] and view.readers("z") == []
    assert view.only_reader("xq") == dq and view.only_reader("h") is None and view.only_reader("z") is None
    assert view.only_reader("y") is None  # one node reads it, and it is a result
    assert view.input(fc, 2) == "b" and view.input(fc, 3) == ""
    assert view.dequantised(fc, 1) == wd and view.dequantised(plus, 0) is None and view.dequantised(fc, 5) is None
    assert view.stored_integers(wd) == "w" and view.stored_integers(dq) is None
    assert view.integer_type(q) == TensorProto.UINT8 and view.integer_type(wd) == TensorProto.INT8
    assert [node.name for node in view.roundings()] == ["q", "dq", "wd"]
    assert view.scale(q) == np.float32(0.25) and view.zero_point(dq) == 3
    assert view.value("h") is None and view.value("b") is view.value("b")
    assert view.is_weighted(fc) and view.has_integer_weight(fc)
    assert not view.is_weighted(plus) and not view.has_integer_weight(again)
    assert attributes(wd) == {"axis": 1} and node_name(fc) == "fc"
    fc.name = ""
    assert node_name(fc) == "h" and node_name(helper.make_node("Add", [], [])) == "Add"


def test_a_view_of_other_weights_and_opsets() -> None:
    model = parse_model("""
    <ir_version: 9, opset_import: ["other": 3, "ai.onnx": 19]>
    net (float[1,2] x, float[2,2] v) => (float[1,2] y)
    <float[2,2] w = {1, 2, 3, 4}, float s = {1}, int8[2,2] k = {1, 2, 3, 4}> {
      [plain] a = MatMul(x, w)
      [computed] b = MatMul(a, v)
      [q] c = QuantizeLinear(b, s)
      [d] e = DequantizeLinear(c, s)
      [product] f = MatMul(b, e)
      [k8] k8 = Cast<to = 3>(k)
      [kd] kf = DequantizeLinear(k8, s)
      [last] y = MatMul(f, kf)
      [stored] sf = DequantizeLinear(k, s)
    }""")
    view = OnnxView(model)
    plain, computed, q, d, product, _, kd, last, stored = view.nodes
    assert view.opset == 19
    assert view.is_weighted(plain) and not view.has_integer_weight(plain)
    assert not view.is_weighted(computed) and not view.is_weighted(product)
    assert view.stored_integers(kd) == "k" and view.has_integer_weight(last)
    assert view.integer_type(q) is None and view.integer_type(d) is None and view.zero_point(q) is None
    assert view.integer_type(stored) == TensorProto.INT8
    model.opset_import[1].domain = "third"
    assert OnnxView(model).opset == 0


def test_four_bits_are_read_as_bytes_and_ranges_are_those_of_the_types() -> None:
    model = layer()
    model.graph.initializer.append(int4_tensor(np.array([[-8, 7, -1]], np.int8), "four"))
    value = OnnxView(model).value("four")
    assert value is not None and value.dtype == np.int8 and value.tolist() == [[-8, 7, -1]]
    for kind, ends in INTEGER_RANGES.items():
        name = TensorProto.DataType.Name(kind).lower()
        bits, signed = int(name.lstrip("uint")), not name.startswith("u")
        assert ends == ((-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1))


def test_a_scratch_folder_goes_with_the_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch_folder("trial", needed=1) as folder:
        (folder / "model").write_bytes(b"1")
        assert folder.parent == tmp_path and folder.name.startswith("faqd-trial-")
    assert list(tmp_path.iterdir()) == []
    free = type("Usage", (), {"free": 2_000_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    with scratch_folder("trial", needed=2_000_000):
        pass
    with (
        pytest.raises(UserError, match=r"has 2 MB free and 2\.001 MB of a model are to be written there"),
        scratch_folder("trial", needed=2_001_000),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_within_the_block_is_the_users_line(number: int) -> None:
    with pytest.raises(UserError, match=r"cannot write to .*: full; set TMPDIR"), scratch_folder("trial", needed=1):
        raise OSError(number, "full")


def test_other_failures_within_the_block_are_what_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(PermissionError), scratch_folder("trial", needed=1):
        raise PermissionError(errno.EACCES, "not allowed")
    with pytest.raises(FileNotFoundError, match="nowhere"), scratch_folder("trial", needed=1):
        raise FileNotFoundError(errno.ENOENT, "missing", "nowhere")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(UserError, match="there is no place for temporary files"), scratch_folder("trial", needed=1):
        pass
