"""What all tests share: threads, the folder of shared material, the repository's root."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # some tests are about interpreters without torch
    from torch import nn

    from pipeline.images.preprocessing import Preprocessing

# Before torch or numpy are imported: one thread makes sums repeatable and shares a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, for tests that ask for more threads

ROOT = Path(__file__).resolve().parent.parent

# A worker holds torch and a runtime: more of them than this need memory rather than processors.
_MOST_WORKERS = 8


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Test processes: one per core, none beside a benchmark, whose times would not be its own, nor without capture."""
    if "not benchmark" not in config.option.markexpr or config.option.capture == "no":
        return 0
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, _MOST_WORKERS)


#: Files with a test of ten seconds or more: begun first, so that no worker is left alone with one at the end.
_LONGEST = ("test_readme.py", "test_recipes.py", "test_random_expressions.py", "test_embedded.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Take modules and tests out of the collector's rounds: they stay, and to walk them is a tenth of all the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    # pytest joins each logger that does not propagate, of which torch has sixty, three times in every test.
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.propagate = True
    if "torch" in sys.modules and "not benchmark" in session.config.option.markexpr:
        _export_small_networks_quickly()


def _export_small_networks_quickly() -> None:
    """Spare torch.export, run thousands of times here, what pays for large networks alone.

    Where sizes are free, its memory of what operators give is of one export, and few layers of a small network are
    alike. And what it asks sympy of the batch size is the same for nearly every network.
    """
    import sympy.solvers.inequalities
    import torch._dynamo.config

    torch._dynamo.config.fake_tensor_cache_enabled = False
    solved: dict[object, object] = {}
    solve = sympy.solvers.inequalities.reduce_inequalities

    def solved_once(inequalities: set[Any], *symbols: Any) -> object:
        key = (frozenset(inequalities), symbols)
        if key not in solved:
            solved[key] = solve(inequalities, *symbols)
        return solved[key]

    sympy.solvers.inequalities.reduce_inequalities = solved_once


@pytest.fixture(autouse=True)
def untouched_logging() -> None:
    """Every test finds logging as Python makes it, whatever a command line before it has set.

    And nobody listens to torch's structured trace, a logger that does not propagate: pytest would, and torch then
    describes every node of every graph for it.
    """
    if logging.getLogger().level != logging.WARNING:  # setting it empties what every logger remembers
        logging.getLogger().setLevel(logging.WARNING)
    logging.captureWarnings(False)
    trace = logging.getLogger("torch.__trace")
    trace.propagate = True
    trace.handlers.clear()


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Nobody pulls the plug on a test: a run asks the disk a hundred times to have written what it was given.

    `tests/pipeline/tools/test_atomic.py` is about what is asked.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def little_time_for_latency() -> Iterator[None]:
    """Latency takes a twentieth of a second of every run, or ten rounds, instead of up to five: as many figures."""
    from backends.timing import interleaved_latency  # here: some tests are about interpreters without torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.validation.score.interleaved_latency", partial(interleaved_latency, seconds=0.05))
        yield


@pytest.fixture(scope="session")
def digits_captured_once() -> Iterator[None]:
    """The embedded network is exported for the first run of a process alone, and copied for those after it.

    So is the network of `tiny_desk`, whose code is one and the same.
    """
    import copy  # here, with what needs torch: some tests are about interpreters without it

    from pipeline.networks.checked_capture import checked_capture
    from pipeline.stages import teacher

    kept: dict[object, Any] = {}

    def once(module: nn.Module, preprocessing: Preprocessing, *, source: str, **settings: Any) -> Any:
        if not source.startswith(("digits", "python:tiny_network:")):
            return checked_capture(module, preprocessing, source=source, **settings)
        weights = tuple((name, value.numpy().tobytes()) for name, value in module.state_dict().items())
        key = (source, preprocessing, weights, *sorted(settings.items()))
        if key not in kept:
            kept[key] = checked_capture(module, preprocessing, source=source, **settings)
        return copy.deepcopy(kept[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teacher, "checked_capture", once)
        yield


@pytest.fixture(scope="session")
def narrow_weights() -> bytes:
    """Weights of the embedded network at a quarter of its width."""
    from tests.narrow_digits import taught_narrow  # here: some tests are about interpreters without torch

    return taught_narrow()


@pytest.fixture
def narrow_digits(narrow_weights: bytes) -> Iterator[None]:
    """`digits` is a network of a quarter of its width, for a test whose point its width is not."""
    from tests.narrow_digits import narrow_digits

    with narrow_digits(narrow_weights):
        yield


@pytest.fixture(scope="module")
def all_digits_narrow(narrow_weights: bytes) -> Iterator[None]:
    """The same for a module and its fixtures, which asks for it with `pytestmark`."""
    from tests.narrow_digits import narrow_digits

    with narrow_digits(narrow_weights):
        yield


@pytest.fixture(scope="session")
def flags_assembled_once() -> Iterator[None]:
    """The tree of a command's flags is made for the first command line of a process alone, and copied for the others.

    A user's process has one command line; hundreds of them here would spend a tenth of a short run each on it.
    """
    import copy

    from cyclopts import App, ArgumentCollection

    collected: Any = ArgumentCollection  # its constructor is untyped
    assemble = App.assemble_argument_collection
    kept: dict[object, ArgumentCollection] = {}

    def once(self: App, **settings: Any) -> ArgumentCollection:
        key = (self.default_command, *sorted(settings.items()))
        if key not in kept:
            kept[key] = assemble(self, **settings)
        copies = {id(argument): copy.copy(argument) for argument in kept[key]}
        for argument in copies.values():
            argument.tokens = list(argument.tokens)
            argument.children = collected(copies[id(child)] for child in argument.children)
        tree: ArgumentCollection = collected(copies.values())
        return tree

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(App, "assemble_argument_collection", once)
        yield


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Folder of the shared data and models: $FAQD_SHARED, else `shared` beside the repository."""
    folder = Path(os.environ.get("FAQD_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"shared material is absent: {folder} is no folder; set FAQD_SHARED to it")
    return folder
