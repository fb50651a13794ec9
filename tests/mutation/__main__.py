"""Mutation testing of what computes and judges: which changes of the code would no test notice?

    pip install mutmut
    python3 -m tests.mutation placement --output DIR              # every mutant of a group
    python3 -m tests.mutation emitter --sample 400 --output DIR   # so many, drawn by --seed
    python3 -m tests.mutation emitter --files half.py --output DIR   # of one of its sources alone
    python3 -m tests.mutation emitter --again --output DIR        # its survivors once more, after new tests
    python3 -m tests.mutation emitter --again --output DIR --tests tests/backends/onnx_file/test_new.py   # by it alone

Linux and macOS: mutants are tried in forks. What became of each is a line of DIR/GROUP.jsonl, and a run that was
stopped goes on where it was; survivors and figures are printed. Exit status 1 where less than nine in ten are killed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.groups import GROUPS, ROOT
from tests.mutation.mutants import Candidates, Mutant
from tests.mutation.trial import (
    NOT_SWAPPED,
    Baseline,
    FunctionTrials,
    import_trial,
    in_a_copy,
    measure,
    pytest_flags,
)

#: At least so many of each file are drawn, where it has as many.
FEWEST_OF_A_FILE = 5
LEAST_KILLED = 0.9
#: Imported once, before anything is forked, with what they import when they are first asked for.
LIBRARIES = (
    "numpy",
    "onnx",
    "onnx.reference",
    "onnxruntime",
    "PIL.Image",
    "torch",
    "torch.export",
    "sympy",
)


def main(arguments: Sequence[str]) -> int:
    """Score one group."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.mutation", description=str(__doc__).split("\n\n")[0])
    parser.add_argument("group", choices=sorted(GROUPS))
    parser.add_argument("--sample", type=int, help="how many mutants; all where not said")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--seconds", type=float, default=20, help="of tests, the quickest first, that a mutant may take"
    )
    parser.add_argument("--files", nargs="+", metavar="NAME", help="of its sources only those that are called so")
    parser.add_argument("--again", action="store_true", help="try the survivors of --output again")
    parser.add_argument("--tests", nargs="+", help="files and folders, instead of those of the group")
    parser.add_argument("--output", type=Path, default=Path(tempfile.gettempdir()) / "faqd-mutation")
    chosen = parser.parse_args(arguments)
    group = GROUPS[chosen.group]
    tests = tuple(chosen.tests or group.tests)
    chosen.output.mkdir(parents=True, exist_ok=True)
    results = Results(chosen.output / f"{chosen.group}.jsonl", again=chosen.again)
    if unknown := set(chosen.files or ()) - {file.name for file in group.files()}:
        parser.error(f"--files {' '.join(sorted(unknown))}: {chosen.group} has no source of that name")
    sources = [file for file in group.files() if not chosen.files or file.name in chosen.files]
    files = [Candidates(file) for file in sources]
    every = sum(map(len, files))
    mutants = drawn(files, chosen.sample or every, random.Random(chosen.seed))
    rest = [mutant for mutant in mutants if not results.knows(mutant)]
    print(f"{every} changes of {len(files)} files, {len(mutants)} of them tried, {len(rest)} to go", flush=True)
    if rest:
        for library in LIBRARIES:
            importlib.import_module(library)
        _export_once()
        with tempfile.TemporaryDirectory() as folder:
            kept = chosen.output / f"{chosen.group}.baseline.json"
            baseline = measure(group.files(), tests, Path(folder) / "tests", kept)
            print(f"{len(baseline.seconds)} tests take {sum(baseline.seconds.values()):.0f} s", flush=True)
            Trials(baseline, results, Path(folder) / "tests", seconds=chosen.seconds).run(rest, tests)
    return results.summary(mutants, every)


def drawn(files: Sequence[Candidates], number: int, source: random.Random) -> list[Mutant]:
    """A share of every file's mutants, and some of each file; in the order of the files."""
    every = sum(map(len, files))
    chosen = []
    for file in files:
        share = min(max(FEWEST_OF_A_FILE, round(number * len(file) / every)), len(file))
        chosen += [file.mutant(place) for place in sorted(source.sample(range(len(file)), share))]
    return [mutant for mutant in chosen if mutant is not None]


def _export_once() -> None:
    """What torch.export imports only when it is used, so that no copy pays for it."""
    torch: Any = importlib.import_module("torch")
    torch.export.export(torch.nn.Conv2d(1, 1, 1), (torch.zeros(2, 1, 2, 2),))


class Results:
    """The lines of one file: what became of each mutant."""

    def __init__(self, path: Path, *, again: bool) -> None:
        self._path = path
        self._lines: dict[str, dict[str, Any]] = {}
        self.read()
        if again:
            kept = {name: line for name, line in self._lines.items() if line["outcome"] != "survived"}
            self._lines = kept
            path.write_text("".join(f"{json.dumps(line)}\n" for line in kept.values()))

    def knows(self, mutant: Mutant) -> bool:
        """Whether this very change was tried."""
        line = self._lines.get(mutant.name)
        return line is not None and line["change"] == mutant.change

    def add(self, mutant: Mutant, outcome: str, test: str) -> None:
        """Written at once, so that a stopped run goes on."""
        line = {"name": mutant.name, "change": mutant.change, "outcome": outcome, "test": test}
        self._lines[mutant.name] = line
        with self._path.open("a") as file:
            file.write(f"{json.dumps(line)}\n")

    def read(self) -> None:
        """What stands in the file, also what a copy of this process has added."""
        if self._path.is_file():
            for line in self._path.read_text().splitlines():
                self._lines[json.loads(line)["name"]] = json.loads(line)

    def summary(self, mutants: Iterable[Mutant], every: int) -> int:
        """Print figures and survivors; 1 where too few were killed."""
        tried = [(mutant, self._lines[mutant.name]) for mutant in mutants]
        for mutant, line in tried:
            if line["outcome"] == "survived":
                print(f"{mutant.file}:{mutant.lines[0]} {mutant.qualname}\n    {mutant.change}\n    {line['test']}")
        outcomes = Counter(str(line["outcome"]) for _, line in tried)
        killed = len(tried) - outcomes["survived"]
        print(f"{len(tried)} of {every} mutants: {dict(outcomes)}; {100 * killed / len(tried):.1f} % killed", end="")
        if len(tried) < every:
            low, high = wilson(killed, len(tried))
            print(f" (95 % interval {100 * low:.1f} to {100 * high:.1f} %)", end="")
        print()
        return 0 if killed >= LEAST_KILLED * len(tried) else 1


def wilson(successes: int, trials: int, *, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share, 0 to 1. Source: Wilson 1927."""
    share, square = successes / trials, z * z / trials
    middle = share + square / 2
    half = z * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    return (middle - half) / (1 + square), (middle + half) / (1 + square)


class Trials:
    """The order in which mutants are tried, and tests run for each."""

    def __init__(self, baseline: Baseline, results: Results, folder: Path, *, seconds: float) -> None:
        self._baseline = baseline
        self._seconds = seconds
        self._results = results
        self._folder = folder
        self._noticed: dict[tuple[str, str], list[str]] = {}

    def run(self, mutants: Sequence[Mutant], tests: Sequence[str]) -> None:
        """Functions first, in copies of one process; then what needs an import."""
        inside, outside = [], []
        for mutant in mutants:
            if not mutant.later or self._on_import(mutant):
                outside.append(mutant)
            elif self._reaching(mutant):
                inside.append(mutant)
            else:
                self._results.add(mutant, "survived", "none of these tests comes here")
        if inside:
            plugin = FunctionTrials(mutants=inside, baseline=self._baseline, order=self._order, say=self._say)
            ended = in_a_copy(lambda: int(pytest.main([*pytest_flags(self._folder), *tests], plugins=[plugin])))
            if ended not in ((0, pytest.ExitCode.OK), (0, pytest.ExitCode.NO_TESTS_COLLECTED)):
                raise RuntimeError(f"the process that holds the tests ended with {ended}")
            self._results.read()
            outside += [mutant for mutant in inside if not self._results.knows(mutant)]
        if outside:
            self._check_import(outside[0])
        for mutant in outside:
            tests_of_file = self._of_file(mutant) if not mutant.later else self._order(mutant)
            self._say(
                mutant, *import_trial(mutant, tests_of_file or self._of_file(mutant), self._folder, self._baseline)
            )

    def _check_import(self, mutant: Mutant) -> None:
        """What is imported as it is must survive, or a mutant's failure would say nothing."""
        unchanged = replace(mutant, source=(ROOT / mutant.file).read_text())
        outcome, test = import_trial(unchanged, self._of_file(mutant)[:20], self._folder, self._baseline)
        if outcome != "survived":
            raise RuntimeError(f"{mutant.file} imported without a change was {outcome}: {test}")

    def _say(self, mutant: Mutant, outcome: str, test: str) -> None:
        if outcome != NOT_SWAPPED:
            self._results.add(mutant, outcome, test)
        if outcome == "killed":
            self._noticed.setdefault((mutant.file, mutant.qualname), []).append(test)

    def _on_import(self, mutant: Mutant) -> bool:
        first, last = mutant.lines
        return any(first <= line <= last for line in self._baseline.on_import[mutant.file])

    def _reaching(self, mutant: Mutant) -> set[str]:
        lines = self._baseline.tests_by_line[mutant.file]
        return {name for line in range(mutant.lines[0], mutant.lines[1] + 1) for name in lines.get(line, ())}

    def _order(self, mutant: Mutant) -> list[str]:
        """Tests that reach the line: first those that noticed another change of the function, then the quickest."""
        noticed = set(self._noticed.get((mutant.file, mutant.qualname), ()))
        return self._quickest(self._reaching(mutant), noticed)

    def _of_file(self, mutant: Mutant) -> list[str]:
        """Tests that reach any line of the file, the quickest first; all where it holds tables alone."""
        reaching = {name for names in self._baseline.tests_by_line[mutant.file].values() for name in names}
        return self._quickest(reaching or set(self._baseline.seconds), set())

    def _quickest(self, tests: set[str], first: set[str]) -> list[str]:
        """Some tests first, then the quickest, as many as the time allows: what they miss counts as survived."""
        seconds = self._baseline.seconds
        ordered = sorted(tests, key=lambda name: (name not in first, seconds[name]))
        spent = accumulate(seconds[name] for name in ordered)
        return [name for name, until in zip(ordered, spent, strict=True) if until <= self._seconds] or ordered[:1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
