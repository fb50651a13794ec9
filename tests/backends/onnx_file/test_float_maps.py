"""Poolings, resizings and movement of a float file, read from the file itself, worked by hand."""

from __future__ import annotations

import operator
from typing import Any

import torch

from tests.backends.onnx_file.hand_graphs import HandGraph, eighths, lines

aten: Any = torch.ops.aten


def test_poolings() -> None:
    g = HandGraph(2, 12, 8)
    x = g.x
    nodes = [
        g(aten.max_pool2d.default, x, [3, 3], name="plain"),
        g(aten.max_pool2d.default, x, [3, 2], [2, 1], [1, 0], [1, 2], True, name="full"),
        g(aten.avg_pool2d.default, x, [2, 2], name="average"),
        g(aten.avg_pool2d.default, x, [3, 2], [2, 1], [1, 0], True, False, name="averages"),
        g(aten.adaptive_avg_pool2d.default, x, [12, 8], name="same"),
        g(aten.adaptive_avg_pool2d.default, x, [1, 1], name="whole"),
        g(aten.adaptive_avg_pool2d.default, x, [4, 2], name="equal"),
        g(aten.adaptive_avg_pool2d.default, g(aten.slice.Tensor, x, 3, 0, 2, name="two"), [5, 2], name="unequal"),
    ]
    assert lines(g, *nodes) == [
        "plain = MaxPool(x) ceil_mode=0 dilations=[1,1] kernel_shape=[3,3] pads=[0,0,0,0] strides=[3,3]",
        "full = MaxPool(x) ceil_mode=1 dilations=[1,2] kernel_shape=[3,2] pads=[1,0,1,0] strides=[2,1]",
        "average = AveragePool(x) ceil_mode=0 count_include_pad=1 kernel_shape=[2,2] pads=[0,0,0,0] strides=[2,2]",
        "averages = AveragePool(x) ceil_mode=1 count_include_pad=0 kernel_shape=[3,2] pads=[1,0,1,0] strides=[2,1]",
        "same = Identity(x)",
        "whole = GlobalAveragePool(x)",
        "equal = AveragePool(x) kernel_shape=[3,4] strides=[3,4]",
        "two = Slice(x, i64:[0], i64:[2], i64:[3], i64:[1])",
        "unequal_rows = MatMul(f32[5,12], two) -> unequal_rows_",
        "unequal = MatMul(unequal_rows_, f32:[[1,0],[0,1]])",
    ]


def test_resizings() -> None:
    g = HandGraph(2, 12, 8)
    x = g.x
    nodes = [
        g(aten.upsample_nearest2d.vec, x, None, [2.0, 3.0], name="near"),
        g(aten.upsample_nearest2d.vec, x, [24, 4], None, name="near_size"),
        g(aten.upsample_bilinear2d.vec, x, [18, 8], False, None, name="straight"),
        g(aten.upsample_bilinear2d.vec, x, None, True, [2.0, 2.0], name="corners"),
        # 12 x 1.3 = 15.6 becomes 15: where positions lie follows 1.3, and not 15 / 12.
        g(aten.upsample_bilinear2d.vec, x, None, False, [1.3, 1.3], name="uneven"),
        g(aten.upsample_nearest2d.vec, x, None, [1.3, 1.3], name="uneven_near"),
        g(aten.upsample_bicubic2d.vec, x, None, False, [2.0, 2.0], name="cubic"),
    ]
    near, straight = "coordinate_transformation_mode=asymmetric mode=nearest nearest_mode=floor", "mode=linear"
    half = "coordinate_transformation_mode=half_pixel"
    assert lines(g, *nodes) == [
        f"near = Resize(x, -, f32:[1,1,2,3]) {near}",
        f"near_size = Resize(x, -, f32:[1,1,2,0.5]) {near}",
        f"straight = Resize(x, -, f32:[1,1,1.5,1]) {half} {straight}",
        f"corners = Resize(x, -, f32:[1,1,2,2]) coordinate_transformation_mode=align_corners {straight}",
        f"uneven = Resize(x, -, f32:[1,1,1.3,1.3]) {half} {straight}",
        f"uneven_near = Resize(x, -, f32:[1,1,1.3,1.3]) {near}",
        f"cubic = Resize(x, -, f32:[1,1,2,2]) {half} cubic_coeff_a=-0.75 mode=cubic",
    ]


def test_other_shapes_of_the_same_values() -> None:
    g = HandGraph(4, 6, 2)
    x = g.x
    flat = g(aten.flatten.using_ints, x, 1, name="flat")
    nodes = [
        g(aten.flatten.using_ints, x, 2, name="maps"),
        g(aten.flatten.using_ints, flat, 0, name="in_one"),
        g(aten.view.default, x, [-1, 8, 6], name="viewed"),
        g(aten.unsqueeze.default, x, 1, name="more"),
        g(aten.permute.default, x, [0, -1, 1, 2], name="turned"),
        g(aten.transpose.int, x, 1, -1, name="exchanged"),
        g(aten.pixel_shuffle.default, x, 2, name="deep"),
        g(aten.channel_shuffle.default, x, 2, name="shuffled"),
        g(aten.cat.default, [x, x], -1, name="joined"),
        g(aten.cat.default, [x, x], name="stacked"),
    ]
    assert lines(g, *nodes) == [
        "flat = Flatten(x) axis=1",
        "maps = Reshape(x, i64:[-1,4,12])",
        "in_one = Reshape(flat, i64:[-1])",
        "viewed = Reshape(x, i64:[-1,8,6])",
        "more = Reshape(x, i64:[-1,1,4,6,2])",
        "turned = Transpose(x) perm=[0,3,1,2]",
        "exchanged = Transpose(x) perm=[0,3,2,1]",
        "deep = DepthToSpace(x) blocksize=2 mode=CRD",
        "shuffled_apart = Reshape(x, i64:[-1,2,2,6,2])",
        "shuffled_turned = Transpose(shuffled_apart) perm=[0,2,1,3,4]",
        "shuffled = Reshape(shuffled_turned, i64:[-1,4,6,2])",
        "joined = Concat(x, x) axis=3",
        "stacked = Concat(x, x) axis=0",
    ]


def test_parts() -> None:
    g = HandGraph(4, 6, 2)
    x = g.x
    order, turned, two = (
        g.constant(f"c{'_'.join(map(str, n))}", torch.tensor(n)) for n in ((1, 2, 3, 0), (3, 2, 1, 0), (2, 0))
    )
    halves = g(aten.split.Tensor, x, 4, 2, name="halves")
    parts = g(aten.split_with_sizes.default, x, [1, 3], 1, name="parts")
    whole = g(aten.chunk.default, x, 1, 1, name="one")
    nodes = [
        g(operator.getitem, halves, 1, name="half"),
        g(operator.getitem, parts, 0, name="part"),
        g(operator.getitem, whole, 0, name="whole"),
        g(aten.slice.Tensor, x, 2, 1, 5, 2, name="some"),
        g(aten.slice.Tensor, x, 1, -2, name="last"),
        g(aten.slice.Tensor, x, 3, name="every"),
        g(aten.flip.default, x, [2, 3], name="backwards"),
        g(aten.index_select.default, x, 1, order, name="rolled"),
        g(aten.index_select.default, x, 1, turned, name="mirrored"),
        g(aten.index_select.default, x, 1, two, name="chosen"),
        g(aten.index_select.default, x, 2, order, name="rows"),
        g(aten.select.int, x, 2, -1, name="one_row"),
    ]
    far = 2**63 - 1
    written = lines(g, *nodes)
    assert written == [
        "halves = Split(x, i64:[4,2]) axis=2 -> halves_0, y0",
        "parts = Split(x, i64:[1,3]) axis=1 -> y1, parts_1",
        "one = Identity(x)",
        "some = Slice(x, i64:[1], i64:[5], i64:[2], i64:[2])",
        f"last = Slice(x, i64:[-2], i64:[{far}], i64:[1], i64:[1])",
        f"every = Slice(x, i64:[0], i64:[{far}], i64:[3], i64:[1])",
        f"backwards = Slice(x, i64:[-1,-1], i64:[{-far},{-far}], i64:[2,3], i64:[-1,-1])",
        # All channels in an order that is not its own inverse come in two halves.
        "rolled_0 = Gather(x, i64:[1,2]) axis=1",
        "rolled_1 = Gather(x, i64:[3,0]) axis=1",
        "rolled = Concat(rolled_0, rolled_1) axis=1",
        "mirrored = Gather(x, i64:[3,2,1,0]) axis=1",
        "chosen = Gather(x, i64:[2,0]) axis=1",
        "rows = Gather(x, i64:[1,2,3,0]) axis=2",
        "one_row = Gather(x, i64:-1) axis=2",
    ]


def test_borders() -> None:
    g = HandGraph(4, 6, 2)
    x = g.x
    nodes = [
        g(aten.constant_pad_nd.default, x, [1, 2, 0, 3], name="zeros"),
        g(aten.constant_pad_nd.default, x, [1, 0], -0.5, name="number"),
        g(aten.pad.default, x, [1, 1], "constant", 2.0, name="twos"),
        g(aten.pad.default, x, [1, 0, 2, 1], "reflect", name="mirror"),
        g(aten.pad.default, x, [1, 1, 1, 0], "replicate", name="edge"),
    ]
    assert lines(g, *nodes) == [
        "zeros = Pad(x, i64:[0,0,0,1,0,0,3,2], f32:0) mode=constant",
        "number = Pad(x, i64:[0,0,0,1,0,0,0,0], f32:-0.5) mode=constant",
        "twos = Pad(x, i64:[0,0,0,1,0,0,0,1], f32:2) mode=constant",
        "mirror = Pad(x, i64:[0,0,2,1,0,0,1,0]) mode=reflect",
        "edge = Pad(x, i64:[0,0,1,1,0,0,0,1]) mode=edge",
    ]


def test_expansions() -> None:
    g = HandGraph(4, 6, 2)
    mean = g(aten.mean.dim, g.x, [2], True, name="mean")
    row = g.constant("row", eighths(1, 4, 1, 2))
    nodes = [
        g(aten.expand.default, mean, [-1, 4, 6, 2], name="wide"),
        g(aten.expand_as.default, row, g.x, name="for_each"),
        g(aten.expand.default, row, [5, 4, 6, 2], name="five"),
    ]
    eight = "f32:[[[[0.125,0.25]],[[0.375,0.5]],[[0.625,0.75]],[[0.875,1]]]]"
    assert lines(g, *nodes)[1:] == [
        "wide_batch = Shape(x) end=1 start=0",
        "wide_sizes = Concat(wide_batch, i64:[4,6,2]) axis=0",
        "wide = Expand(mean, wide_sizes)",
        "for_each_batch = Shape(x) end=1 start=0",
        "for_each_sizes = Concat(for_each_batch, i64:[4,6,2]) axis=0",
        f"for_each = Expand({eight}, for_each_sizes)",
        f"five = Expand({eight}, i64:[5,4,6,2])",
    ]
