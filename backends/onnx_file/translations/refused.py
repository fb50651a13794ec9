"""Operators that are not translated, by name: why, and the way round.

Asked before anything is written, so that of all that a network has the telling one is named, not the zeros that a
recurrent layer starts from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.fx import Node

_BUILDER = "in a builder given as --teacher python:package.module:function (docs/networks.md)"
_PART = f"name the part before it with --submodule, or leave it out {_BUILDER}"
_COMPARED = (
    "whole numbers are compared and chosen by only where they depend on no image: compare numbers of floating point, as"
    f" x > 0.5 does, {_BUILDER}"
)
_NOT_FINITE = (
    "NaN and infinity are no values that a network may compute here, nor told from others: leave it out, and keep them"
    f" from arising, as x.clamp(min=1e-6).log() does, {_BUILDER}"
)
_SORTED = (
    "sorting and picking by value belong behind the artifact: return what is picked from, such as the boxes and scores"
    f" of all places (of Ultralytics' heads by end2end = False), {_BUILDER}; of a network with two stages name the"
    " first with --submodule"
)
_CAST = (
    "what is not integer is computed in float32 here: leave the conversion out, with the weights behind it brought to"
    f" float32 by .float(), {_BUILDER}"
)
_THREE = f"volumes and video have three axes, and faqd quantises images: a kernel of depth 1 is a Conv2d {_BUILDER}"
_RECURRENT = f"a recurrent layer runs step by step, with no integer kernel in any runtime here: {_PART}"
_RUNNING = f"sums and products that run along an axis have no integer kernel in any runtime here: {_PART}"
_SAMPLED = f"sampling at computed positions has no integer kernel and no exact counterpart here: {_PART}"
_SPECTRAL = f"Fourier transforms and complex numbers have no integer form: {_PART}"
_RANDOM = f"it draws random numbers, and an artifact must give the same every time: leave it out {_BUILDER}"
_ALL = (
    "a reduction over all axes mixes the images of a batch: name the axes without the first, as in"
    f" x.mean((1, 2, 3)), {_BUILDER}"
)
_BATCH = (
    f"a new tensor as large as the batch: let a constant of one row broadcast, as torch.zeros(1, n) does, {_BUILDER}"
)
_AREAS = (
    f"resizing with anti-aliasing has no counterpart in the runtimes: antialias=False, or an average pooling before it,"
    f" {_BUILDER}"
)
_WHOLE = f"whole numbers and truths are no values that a network computes with: {_PART}"
_QUOTIENT = (
    "whole quotients and remainders of whole numbers, or by a tensor: of floating point and by a number they may stay,"
    " as x.float() % 2; by a tensor write them as torch.floor(x / n) and x - torch.floor(x / n) * n (of fmod with"
    f" torch.trunc), {_BUILDER}"
)
_PLACES = (
    f"places that are computed at run time, and such as are added to twice, have no translation: {_PART}; constant"
    " indices along one axis may stay, each once where something is added"
)

#: Why and what to do -> the names, without overloads, of ATen operators.
_ROWS: Mapping[str, str] = {
    _COMPARED: "gt ge lt le eq ne where masked_fill logical_and logical_or logical_not logical_xor bitwise_not"
    " bitwise_and bitwise_or bitwise_xor __xor__",
    _NOT_FINITE: "isnan isinf isfinite isposinf isneginf nan_to_num",
    _SORTED: "sort argsort topk kthvalue median unique nonzero argmax argmin masked_select one_hot bincount"
    " searchsorted bucketize",
    _THREE: "conv3d conv_transpose3d max_pool3d avg_pool3d adaptive_avg_pool3d adaptive_max_pool3d"
    " max_pool3d_with_indices upsample_nearest3d upsample_trilinear3d",
    _RECURRENT: "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell",
    _RUNNING: "cumsum cumprod logcumsumexp",
    _SAMPLED: "grid_sampler grid_sampler_2d affine_grid_generator",
    _SPECTRAL: "fft_fft fft_ifft fft_fft2 fft_ifft2 fft_fftn fft_ifftn fft_rfft fft_irfft fft_rfft2 fft_irfft2 "
    "fft_rfftn fft_irfftn fft_fftshift view_as_complex view_as_real real imag polar complex conj angle",
    _RANDOM: "rand randn rand_like randn_like bernoulli randperm randint multinomial normal uniform native_dropout"
    " fractional_max_pool2d",
    _BATCH: "zeros ones full empty arange eye linspace scalar_tensor zeros_like ones_like full_like empty_like "
    "new_zeros new_ones new_full new_empty tril triu meshgrid",
    _WHOLE: "__and__ __or__ to _to_copy any all _is_all_true item"
    " _local_scalar_dense numel",
    _QUOTIENT: "div remainder floor_divide fmod",
    f"a power whose exponent is a tensor, or of a number: write it as exp of a product {_BUILDER}": "pow",
    _PLACES: "index gather scatter scatter_add index_put index_add index_copy index_fill masked_scatter take put"
    " take_along_dim embedding",
    _ALL: "mean sum max min prod var std norm",
    _AREAS: "_upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa",
    "attention that drops scores, or whose heads share keys while a size is free: set its dropout to 0, or write it as"
    f" matmul, softmax and matmul {_BUILDER}": "scaled_dot_product_attention",
    f"an instance normalisation by statistics of several images: let every image have its own {_BUILDER}":
        "instance_norm",
    f"a BatchNorm by statistics of several images: use running statistics {_BUILDER}": "batch_norm",
    "the places of maxima are no values of the network: pool without return_indices, and resize or use a transposed"
    f" convolution where they are unpooled, {_BUILDER}": "max_pool2d_with_indices max_unpool2d",
    f"this Einstein sum is no product of two matrices: write it as products and sums {_BUILDER}": "einsum",
    f"it multiplies three tensors at once: write it as a product of two, and another, {_BUILDER}": "bilinear",
    f"distances between all pairs: write them by matmul {_BUILDER}": "cdist pdist",
    f"rolling along an axis whose size is free, or all at once: give dims, and a fixed size, {_BUILDER}": "roll",
    f"a repetition along a new axis: unsqueeze first, so that it repeats an axis that is there, {_BUILDER}":
        "repeat tile repeat_interleave",
    f"rows whose length is free: fix the length {_BUILDER}": "conv1d conv_transpose1d max_pool1d avg_pool1d"
    " adaptive_avg_pool1d upsample_nearest1d upsample_linear1d",
    f"windows of a map whose size is free, or that overlap by other than steps of one: fix the size {_BUILDER}":
        "im2col col2im",
    f"a maximum over windows of unequal size: choose a size that divides the map's {_BUILDER}":
        "adaptive_max_pool2d adaptive_max_pool1d",
    f"a part is written whose bounds or size are not known beforehand: use cat {_BUILDER}":
        "slice_scatter select_scatter copy fill",
}  # fmt: skip

#: Name of an operator without its overload -> why it is not translated, and what to do.
REFUSED: Mapping[str, str] = {
    **{f"aten.{word}": why for why, words in _ROWS.items() for word in words.split()},
    **dict.fromkeys((f"torchvision.{word}" for word in ("nms", "roi_align", "roi_pool", "ps_roi_align")), _SORTED),
    "torchvision.deform_conv2d": _SAMPLED,
}
#: What comes before and around the operators that make a network what it is, and is named only where it is alone.
_AROUND = (_BATCH, _WHOLE, _COMPARED)


#: Operators that convert to another type.
_CONVERSIONS = frozenset({"aten.to", "aten._to_copy"})


def refusal(target: object) -> str | None:
    """Why an operator is not translated, with the way round; None for one that the list does not have."""
    return REFUSED.get(str(target).rpartition(".")[0])


def refusal_of(node: Node) -> str | None:
    """Why this one is not: of a conversion it depends on the types, between two of reals it makes nothing whole."""
    values = [source.meta.get("val") for source in (node, *node.all_input_nodes)]
    reals = all(isinstance(value, torch.Tensor) and value.is_floating_point() for value in values)
    return _CAST if reals and str(node.target).rpartition(".")[0] in _CONVERSIONS else refusal(node.target)


def most_telling(nodes: Sequence[Node]) -> Node:
    """Of operators that are not translated the one to name: not the zeros that a recurrent layer starts from."""
    plain = (node for node in nodes if str(node.target).rpartition(".")[0] not in _CONVERSIONS)
    return next((node for node in nodes if refusal_of(node) not in (None, *_AROUND)), next(plain, nodes[0]))
