"""Every network of the zoo in TensorRT's profile, parsed and compiled ahead of time, held to a reviewed table.

A few small members run with the tests; all of them with

    python3 -m pytest -m benchmark tests/backends/test_tensorrt_zoo.py -n 2
"""

from __future__ import annotations

import pytest

from backends.placement import Widths, place
from backends.tensorrt import TensorRT
from backends.tensorrt_engine import build_ahead_of_time
from backends.tensorrt_rules import PROFILE
from calibration.capture import capture
from calibration.errors import UserError
from calibration.fold import fold
from calibration.freeze import freeze
from calibration.insert import insert
from calibration.observe import choose_ranges, observe
from tests.zoo import ZOO

#: Network (its shallow copy) -> weighted layers that read int8 data and int8 weights in the engine's list of kernels,
#: and those that the profile leaves float: too narrow, or a BatchNorm on its own (a depthwise 1x1 convolution).
TABLE: dict[str, tuple[int, int]] = {
    "googlenet": (58, 0),
    "inception_v3": (95, 0),
    "squeezenet1_1": (26, 0),
    "densenet121": (121, 62),
    "resnet18": (19, 0),
    "resnet50": (30, 0),
    "resnext50_32x4d": (30, 0),
    "wide_resnet50_2": (30, 0),
    "mobilenet_v2": (38, 0),
    "mobilenet_v3_small": (44, 0),
    "mobilenet_v3_large": (51, 0),
    "shufflenet_v2_x1_0": (22, 5),
    "mnasnet1_0": (38, 0),
    "efficientnet_b0": (62, 0),
    "efficientnet_v2_s": (42, 0),
    "regnet_x_400mf": (27, 0),
    "regnet_y_400mf": (41, 0),
    "convnext_tiny": (17, 0),
    "mobilenetv4_conv_small": (35, 0),
    "repvgg_a0": (9, 0),
    "mobileone_s0": (171, 56),
    "repvit_m0_9": (105, 48),
    "starnet_s1": (26, 1),
    "fastvit_t8": (33, 18),
    "efficientformerv2_s0": (56, 7),
}

#: Networks that no target can be written for yet, because of an operator; when one can, it belongs into the table.
NOT_YET = frozenset(
    {
        *("alexnet", "vgg11", "vgg11_bn", "vit_b_32", "swin_t", "swin_v2_t", "maxvit_t", "ghostnetv2_100"),
        *("edgenext_xx_small", "efficientvit_b0", "tiny_vit_5m_224"),
    }
)

#: What the tests have time for: every sort of block that the profile treats in a way of its own.
QUICK = ("squeezenet1_1", "regnet_x_400mf", "shufflenet_v2_x1_0", "repvgg_a0")


def counts(name: str, backend: TensorRT) -> tuple[int, int]:
    """Planned layers that the engine computes on integers, all of them, and weighted layers left float."""
    network = ZOO[name]
    images = network.images(2)
    folded = fold(capture(network.build(shallow=True), images, source=network.source))
    plan = place(folded, PROFILE, Widths())
    ranges = choose_ranges(observe(folded, plan, [images]), plan, "minmax")
    model = backend.emit(freeze(insert(folded, plan, ranges).eval(), folded))
    engine = build_ahead_of_time(model.SerializeToString())
    planned = {placement.layer for placement in plan.weights}
    # TensorRT-RTX has no int8 transposed convolution (measured), so none may be planned here unseen.
    assert "conv_transpose" not in plan.kinds.values()
    assert set(engine.integer_layers) == planned
    left = [node for node in plan.float_nodes if plan.kinds[node] in ("conv", "linear")]
    assert len(engine.float_layers) == len(left)
    return len(planned), len(left)


def test_the_table_and_its_gaps_are_the_zoo() -> None:
    assert TABLE.keys() | NOT_YET == ZOO.keys()
    assert not TABLE.keys() & NOT_YET
    assert set(QUICK) <= TABLE.keys()


@pytest.mark.parametrize("name", QUICK)
def test_small_networks_compile_as_planned(name: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed: not done")
    assert counts(name, TensorRT()) == TABLE[name]


@pytest.mark.benchmark
@pytest.mark.parametrize("rest", ["fp32", "fp16"])
@pytest.mark.parametrize("name", TABLE)
def test_networks_compile_as_planned(name: str, rest: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed: not done")
    assert counts(name, TensorRT(rest="fp16" if rest == "fp16" else "fp32")) == TABLE[name]


@pytest.mark.benchmark
@pytest.mark.parametrize("name", sorted(NOT_YET))
def test_gaps_are_still_gaps(name: str) -> None:
    with pytest.raises(UserError):
        counts(name, TensorRT())
