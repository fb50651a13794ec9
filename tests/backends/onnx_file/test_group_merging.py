"""Groups written as one: how many, the same sums, and the runtime's kernels on fewer groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch.nn import functional

from backends.facts.onnxruntime_rules import X64
from backends.onnx_file.group_merging import groups_in_one, merged_weight
from backends.onnxruntime.backend import OnnxRuntime


@pytest.mark.parametrize(
    ("groups", "inputs", "outputs", "count"),
    [
        (32, 4, 4, 8),  # ResNeXt's first stage: 32 channels in each of 4 groups
        (32, 32, 32, 1),
        (48, 1, 2, 16),  # the larger side counts
        (26, 8, 8, 2),  # 4 would fit, but does not divide 26
        (16, 1, 1, 1),  # depthwise
        (1, 3, 8, 1),
        (2, 40, 40, 1),
    ],
)
def test_groups_are_merged_up_to_the_channels_that_kernels_are_made_for(
    groups: int, inputs: int, outputs: int, count: int
) -> None:
    assert groups_in_one(groups, inputs, outputs, 32) == count
    assert groups_in_one(groups, inputs, outputs, 0) == 1


@pytest.mark.parametrize(("groups", "inputs", "outputs", "count"), [(6, 2, 3, 3), (4, 1, 2, 4), (4, 3, 1, 2)])
def test_merged_groups_compute_the_same_sums(groups: int, inputs: int, outputs: int, count: int) -> None:
    generator = np.random.default_rng(0)
    weight = generator.integers(-128, 128, (groups * outputs, inputs, 3, 2)).astype(np.int8)
    images = torch.from_numpy(generator.integers(0, 256, (2, groups * inputs, 5, 5))).double()
    merged = merged_weight(weight, groups, count)
    assert merged.dtype == np.int8 and merged.shape == (groups * outputs, count * inputs, 3, 2)
    separate = functional.conv2d(images, torch.from_numpy(weight).double(), groups=groups)
    together = functional.conv2d(images, torch.from_numpy(merged).double(), groups=groups // count)
    assert torch.equal(separate, together)


def test_the_file_has_fewer_groups_where_integers_are_multiplied(build: Callable[..., Any]) -> None:
    built = build("grouped", target=X64)
    model = built.model()
    (conv,) = [node for node in model.graph.node if node.name == "b"]
    assert onnx.helper.get_node_attr_value(conv, "group") == 1  # of 4 groups with 4 inputs and 8 outputs each
    stored = next(weight for weight in model.graph.initializer if weight.name == "b_weight_in_1_groups")
    assert numpy_helper.to_array(stored).shape == (32, 16, 3, 3)
    assert OnnxRuntime().census(model.SerializeToString(), ["a", "b"]).floating == ()


def test_other_targets_keep_their_groups(build: Callable[..., Any]) -> None:
    built = build("grouped", target="tensorrt")
    model = built.model()
    (conv,) = [node for node in model.graph.node if node.name == "b"]
    assert onnx.helper.get_node_attr_value(conv, "group") == 4
    weight = next(stored for stored in model.graph.initializer if stored.name == "b_weight")
    assert numpy_helper.to_array(weight).shape == (32, 4, 3, 3)
