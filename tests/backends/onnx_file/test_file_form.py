"""The form of files: every field asks for something that computes the same; no shared code asks whose file it is."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from backends import BACKENDS
from backends.facts.file_form import PLAIN, FileForm
from backends.onnx_file.emit import emit
from backends.oracle.backend import IntegerOracle
from tests.one_line_net import Net

Build = Callable[..., Any]

#: Field -> what it may be instead of the plain form, and a network, target and bits whose file it changes.
CHANGES: dict[str, tuple[Any, str, str, int]] = {
    "movement": ("reals", "concat", "onnxruntime", 8),
    "shared_constants": (False, "shared_weight", "onnxruntime", 8),
    "packs_int4": (True, "conv", "onnxruntime", 4),
    "merged_channels": (32, "depth_multiplier", "onnxruntime", 8),
    "prelu_as_maximum": (True, "prelu", "onnxruntime", 8),
    "bounds_behind_products": (True, "relu_of_tokens", "onnxruntime", 8),
    "softmax_apart": (True, "softmax", "onnxruntime", 8),
    "reductions_apart": (True, "smallest_of_tokens", "openvino", 8),
    "maxima_apart": (True, "gelu_of_maxima", "openvino", 8),
    "shares_apart": (True, "unequal_windows", "openvino", 8),
    "negative_factors_apart": (True, "negative_factors", "openvino", 8),
    "joins_apart": (True, "number_behind_a_join", "openvino", 8),
    "normalised_apart": (True, "normalised_number", "openvino", 8),
    "clips_apart": (True, "clipped_integers", "openvino", 8),
    "rounded_joins_apart": (True, "part_of_a_join", "openvino", 8),
    "factors_apart": (True, "factor_of_a_sum", "openvino", 8),
    "turned_apart": (True, "spread_and_turned", "openvino", 8),
    "mish_in_parts": (True, "mish_of_a_product", "openvino", 8),
    "bias_everywhere": (True, "conv", "openvino", 8),
    "borders_next_to_zero": (True, "bordered_average_of_a_sum", "openvino", 8),
    "orders_in_halves": (True, "reordered", "onnxruntime", 8),
    "spreads_by_values": (True, "spread", "openvino", 8),
}


#: Networks that no table has: all channels in an order that is not its own inverse; a constant for every image; a
#: softmax between layers.
OWN: dict[str, Callable[[], nn.Module]] = {
    "reordered": lambda: Net(
        lambda n, x: n.b(torch.relu(n.a(x))[:, torch.arange(16).roll(1)]), a=nn.Conv2d(3, 16, 3), b=nn.Conv2d(16, 8, 1)
    ),
    "spread": lambda: Net(
        lambda n, x: n.b(torch.cat([n.a(x), n.c.bias.reshape(1, 16, 1, 1).expand(len(x), -1, *x.shape[2:])], 1)),
        **{"a": nn.Conv2d(3, 16, 1), "c": nn.Conv2d(3, 16, 1), "b": nn.Conv2d(32, 8, 1)},
    ),
    "gelu_of_maxima": lambda: Net(
        lambda n, x: n.b(F.gelu(F.max_pool2d(n.a(x), 2))), a=nn.Conv2d(3, 16, 3), b=nn.Conv2d(16, 8, 1)
    ),
    "unequal_windows": lambda: Net(
        lambda n, x: n.b(n.p(F.adaptive_avg_pool2d(n.a(x), (3, 5)))),
        **{"a": nn.Conv2d(3, 16, 3), "p": nn.PReLU(16), "b": nn.Conv2d(16, 8, 1)},
    ),
    "number_behind_a_join": lambda: Net(
        lambda n, x: (lambda y: n.b(torch.cat([y, F.gelu(y)], 3) + 1))(n.a(x)),
        **{"a": nn.Conv2d(3, 16, 3), "b": nn.Conv2d(16, 8, 1)},
    ),
    "normalised_number": lambda: Net(
        lambda n, x: n.b(F.instance_norm(F.gelu(n.a(x)) / 10)), a=nn.Conv2d(3, 16, 3), b=nn.Conv2d(16, 8, 1)
    ),
    "clipped_integers": lambda: Net(
        lambda n, x: (lambda y: n.b(y).mean((1, 2, 3), keepdim=True) + y.clamp(-0.1, 0.2))(n.a(x)),
        **{"a": nn.Conv2d(3, 16, 3), "b": nn.Conv2d(16, 8, 1)},
    ),
    "part_of_a_join": lambda: Net(
        lambda n, x: (lambda y: n.b(torch.cat([y.relu(), F.gelu(y)], 1)[:, 8:24]))(n.a(x)),
        **{"a": nn.Conv2d(3, 16, 3), "b": nn.Conv2d(16, 8, 1)},
    ),
    "factor_of_a_sum": lambda: Net(
        lambda n, x: n.b((n.a(x) + torch.arange(10.0)) * 2), a=nn.Conv2d(3, 16, 3), b=nn.Conv2d(16, 8, 1)
    ),
    "spread_and_turned": lambda: Net(
        lambda n, x: n.b(F.gelu(F.pixel_shuffle(n.a(x), 2).flatten(2).transpose(1, 2))),
        **{"a": nn.Conv2d(3, 16, 3), "b": nn.Linear(4, 8)},
    ),
    "mish_of_a_product": lambda: Net(
        lambda n, x: n.b(F.mish(n.a(x) @ n.a(x).transpose(2, 3))), a=nn.Conv2d(3, 16, 3), b=nn.Conv2d(16, 8, 1)
    ),
    "negative_factors": lambda: Net(
        lambda n, x: n.b(n.a(x).softmax(1) * (torch.arange(16.0).reshape(16, 1, 1) - 5)),
        **{"a": nn.Conv2d(3, 16, 3), "b": nn.Conv2d(16, 8, 1)},
    ),
    "softmax": lambda: Net(lambda n, x: n.b(torch.softmax(n.a(x), 1)), a=nn.Conv2d(3, 16, 3), b=nn.Conv2d(16, 8, 1)),
}


def test_every_field_is_tried() -> None:
    # What nobody writes otherwise, the linter alone asks.
    assert {field.name for field in fields(FileForm)} == CHANGES.keys() | {"rounded_for_all"}


@pytest.mark.parametrize("field", CHANGES)
def test_a_field_changes_the_file_and_nothing_that_it_computes(field: str, build: Build) -> None:
    value, network, target, bits = CHANGES[field]
    built = build(OWN[network]() if network in OWN else network, target, bits=bits)
    form = PLAIN if built.profile.form.movement == "integers" else replace(PLAIN, movement="reals")
    files = [emit(built.frozen, opset=21, form=each) for each in (form, replace(form, **{field: value}))]
    assert files[0].SerializeToString() != files[1].SerializeToString()
    fused = built.profile.fused_rounding
    (before, *_), (after, *_) = (IntegerOracle(file, fused_rounding=fused).run(built.images)[0] for file in files)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_a_frozen_network_is_written_in_a_form_and_a_float_one_in_none(build: Build) -> None:
    built = build("conv")
    with pytest.raises(ValueError, match="a frozen network is written in a runtime's form"):
        emit(built.frozen, opset=20)
    with pytest.raises(ValueError, match="a float graph in the one that all read"):
        emit(built.folded, opset=20, form=PLAIN)


@pytest.mark.parametrize(
    ("change", "words"), [({"merged_channels": -1}, "0 or more"), ({"movement": "floats"}, "integers and reals")]
)
def test_a_form_is_valid_at_birth(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FileForm(**change)


def test_storage_of_narrow_weights_is_explained_where_it_is_wide() -> None:
    profile = BACKENDS["tensorrt"].make(None).profile
    with pytest.raises(ValueError, match="wide_storage says why"):
        replace(profile, wide_storage="")


@pytest.mark.parametrize(
    "room", ["onnx_file", "placement", "artifact.py", "base.py", "oracle/differences.py", "nncf/adapt.py"]
)
def test_shared_code_compares_no_runtimes_name(room: str, repository: Path) -> None:
    place = repository / "backends" / room
    for file in [place] if place.is_file() else sorted(place.rglob("*.py")):
        constants = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)]
        named = [f"{file.name}, line {node.lineno}: {node.value}" for node in constants if node.value in BACKENDS]
        assert named == [], "a field of the profile asks that"
