"""The reviewed table of the list's networks is what a run plans, and the page what the table says.

A few networks are planned with the tests; all of them with

    python3 -m pytest -m benchmark tests/backends/zoo/test_table.py

`python3 -m tests.zoo_table` writes the table anew.
"""

from __future__ import annotations

import pytest

from tests import zoo_parity
from tests.zoo import ZOO
from tests.zoo_table import PAGE, page, read, structure_of

#: What the tests have time for: all on integers, and with operators in float.
QUICK = ("repvgg_a0", "fastvit_t8")


def test_the_table_has_every_network_and_no_weighted_layer_in_float() -> None:
    table = read()
    assert list(table) == list(ZOO)
    assert {name for name, row in table.items() if row["structure"]["float layers"]} == set()
    assert all(entry["reason"] for row in table.values() for entry in row["structure"]["computed in float"])


def test_the_page_shows_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(read(), zoo_parity.read())


@pytest.mark.parametrize("name", QUICK)
def test_small_networks_are_planned_as_reviewed(name: str) -> None:
    assert structure_of(ZOO[name]) == read()[name]["structure"]


@pytest.mark.benchmark
@pytest.mark.parametrize("name", ZOO)
def test_networks_are_planned_as_reviewed(name: str) -> None:
    assert structure_of(ZOO[name]) == read()[name]["structure"]
