"""Poolings that round their size up, and sizes that no factor in float32 makes: no runtime's rounding decides.

Between two convolutions, against the network itself, the simulation, the oracle and the real runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from backends import backend_named
from backends.oracle.backend import IntegerOracle
from calibration.graph.factors import written_factor
from calibration.graph.nearness import apart
from calibration.graph.operators import kind
from tests.one_line_net import Net, c3

if TYPE_CHECKING:
    from tests.backends.conftest import Build

Line = Callable[[Tensor], Tensor]

CUT: dict[str, Line] = {
    "average, no border": lambda x: F.avg_pool2d(x[..., :10, :10], 2, 3, ceil_mode=True),
    "average, border counts": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average, border does not count": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "average, cut along one axis, a window fewer along the other": lambda x: F.avg_pool2d(
        x[..., :11, :12], 3, (3, 2), 1, ceil_mode=True
    ),
    "maximum": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "maximum, cut along one axis, a window fewer along the other": lambda x: F.max_pool2d(
        x[..., :11, :12], 3, (3, 2), 1, ceil_mode=True
    ),
    "maximum, dilated": lambda x: F.max_pool2d(x, 2, (2, 3), dilation=3, ceil_mode=True),
}
#: Where one axis is cut, and the other has a window fewer than rounding up would give, or a window is all of the map.
CUT |= {
    "average, cut along one axis, the rest of the other left out": lambda x: F.avg_pool2d(
        x[..., :10, :10], 2, (3, 5), ceil_mode=True
    ),
    "average, a border does not count, cut along one axis": lambda x: F.avg_pool2d(
        x[..., :11, :12], 3, (3, 2), 1, True, False
    ),
    "average, a window larger than the map": lambda x: F.avg_pool2d(x[..., :4, :4], (5, 2), 3, ceil_mode=True),
    "maximum, a window larger than the map": lambda x: F.max_pool2d(x[..., :4, :4], (5, 2), 3, ceil_mode=True),
}
#: Windows that are larger than map and border, which OpenVINO refuses.
LARGER: dict[str, Line] = {
    "maximum, dilated": lambda x: F.max_pool2d(x[..., :4, :5], 3, 4, dilation=3, ceil_mode=True),
    "maximum, dilated along one axis": lambda x: F.max_pool2d(x[..., :4, :], (3, 2), 4, dilation=3, ceil_mode=True),
    "maximum, with a border": lambda x: F.max_pool2d(x[..., :2, :3], 5, 2, 1, ceil_mode=True),
    "maximum, dilated, with a border": lambda x: F.max_pool2d(x[..., :4, :5], 5, 6, 2, dilation=3, ceil_mode=True),
    "average, a border counts": lambda x: F.avg_pool2d(x[..., :2, :2], (5, 3), 2, 1, ceil_mode=True),
    "average, a border does not count": lambda x: F.avg_pool2d(x[..., :2, :2], (5, 3), 2, 1, True, False),
    "average, a border of rows": lambda x: F.avg_pool2d(x[..., :2, :9], (5, 3), 2, (1, 0), True, False),
    "average, divided by 3": lambda x: F.avg_pool2d(x[..., :2, :2], 5, 2, 1, ceil_mode=True, divisor_override=3),
}
CUT |= {f"larger than all: {name}": line for name, line in LARGER.items()}
WHOLE: dict[str, Line] = {
    "average, last window left out": lambda x: F.avg_pool2d(x[..., :11, :11], 3, 3, 1, ceil_mode=True),
    "average, divided by 5, cut": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, divisor_override=5),
    "average, divided by -3, a window fewer": lambda x: F.avg_pool2d(
        x[..., :11, :11], 3, 3, 1, True, False, divisor_override=-3
    ),
    "average, divided by what it would be": lambda x: F.avg_pool2d(x, 3, 2, divisor_override=9),
    "average, windows fit": lambda x: F.avg_pool2d(x, (2, 4), 2, ceil_mode=True),
    "maximum, last window left out": lambda x: F.max_pool2d(x[..., :11, :11], 3, 3, 1, ceil_mode=True),
}
#: 14 / 12, 15 / 9 and 17 / 12 in float32 are a little less, 2 / 14 is more: places move.
RESIZED: dict[str, Line] = {
    "nearest, 12 to 14": lambda x: torch.cat([F.interpolate(x, 14), x.repeat(1, 1, 2, 2)[..., :14, :14]], 1)[:, 8:24],
    "nearest, 9 to 15 and 17": lambda x: F.interpolate(x[..., :9, :12], (15, 17)).flatten(2)[..., None],
    "nearest, 14 to 2": lambda x: F.interpolate(F.pad(x, (1, 1, 1, 1)), 2),
    "bilinear, 9 to 15 and 17": lambda x: F.interpolate(x[..., :9, :12], (15, 17), mode="bilinear").flatten(2)[
        ..., None
    ],
}


@pytest.mark.parametrize("name", CUT)
def test_openvino_loads_and_gives_them(name: str, build: Build) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'faqd[openvino]'")
    inputs = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    built = build(Net(lambda n, x: n.b(CUT[name](n.a(x))), a=c3(3, 16), b=c3(16, 16)).eval(), "openvino", inputs=inputs)
    model = backend_named("openvino").emit(built.frozen, opset=None, batch=None)
    (oracle,), _ = IntegerOracle(model).run(inputs)
    with backend_named("openvino").runner(model.SerializeToString(), threads=1) as runner:
        (ran,) = runner.run(inputs.numpy())
    assert apart(torch.from_numpy(ran), oracle) < 0.03


@pytest.mark.parametrize("name", [*CUT, *WHOLE, *RESIZED])
def test_the_network_the_simulation_the_oracle_and_the_runtime_agree(name: str, build: Build) -> None:
    line = (CUT | WHOLE | RESIZED)[name]
    inputs = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(0)  # the weights'
    network = Net(lambda n, x: n.b(line(n.a(x))), a=c3(3, 16), b=c3(16, 16)).eval()
    built = build(network, inputs=inputs)
    with torch.no_grad():
        (folded,), (simulated,), own = built.folded(inputs), built.prepared(inputs), network(inputs)
    assert float((folded - own).abs().max() / own.abs().max()) < 1e-5
    (oracle,), _ = IntegerOracle(built.model()).run(inputs)
    assert torch.equal(oracle, simulated)
    with backend_named("onnxruntime").runner(built.model().SerializeToString(), threads=1) as runner:
        (ran,) = runner.run(inputs.numpy())
    if name.startswith("bilinear"):
        # In float, whose last bits are the runtime's own: a few values on the edge of a step end beside it.
        assert float((torch.from_numpy(ran) != simulated).float().mean()) < 0.05
        assert float((torch.from_numpy(ran) - simulated).abs().max() / simulated.abs().max()) < 0.05
    else:
        assert torch.equal(torch.from_numpy(ran), simulated)
    poolings = [node for node in built.folded.graph.nodes if kind(node) in {"average_pool", "max_pool"}]
    assert all(not (_rounds_up(node) and name in WHOLE) for node in poolings)
    assert all(not (_rounds_up(node) and _counts_border(node)) for node in poolings)


def _rounds_up(node: Node) -> bool:
    return bool(_at(node, 4 if kind(node) == "average_pool" else 5, False))


def _counts_border(node: Node) -> bool:
    return kind(node) == "average_pool" and bool(_at(node, 5, True))


def _at(node: Node, place: int, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else default


def test_factors_make_their_size_without_rounding_and_move_no_place() -> None:
    refused = 0
    for length in range(1, 65):
        for size in range(1, 65):
            plain = written_factor(length, size, size / length, nearest=False)
            assert plain is not None and int(float(plain) * length) == size
            factor = written_factor(length, size, size / length, nearest=True)
            if factor is None:
                refused += 1
                continue
            places = np.floor(np.arange(size, dtype=np.float32) / factor)
            assert int(float(factor) * length) == size
            own = F.interpolate(torch.arange(float(length)).reshape(1, 1, length), size)
            assert places.tolist() == own.flatten().tolist()
    assert 0 < refused < 64 * 64 / 2
    assert written_factor(12, 20, 1.7, nearest=False) == np.float32(1.7)  # 20.4: the factor is the user's own
