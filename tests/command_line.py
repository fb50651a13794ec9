"""The command line in the tests' own process: where it runs, what it prints, how it ends.

A process of its own costs seconds for torch alone, so only what is about processes starts one: signals, an interpreter
without torch, the command as it is installed.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from pipeline.cli import main

#: What makes a run short.
SHORT = ("--steps", "12", "--calibration-images", "128")
#: The same of the embedded digits, whose usual batches and held-out images would take half of it.
QUICK = (*SHORT, "--batch-size", "16", "--held-out-images", "64")
#: A run of the network and the images of `tiny_desk` (tests/pipeline/runs/conftest.py), where neither is the point.
TINY = (
    *("run", "--teacher", "python:tiny_network:build", "--data", "npz:images.npz", "--image-size", "28"),
    *("--mean", "0", "--std", "1", "--affinity", "none", "--calibration-images", "16"),
    *("--batch-size", "8", "--held-out-images", "16", "--max-drop", "100"),
)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended: its exit status and what it printed, 100 columns wide."""

    status: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The one line that a user's mistake gets."""
        assert self.status == 2, self.err
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        return lines[0]


def command(*arguments: str, cwd: Path | None = None) -> Ended:
    """Run `python -m pipeline` with arguments, in a folder if one is named; its modules are forgotten afterwards."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.dict(os.environ, COLUMNS="100"),
        contextlib.nullcontext() if cwd is None else _in_folder(cwd),
    ):
        status = main(arguments)
    return Ended(status=status, out=out.getvalue(), err=err.getvalue())


@contextlib.contextmanager
def _in_folder(folder: Path) -> Iterator[None]:
    """Work in a folder; modules imported from it and its place on the path do not outlast the command."""
    path = list(sys.path)
    with contextlib.chdir(folder):
        try:
            yield
        finally:
            sys.path[:] = path
            for name, module in list(sys.modules.items()):
                if os.path.dirname(getattr(module, "__file__", None) or "/") == str(folder):  # of thousands
                    del sys.modules[name]
