"""The rows of every profile in the order in which they are shipped: run so, exact so, and refused in another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule

from backends import BACKENDS
from backends.facts.profile import Profile
from backends.facts.widths import Widths
from backends.oracle.backend import IntegerOracle
from calibration.rewrites.fold import FOLDING
from calibration.rewrites.rewrite import Rewrite, check_order, names_of, rewritten
from calibration.rewrites.wide_branches import WIDE_BRANCHES
from tests.one_line_net import Net
from tests.recorded_rows import recorded_row, recording

Build = Callable[..., Any]


def _shipped() -> dict[str, Profile]:
    """Every profile of the table of runtimes once, those for other processors than this one's included."""
    profiles = dict[str, Profile]()
    for name, runtime in BACKENDS.items():
        backend = runtime.make(None)
        of_processors = [profile for each in backend.cpu_profiles.values() for profile in each]
        for profile in of_processors or [backend.profile]:
            if any(profile is known for known in profiles.values()):
                continue  # the oracle's are ONNX Runtime's
            profiles[f"{name} {profile.variant or profile.cpu or ''}".strip()] = profile
    return profiles


SHIPPED = _shipped()
#: With fewer bits the list of a run has one row more.
NARROW = Widths(activations=4)


def _number_behind(n: Any, x: torch.Tensor) -> torch.Tensor:
    tokens = n.qkv(n.a(x).flatten(2).transpose(1, 2))
    query, key, value = tokens.chunk(3, -1)
    result: torch.Tensor = n.p(((query @ key.transpose(1, 2)) * 0.25) @ value)
    return result


#: Networks of integers alone that between them every row of every profile changes.
CHANGED: dict[str, str | Callable[[], nn.Module]] = {
    "transposed": "transposed",
    "signed_transposed": "signed_transposed",
    "bordered_average": "bordered_average",
    "strided_pointwise": "strided_pointwise",
    "scores": "scores",
    "residual": "residual",
    "gaps": lambda: Net(
        lambda n, x: n.b(F.max_pool2d(n.a(x), 3, 1, 1, dilation=2)), a=nn.Conv2d(3, 16, 3), b=nn.Conv2d(16, 16, 3)
    ),
    "number_behind_a_product": lambda: Net(
        _number_behind, a=nn.Conv2d(3, 64, 4, stride=4), qkv=nn.Linear(64, 192), p=nn.Linear(64, 64)
    ),
}


def _network(name: str) -> str | nn.Module:
    network = CHANGED[name]
    return network if isinstance(network, str) else network()


@pytest.mark.parametrize("widths", [Widths(), NARROW], ids=["8 bits", "4-bit activations"])
@pytest.mark.parametrize("name", SHIPPED)
def test_the_networks_of_these_suites_pass_the_shipped_rows(
    name: str, widths: Widths, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[str] = []
    built = build("residual", recording(SHIPPED[name], applied, monkeypatch), widths=widths)
    expected = names_of(SHIPPED[name].rewrites) + ((WIDE_BRANCHES.name,) if widths is NARROW else ())
    assert tuple(applied) == expected == names_of(built.profile.rewrites_for(widths))


@pytest.mark.parametrize("name", SHIPPED)
def test_rows_that_state_what_stands_before_them_cannot_be_swapped(name: str) -> None:
    rows = SHIPPED[name].rewrites_for(NARROW)
    check_order(rows)
    for list_of_rows in (rows, FOLDING):
        pairs = [pair for pair in combinations(range(len(list_of_rows)), 2) if _states(list_of_rows, *pair)]
        assert pairs
        for first, second in pairs:
            swapped = list(list_of_rows)
            swapped[first], swapped[second] = swapped[second], swapped[first]
            with pytest.raises(ValueError, match="must stand behind"):
                rewritten(GraphModule(nn.Module(), torch.fx.Graph()), swapped)
            if WIDE_BRANCHES not in (list_of_rows[first], list_of_rows[second]) and list_of_rows is rows:
                with pytest.raises(ValueError, match="must stand behind"):
                    replace(SHIPPED[name], rewrites=tuple(row for row in swapped if row is not WIDE_BRANCHES))


def _states(rows: tuple[Rewrite, ...], first: int, second: int) -> bool:
    return rows[first].name in rows[second].behind


def test_a_profile_whose_rows_cannot_be_followed_by_those_of_narrow_layers_is_none() -> None:
    late = replace(FOLDING[0], name="late", behind=frozenset({WIDE_BRANCHES.name}))
    with pytest.raises(ValueError, match="late must stand behind"):
        replace(SHIPPED["tensorrt"], rewrites=(late,))


@pytest.mark.parametrize("name", SHIPPED)
def test_what_the_shipped_rows_write_is_simulated_as_the_oracle_computes_it(name: str, build: Build) -> None:
    profile, changing = SHIPPED[name], set[str]()
    for network in CHANGED:
        widths = NARROW if network == "residual" else Widths()
        recorded = tuple(recorded_row(row, [], changing) for row in profile.rewrites)
        built = build(_network(network), replace(profile, rewrites=recorded), widths=widths)
        oracle = IntegerOracle(
            built.model(), fused_rounding=profile.fused_rounding, arm_arithmetic=profile.arm_arithmetic
        )
        tolerance = 1e-5 if profile.inexact else 0.0
        for mine, simulated in zip(oracle.run(built.images)[0], built.simulate(), strict=True):
            assert torch.allclose(simulated, mine, rtol=tolerance, atol=tolerance), network
    assert changing == set(names_of(profile.rewrites))
