"""Trying mutants: a forked copy of a process that has all imported runs what tests reach the changed line.

A fresh process a mutant would import torch a thousand times. Where a function's body changed, every live function of
that code is given the new code after tests were collected (`FunctionTrials`); what is evaluated on import, such as
tables, limits and defaults, is imported changed by a process that has imported libraries alone (`import_trial`).
"""

from __future__ import annotations

import gc
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.groups import ROOT
from tests.mutation.mutants import Mutant

#: Seconds of processor time that a test may take beyond five times its own; a mutant that needs more never ends.
SPARE_SECONDS = 5
#: Seconds by the clock after which a copy that waits for something, and computes nothing, is ended.
MOST_SECONDS = 900
#: Bytes of data that a copy may hold, so that a mutant that asks for all of memory is refused.
MOST_BYTES = 8 * 2**30

#: What is said of a mutant that only an import can put in place.
NOT_SWAPPED = "not swapped"


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What the tests do without any mutant: seconds of each, which reach which line, and what importing reaches."""

    seconds: Mapping[str, float]
    tests_by_line: Mapping[str, Mapping[int, Sequence[str]]]
    on_import: Mapping[str, Sequence[int]]


@dataclass(kw_only=True, eq=False)
class _Recorder:
    """A pytest plug-in that notes times and failures, and says who runs to coverage."""

    coverage: Any = None
    seconds: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """One test is one context, with the fixtures that it asked for first."""
        if self.coverage is not None:
            self.coverage.switch_context(item.nodeid)
        started = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - started
        if self.coverage is not None:
            self.coverage.switch_context("")
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test that fails, or whose fixture does."""
        if report.failed:
            self.failed.append(report.nodeid)


def in_a_copy(work: Callable[[], object], *, quiet: bool = True) -> tuple[int, Any]:
    """Run in a fork: its exit status (negative: the signal that ended it) and what it gave, as JSON can say it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            if quiet:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 1)
                os.dup2(nowhere, 2)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            content = json.dumps(work()).encode()
            while content:
                content = content[os.write(writing, content) :]
            status = 0
        except BaseException:
            traceback.print_exc()  # of a mutant it goes nowhere: whatever it raises, it was noticed
            raise
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, json.loads(content) if status == 0 else None


def measure(files: Sequence[Path], tests: Sequence[str], folder: Path, kept: Path) -> Baseline:
    """Run all tests once, with coverage of the sources; a RuntimeError says which do not pass.

    `kept` is where the result is stored, and read from while sources and tests are the same.
    """
    folders = [ROOT / test for test in tests if (ROOT / test).exists()]
    sources = [
        *files,
        *(file for place in folders for file in sorted(place.rglob("*.py") if place.is_dir() else [place])),
    ]
    digest = hashlib.sha256(b"".join((str(tests).encode(), *(file.read_bytes() for file in sources)))).hexdigest()
    answer: Any = json.loads(kept.read_text()) if kept.is_file() else {"digest": None}
    if answer["digest"] != digest:
        status, answer = in_a_copy(lambda: _measured(files, tests, folder), quiet=False)
        if status != 0:
            raise RuntimeError(f"the tests without a mutant ended with status {status}")
        if answer["failed"]:
            raise RuntimeError(f"tests fail without a mutant: {', '.join(answer['failed'])}")
        kept.write_text(json.dumps(answer | {"digest": digest}))
    return Baseline(
        seconds=answer["seconds"],
        tests_by_line={
            file: {int(line): names for line, names in lines.items()} for file, lines in answer["lines"].items()
        },
        on_import=answer["on_import"],
    )


def _measured(files: Sequence[Path], tests: Sequence[str], folder: Path) -> object:
    coverage: Any = importlib.import_module("coverage")
    measured = coverage.Coverage(data_file=None, include=[str(file) for file in files], config_file=False)
    measured.start()
    recorder = _Recorder(coverage=measured)
    pytest.main([*pytest_flags(folder), *tests], plugins=[recorder])
    measured.stop()
    lines: dict[str, dict[int, list[str]]] = {}
    on_import: dict[str, list[int]] = {}
    for file in files:
        by_line = measured.get_data().contexts_by_lineno(str(file))
        name = str(file.relative_to(ROOT))
        lines[name] = {line: sorted(set(names) - {""}) for line, names in by_line.items()}
        on_import[name] = sorted(line for line, names in by_line.items() if "" in names)
    return {"seconds": recorder.seconds, "failed": recorder.failed, "lines": lines, "on_import": on_import}


def pytest_flags(folder: Path) -> list[str]:
    """One process, the first failure ends it, and no folder is left: `folder` holds those of tests."""
    return ["-q", "-x", "-n", "0", "-p", "no:cacheprovider", "-p", "no:randomly", f"--basetemp={folder}"]


@dataclass(kw_only=True, eq=False)
class FunctionTrials:
    """A pytest plug-in that, instead of running the collected tests once, runs them for every mutant in a copy.

    `order` gives the names of the tests of a mutant, `say` takes what became of it.
    """

    mutants: Sequence[Mutant]
    baseline: Baseline
    order: Callable[[Mutant], Sequence[str]]
    say: Callable[[Mutant, str, str], None]

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Every mutant, one after another."""
        items = {item.nodeid: item for item in session.items}
        gc.unfreeze()
        # By its type: to ask some objects of other libraries for their class warns.
        functions = [value for value in gc.get_objects() if type(value) is types.FunctionType]
        gc.freeze()
        for mutant in self.mutants:
            tests = self.order(mutant)

            def attempt(mutant: Mutant = mutant, tests: Sequence[str] = tests) -> object:
                if not _swap(mutant, functions):
                    return [NOT_SWAPPED, ""]
                return _run(session, [items[name] for name in tests], self.baseline.seconds)

            status, answer = in_a_copy(attempt)
            self.say(mutant, *_verdict(status, answer))
        return True


def import_trial(
    mutant: Mutant, tests: Sequence[str], folder: Path, baseline: Baseline, *, quiet: bool = True
) -> tuple[str, str]:
    """Try a mutant whose file is imported changed: what became of it, and the test that noticed."""

    def attempt() -> object:
        signal.alarm(MOST_SECONDS)
        sys.meta_path.insert(0, _Changed(mutant))
        plugin = FirstFailure(baseline, tests)
        files = dict.fromkeys(name.partition("::")[0] for name in tests)
        status = pytest.main([*pytest_flags(folder), *files], plugins=[plugin])
        return ["survived", ""] if status == pytest.ExitCode.OK else ["killed", plugin.name or "while importing"]

    return _verdict(*in_a_copy(attempt, quiet=quiet))


def _verdict(status: int, answer: Any) -> tuple[str, str]:
    if status == -signal.SIGPROF or status == -signal.SIGALRM:
        return "timed out", ""
    if status != 0:
        return "killed", f"the process ended with status {status}"
    outcome, test = answer
    return outcome, test


@dataclass(eq=False)
class FirstFailure:
    """A pytest plug-in that runs tests in the order of their names, bounds each, and notes the first that fails."""

    baseline: Baseline
    order: Sequence[str]
    name: str = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """These tests alone, in this order."""
        places = {name: place for place, name in enumerate(self.order)}
        items[:] = sorted((item for item in items if item.nodeid in places), key=lambda item: places[item.nodeid])

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Its processor time is bounded from here on."""
        _bound(self.baseline.seconds.get(item.nodeid, 1.0))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The first test to fail is the one that noticed."""
        if report.failed and not self.name:
            self.name = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Or the first file that cannot even be collected."""
        if report.failed and not self.name:
            self.name = report.nodeid


def _bound(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, 5 * seconds + SPARE_SECONDS)


def _run(session: pytest.Session, items: list[pytest.Item], seconds: Mapping[str, float]) -> object:
    signal.alarm(MOST_SECONDS)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, hard))
    recorder = _Recorder()
    session.config.pluginmanager.register(recorder)
    for index, item in enumerate(items):
        _bound(seconds[item.nodeid])
        following = items[index + 1] if index + 1 < len(items) else None
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if recorder.failed:
            return ["killed", recorder.failed[0]]
    return ["survived", ""]


def _swap(mutant: Mutant, functions: Sequence[types.FunctionType]) -> bool:
    """Give every live function of the changed code its new code; False where there is none, or it closes otherwise."""
    path = str(ROOT / mutant.file)
    old, new = (compile(source, path, "exec", dont_inherit=True) for source in (Path(path).read_text(), mutant.source))
    changed = dict(_changed_pairs(old, new))
    swapped = False
    for function in functions:
        code = function.__code__
        key = (code.co_qualname, code.co_firstlineno)
        if code.co_filename == path and key in changed:
            try:
                function.__code__ = changed[key]
            except ValueError:  # it closes over other names than before
                return False
            swapped = True
    return swapped


def _changed_pairs(old: types.CodeType, new: types.CodeType) -> Iterator[tuple[tuple[str, int], types.CodeType]]:
    """The new code of what was changed, by the name and line that it had."""
    before, after = (
        [constant for constant in code.co_consts if isinstance(constant, types.CodeType)] for code in (old, new)
    )
    for ours, theirs in zip(before, after, strict=False):
        if ours != theirs:
            yield (ours.co_qualname, ours.co_firstlineno), theirs
            yield from _changed_pairs(ours, theirs)


@dataclass(frozen=True)
class _Changed(importlib.abc.MetaPathFinder):
    """Finds one module of ours and gives its changed source."""

    mutant: Mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The changed module by its name; nothing of others."""
        name = self.mutant.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        if fullname != name:
            return None
        place = str(ROOT / self.mutant.file)
        return importlib.util.spec_from_file_location(
            fullname, place, loader=_Source(fullname, place, self.mutant.source)
        )


class _Source(importlib.machinery.SourceFileLoader):
    """Loads a source that is not the file's, and stores no compiled one."""

    def __init__(self, fullname: str, path: str, source: str) -> None:
        super().__init__(fullname, path)
        self._source = source

    def get_code(self, fullname: str) -> types.CodeType:
        """Compiled anew from the changed source."""
        return compile(self._source, self.path, "exec", dont_inherit=True)
