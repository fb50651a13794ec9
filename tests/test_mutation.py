"""Mutation testing tries what it says it tries: files, tests and live functions, whose code is changed in a copy."""

from __future__ import annotations

import os
import random
import signal
from typing import Any

import pytest

from calibration.grid import Grid, affine_parameters
from tests.mutation import trial
from tests.mutation.__main__ import drawn, wilson
from tests.mutation.groups import GROUPS, ROOT
from tests.mutation.mutants import Mutant

SOURCE = ROOT / "calibration" / "grid.py"
FUNCTIONS: list[Any] = [affine_parameters]
GRID = Grid(bits=8, signed=False, symmetric=False)


def changed(before: str, after: str) -> Mutant:
    source = SOURCE.read_text()
    assert source.count(before) == 1
    source = source.replace(before, after)
    name = str(SOURCE.relative_to(ROOT))
    return Mutant(file=name, number=0, lines=(1, 1), later=True, qualname="", change="", source=source)


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_every_group_has_sources_and_tests(name: str) -> None:
    assert GROUPS[name].files()
    assert all((ROOT / test.removeprefix("--deselect=").partition("::")[0]).exists() for test in GROUPS[name].tests)


def test_a_changed_function_computes_otherwise_in_the_copy_alone() -> None:
    mutant = changed("low, high = min(low, 0.0), max(high, 0.0)", "low, high = min(low, 0.0), max(high, 9.0)")

    def attempt() -> object:
        return [trial._swap(mutant, FUNCTIONS), affine_parameters(0.0, 1.0, GRID)]

    assert trial.in_a_copy(attempt) == (0, [True, [9 / 255, 0]])
    assert affine_parameters(0.0, 1.0, GRID) == (1 / 255, 0)


def test_what_no_function_holds_is_not_swapped() -> None:
    mutant = changed("    narrow: bool = False\n", "    narrow: bool = True\n")
    assert not trial._swap(mutant, FUNCTIONS)


def test_how_a_copy_ends_says_whether_the_mutant_was_noticed() -> None:
    assert trial._verdict(*trial.in_a_copy(lambda: ["survived", ""])) == ("survived", "")
    assert trial._verdict(*trial.in_a_copy(lambda: 1 / 0)) == ("killed", "the process ended with status 1")
    assert trial._verdict(*trial.in_a_copy(lambda: os.kill(os.getpid(), signal.SIGPROF))) == ("timed out", "")


def test_the_interval_by_hand() -> None:
    # Ninety of a hundred: (0.9 + 0.0192 -+ 1.96 sqrt(0.0009 + 0.000096)) / 1.0384.
    assert wilson(90, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)


def test_a_sample_has_some_of_every_file() -> None:
    pytest.importorskip("libcst", reason="comes with mutmut, which no extra installs")
    pytest.importorskip("mutmut", reason="no extra installs it")
    from tests.mutation.mutants import Candidates

    files = [Candidates(file) for file in GROUPS["placement"].files()]
    sample = drawn(files, 20, random.Random(0))
    assert {mutant.file for mutant in sample} == {str(file.relative_to(ROOT)) for file in GROUPS["placement"].files()}
    assert [m.name for m in sample] == [m.name for m in drawn(files, 20, random.Random(0))]
    assert all(mutant.source != (ROOT / mutant.file).read_text() for mutant in sample)
