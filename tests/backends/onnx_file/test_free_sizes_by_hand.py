"""Files of maps whose height and width are free: what is computed from the image, and what that is read from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backends.facts.file_form import PLAIN
from backends.onnx_file.emit import emit
from calibration.errors import UserError
from calibration.graph.free_size import FreeSize
from tests.backends.onnx_file.hand_graphs import HandGraph, frozen, read_aloud, rounded

aten: Any = torch.ops.aten
BATCH, TALL, WIDE = (-1, -1), (6, 10), (8, 12)
X = (BATCH, (4, 4), TALL, WIDE)


def free(**sizes: Any) -> FreeSize:
    """Sizes of nodes for images of 6 x 8 and of 10 x 12, after `x` [4, 6, 8]."""
    return FreeSize(sizes={"x": X, **sizes}, follows={})


def halved(g: HandGraph, name: str = "half") -> Any:
    return g(aten.max_pool2d.default, g.x, [2, 2], name=name)


HALF = (BATCH, (4, 4), (3, 5), (4, 6))


def test_free_dimensions_are_declared_by_name() -> None:
    g = HandGraph(4, 6, 8)
    nodes = [
        g(aten.exp.default, g.x, name="e"),
        halved(g),
        g(aten.transpose.int, g.x, 2, 3, name="turned"),
        g(aten.flatten.using_ints, g.x, 2, name="tokens"),
    ]
    sizes = free(e=X, half=HALF, turned=(BATCH, (4, 4), WIDE, TALL), tokens=(BATCH, (4, 4), (48, 120)))
    model = emit(g.module(*nodes, free_size=sizes), opset=20, batch=2)
    ends = [*model.graph.input, *model.graph.output]
    assert [[d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim] for entry in ends] == [
        [2, 4, "height", "width"],
        [2, 4, "height", "width"],
        [2, 4, "half_2", "half_3"],
        [2, 4, "width", "height"],
        [2, 4, "tokens_2"],
    ]


def test_a_resize_to_a_tensors_size_reads_it() -> None:
    g = HandGraph(4, 6, 8)
    half = halved(g)
    e = g(aten.exp.default, half, name="e")
    up = g(aten.upsample_nearest2d.vec, e, [6, 8], None, name="up")
    fixed = g(aten.upsample_bilinear2d.vec, e, [5, 7], False, None, name="fixed")
    factor = g(aten.upsample_nearest2d.vec, e, None, [2.0, 2.0], name="factor")
    more = g(aten.upsample_bilinear2d.vec, half, None, False, [1.5, 1.3], name="more")
    sizes = {"half": HALF, "e": HALF, "up": X, "factor": X, "fixed": (BATCH, (4, 4), (5, 5), (7, 7))}
    sizes |= {"more": (BATCH, (4, 4), (4, 7), (5, 7))}
    follows = FreeSize(sizes={"x": X, **sizes}, follows={"up": ("x",)})
    near = "coordinate_transformation_mode=asymmetric mode=nearest nearest_mode=floor"
    straight = "coordinate_transformation_mode=half_pixel mode=linear"
    written = read_aloud(emit(g.module(up, fixed, factor, more, free_size=follows), opset=20))
    assert written[2:] == [
        "up_batch = Shape(x) end=1 start=0",
        "up_size = Shape(x) end=4 start=2",
        "up_sizes = Concat(up_batch, i64:[4], up_size) axis=0",
        f"up = Resize(e, -, -, up_sizes) {near}",
        "fixed_batch = Shape(x) end=1 start=0",
        "fixed_sizes = Concat(fixed_batch, i64:[4], i64:[5,7]) axis=0",
        f"fixed = Resize(e, -, -, fixed_sizes) {straight}",
        f"factor = Resize(e, -, f32:[1,1,2,2]) {near}",
        f"more = Resize(half, -, f32:[1,1,1.5,1.3]) {straight}",
    ]


@pytest.mark.parametrize("is_rounded", [False, True])
def test_a_size_is_read_from_integers_where_there_are_any(is_rounded: bool) -> None:
    g = HandGraph(4, 6, 8)
    half = halved(g)
    e, f = g(aten.exp.default, half, name="e"), g(aten.erf.default, half, name="f")
    small = g(aten.max_pool2d.default, e, [3, 4], name="small")
    up = g(aten.upsample_nearest2d.vec, small, [3, 4], None, name="up")
    small_sizes = (BATCH, (4, 4), (1, 1), (1, 1))
    sizes = {"x": X, "half": HALF, "e": HALF, "f": HALF, "small": small_sizes, "up": HALF}
    module = g.module(up, f, free_size=FreeSize(sizes=sizes, follows={"up": ("e", "f")}))
    network = frozen(module, *([rounded("f", "output")] if is_rounded else []))
    written = read_aloud(emit(network, opset=20, form=PLAIN))
    (line,) = [line for line in written if line.startswith("up_size =")]
    assert line == ("up_size = Shape(f_q) end=4 start=2" if is_rounded else "up_size = Shape(e) end=4 start=2")


def test_a_reshape_with_several_free_sizes_reads_them_from_its_input() -> None:
    g = HandGraph(4, 6, 8)
    apart = g(aten.view.default, g.x, [-1, 2, 2, 6, 8], name="apart")
    tokens = g(aten.view.default, g.x, [-1, 4, 48], name="tokens")
    sizes = free(apart=(BATCH, (2, 2), (2, 2), TALL, WIDE), tokens=(BATCH, (4, 4), (48, 120)))
    written = read_aloud(emit(g.module(apart, tokens, free_size=sizes), opset=20))
    assert written == [
        "apart_size_0 = Shape(x) end=1 start=0",
        "apart_size_3 = Shape(x) end=3 start=2",
        "apart_size_4 = Shape(x) end=4 start=3",
        "apart_sizes = Concat(apart_size_0, i64:[2], i64:[2], apart_size_3, apart_size_4) axis=0",
        "apart = Reshape(x, apart_sizes)",
        "tokens_size_0 = Shape(x) end=1 start=0",
        "tokens_sizes = Concat(tokens_size_0, i64:[4], i64:[-1]) axis=0",
        "tokens = Reshape(x, tokens_sizes)",
    ]


def test_of_equal_sizes_that_at_the_same_place_from_the_end_is_read() -> None:
    g = HandGraph(4, 6, 6)
    square = (BATCH, (4, 4), (6, 10), (6, 10))
    apart = g(aten.view.default, g.x, [-1, 2, 2, 6, 6], name="apart")
    sizes = FreeSize(sizes={"x": square, "apart": (BATCH, (2, 2), (2, 2), (6, 10), (6, 10))}, follows={})
    written = read_aloud(emit(g.module(apart, free_size=sizes), opset=20))
    assert written[1:3] == ["apart_size_3 = Shape(x) end=3 start=2", "apart_size_4 = Shape(x) end=4 start=3"]


def test_a_shuffle_of_a_free_map_is_a_gather() -> None:
    for open_side in ((TALL, (8, 8)), ((6, 6), WIDE)):
        g = HandGraph(4, 6, 8)
        node = g(aten.channel_shuffle.default, g.x, 2, name="shuffled")
        sizes = (BATCH, (4, 4), *open_side)
        written = read_aloud(
            emit(g.module(node, free_size=FreeSize(sizes={"x": sizes, "shuffled": sizes}, follows={})), opset=20)
        )
        assert written == ["shuffled = Gather(x, i64:[0,2,1,3]) axis=1"]


def test_a_global_average_takes_any_size() -> None:
    g = HandGraph(4, 6, 8)
    node = g(aten.adaptive_avg_pool2d.default, g.x, [1, 1], name="mean")
    sizes = free(mean=(BATCH, (4, 4), (1, 1), (1, 1)))
    assert read_aloud(emit(g.module(node, free_size=sizes), opset=20)) == ["mean = GlobalAveragePool(x)"]


@pytest.mark.parametrize(
    ("build", "shape", "said"),
    [
        (lambda g: g(aten.adaptive_avg_pool2d.default, g.x, [3, 2], name="node"), (BATCH, (4, 4), (3, 3), (2, 2)),
         "an adaptive pooling of a map whose size is free"),
        (lambda g: g(aten.group_norm.default, g.x, 2, name="node"), X, "a group normalisation of a map whose size"),
        (lambda g: g(aten.expand.default, g.x, [-1, 4, 6, 8], name="node"), X, "an expansion with more than one free"),
        (lambda g: g(aten.view.default, g.x, [-1, 4, 12, 4], name="node"), (BATCH, (4, 4), (12, 15), (4, 8)),
         "a reshape with more than one free dimension"),
    ],
)  # fmt: skip
def test_what_needs_a_size_is_refused_by_name(build: Any, shape: Any, said: str) -> None:
    g = HandGraph(4, 6, 8)
    node = build(g)
    with pytest.raises(UserError, match=f"^node \\(aten.*in the top module\\): {said}"):
        emit(g.module(node, free_size=free(node=shape)), opset=20)


@pytest.mark.parametrize("side", [0, 1])
def test_one_free_side_is_enough_for_a_refusal(side: int) -> None:
    g = HandGraph(4, 6, 8)
    sizes = [BATCH, (4, 4), (6, 6), (8, 8)]
    sizes[2 + side] = (6, 9)
    node = g(aten.adaptive_avg_pool2d.default, g.x, [3, 2], name="node")
    pooled = (BATCH, (4, 4), (3, 3), (2, 2))
    module = g.module(node, free_size=FreeSize(sizes={"x": tuple(sizes), "node": pooled}, follows={}))
    with pytest.raises(UserError, match="an adaptive pooling of a map whose size is free"):
        emit(module, opset=20)
