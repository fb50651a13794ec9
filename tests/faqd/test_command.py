"""Ctrl-C before anything has begun: one line and status 130, whichever library is just being imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

_INTERRUPTED_AT = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from {command} import main
raise SystemExit(main(["run", "--output", "out"]))
"""


@pytest.mark.parametrize(
    ("command", "module", "line"),
    [
        ("faqd.command", "rich", "interrupted"),
        ("faqd.command", "numpy._core.multiarray", "start again with faqd run --output out"),
        ("pipeline.__main__", "torch._tensor", "start again with faqd run --output out"),
    ],
)
def test_in_the_middle_of_an_import_it_is_one_line(command: str, module: str, line: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED_AT.format(command=command, module=module)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        # Tests that a shell runs in the background have inherited an ignored SIGINT, and would hand it on.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert done.returncode == 130
    assert done.stderr.startswith("interrupted") and done.stderr.endswith(f"{line}\n") and done.stderr.count("\n") == 1
    assert not done.stdout and not list(tmp_path.iterdir())


def test_a_caller_keeps_its_own_way() -> None:
    from faqd.command import main

    def mine(*_: object) -> None:
        raise AssertionError("no signal is sent")

    before = signal.signal(signal.SIGINT, mine)
    try:
        assert main(["recipes"]) == 0
        assert signal.getsignal(signal.SIGINT) is mine
        signal.signal(signal.SIGINT, signal.default_int_handler)
        assert main(["recipes"]) == 0
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
