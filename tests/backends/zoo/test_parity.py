"""Parity over the whole list: every integer tensor of every network, operator by operator, at its real depth.

Shallow copies of a few run with the tests. All of them, which writes the counts into the reviewed table, with

    python3 -m pytest -m benchmark tests/backends/zoo/test_parity.py [-k "resnet18 or swin"]
"""

from __future__ import annotations

import pytest

from backends.facts.onnxruntime_rules import host_profile
from calibration.rewrites.rewrite import names_of
from tests import zoo_parity, zoo_table
from tests.recorded_rows import recording
from tests.zoo import ZOO

#: The size of images; where the network has another structure at it, the one that it is published for.
PIXELS = {name: 128 for name in ZOO} | {"vgg11": 224, "vgg11_bn": 224}
#: What the tests have time for: integers throughout, average poolings, float operators.
QUICK = ("repvgg_a0", "fastvit_t8")


def test_the_reviewed_counts_hold_the_promise() -> None:
    table = zoo_parity.read()
    assert list(table) == list(ZOO)
    assert {name: said for name, row in table.items() if (said := zoo_parity.faults(row))} == {}
    floats = {name: bool(row["structure"]["computed in float"]) for name, row in zoo_table.read().items()}
    assert {name: row["computed in float"] for name, row in table.items()} == floats


@pytest.mark.parametrize("name", QUICK)
def test_small_networks_differ_in_known_exceptions_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    applied: list[str] = []
    profile = recording(host_profile(), applied, monkeypatch)
    monkeypatch.setattr("tests.zoo_parity.host_profile", lambda: profile)
    counts = zoo_parity.counts(ZOO[name], pixels=ZOO[name].pixels, shallow=True)
    assert tuple(applied) == names_of(profile.rewrites)  # as shipped
    assert counts["integers"] > 10_000 and zoo_parity.faults(counts) == []


def test_what_is_no_known_exception_is_a_fault() -> None:
    good = zoo_parity.read()["resnet18"]
    assert zoo_parity.faults(good) == []
    row = {"integers": 100, "differing": 1, "largest": 1}
    (said,) = zoo_parity.faults(good | {"arising": {"Conv": row}})
    assert said == "Conv: 1 of 100 integers differ by up to 1, and no integer kernel but AveragePool may differ"
    (said,) = zoo_parity.faults(good | {"arising": {"gelu in float": row | {"largest": 2}}})
    assert said == "gelu in float: 1 of 100 integers differ by up to 2, and one step is the bound"
    (said,) = zoo_parity.faults(good | {"outputs": good["outputs"] | {"simulation": 0.5}})
    assert said == "outputs: oracle and simulation are equal in 0.500000 of the values"


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ZOO)
def test_every_integer_of_every_network(name: str) -> None:
    counts = zoo_parity.counts(ZOO[name], pixels=PIXELS[name])
    zoo_table.update_parity(name, counts)
    assert zoo_parity.faults(counts) == []
