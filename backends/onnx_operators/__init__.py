"""One translation from ATen to ONNX per operator: a table from overload to a function that writes nodes."""

from __future__ import annotations

import operator
from typing import Any

import torch

from backends.onnx_operators import activations, arithmetic, layers, maps, movement
from backends.onnx_operators.common import Translator, simple

__all__ = ["TRANSLATORS", "UNREAD", "Translator"]

aten = torch.ops.aten

TRANSLATORS: dict[Any, Translator] = {
    operator.getitem: movement.item,
    aten.conv2d.default: layers.conv,
    aten.conv2d.padding: layers.conv,
    aten.conv_transpose2d.input: layers.conv_transpose,
    aten.linear.default: layers.linear,
    aten.matmul.default: layers.matmul,
    aten.bmm.default: layers.matmul,
    aten.clone.default: simple("Identity"),
    aten.relu.default: activations.relu,
    aten.relu6.default: activations.clip,
    aten.hardtanh.default: activations.clip,
    aten.clamp.default: activations.clip,
    aten.clamp_min.default: activations.clip,
    aten.leaky_relu.default: activations.leaky_relu,
    aten.prelu.default: activations.prelu,
    aten.elu.default: activations.elu,
    aten.sigmoid.default: simple("Sigmoid"),
    aten.hardsigmoid.default: activations.hard_sigmoid,
    aten.hardswish.default: simple("HardSwish"),
    aten.silu.default: activations.silu,
    aten.gelu.default: activations.gelu,
    aten.tanh.default: simple("Tanh"),
    aten.softmax.int: arithmetic.softmax("Softmax"),
    aten.linalg_vector_norm.default: arithmetic.vector_norm,
    aten.selu.default: simple("Selu"),
    aten.celu.default: activations.celu,
    aten.softplus.default: simple("Softplus"),
    aten.log_softmax.int: arithmetic.softmax("LogSoftmax"),
    aten.expand.default: movement.expand,
    aten.expand_as.default: movement.expand,
    aten.abs.default: simple("Abs"),
    aten.cos.default: simple("Cos"),
    aten.erf.default: simple("Erf"),
    aten.exp.default: simple("Exp"),
    aten.floor.default: simple("Floor"),
    aten.log.default: simple("Log"),
    aten.reciprocal.default: simple("Reciprocal"),
    aten.sign.default: simple("Sign"),
    aten.sin.default: simple("Sin"),
    aten.sqrt.default: simple("Sqrt"),
    aten.pow.Tensor_Scalar: arithmetic.power,
    aten.minimum.default: arithmetic.smaller_or_larger("Min"),
    aten.maximum.default: arithmetic.smaller_or_larger("Max"),
    aten.max.other: arithmetic.smaller_or_larger("Max"),
    aten.min.other: arithmetic.smaller_or_larger("Min"),
    aten.sum.dim_IntList: arithmetic.reduction("ReduceSum"),
    aten.amax.default: arithmetic.reduction("ReduceMax"),
    aten.amin.default: arithmetic.reduction("ReduceMin"),
    aten.instance_norm.default: arithmetic.instance_norm,
    aten.group_norm.default: arithmetic.group_norm,
    aten.layer_norm.default: arithmetic.layer_norm,
    aten.add.Tensor: arithmetic.binary("Add"),
    aten.sub.Tensor: arithmetic.binary("Sub"),
    aten.mul.Tensor: arithmetic.binary("Mul"),
    aten.div.Tensor: arithmetic.binary("Div"),
    aten.mean.dim: arithmetic.reduction("ReduceMean"),
    aten.max_pool2d.default: maps.max_pool,
    aten.avg_pool2d.default: maps.average_pool,
    aten.adaptive_avg_pool2d.default: maps.adaptive_average_pool,
    aten.upsample_nearest2d.vec: maps.resize("nearest"),
    aten.upsample_bilinear2d.vec: maps.resize("linear"),
    aten.upsample_bicubic2d.vec: maps.resize("cubic"),
    aten.flatten.using_ints: movement.reshape,
    aten.view.default: movement.reshape,
    aten.reshape.default: movement.reshape,
    aten.unflatten.int: movement.reshape,
    aten.squeeze.default: movement.reshape,
    aten.squeeze.dim: movement.reshape,
    aten.squeeze.dims: movement.reshape,
    aten.unsqueeze.default: movement.reshape,
    aten.permute.default: movement.transpose,
    aten.transpose.int: movement.transpose,
    aten.slice.Tensor: movement.slice_axis,
    aten.flip.default: movement.flip,
    aten.index_select.default: movement.index_select,
    aten.select.int: movement.select,
    aten.chunk.default: movement.split,
    aten.split.Tensor: movement.split,
    aten.split_with_sizes.default: movement.split,
    aten.constant_pad_nd.default: movement.pad,
    aten.pad.default: movement.pad,
    aten.cat.default: movement.concat,
    aten.pixel_shuffle.default: movement.depth_to_space,
    aten.channel_shuffle.default: movement.channel_shuffle,
}

#: Arguments that a translation does not read, per operator: written only where they have the values of the schema.
UNREAD: dict[Any, tuple[str, ...]] = {
    aten.elu.default: ("scale", "input_scale"),
    aten.softplus.default: ("beta", "threshold"),
    aten.softmax.int: ("dtype",),
    aten.log_softmax.int: ("dtype",),
    aten.linalg_vector_norm.default: ("dtype",),
    aten.mean.dim: ("dtype",),
    aten.sum.dim_IntList: ("dtype",),
    aten.expand.default: ("implicit",),
}
