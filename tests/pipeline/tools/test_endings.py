"""Code of the user's that ends or replaces the process: said, with the status of a mistake, whatever it asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import faqd
from calibration.errors import UserError
from pipeline.tools.endings import _LEAVES, leaving_is_a_mistake, leaving_raises

_LEAVING = """
import os
import signal
import sys
from pipeline.tools.endings import leaving_is_a_mistake
with leaving_is_a_mistake():
    child = os.fork()
    if child == 0:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    os.kill(os.getpid(), 0)
    eval(sys.argv[1])
"""
PLACE = "(<string>, line 1): "
CLEAN, BESIDE = "let it raise an exception, or return", "run it beside this one (subprocess.run), or before faqd begins"
REPLACES = "was called, which puts another program in the place of this one"
WAYS = {
    "os._exit(0)": f"os._exit(0) was called, which ends the program {PLACE}{CLEAN}",
    "os._exit(1)": f"os._exit(1) was called, which ends the program {PLACE}{CLEAN}",
    "os.abort()": f"os.abort() was called, which ends the program {PLACE}{CLEAN}",
    "os.kill(os.getpid(), signal.SIGKILL)": "which ends the program",
    "os.execv('/bin/true', ['true'])": f"os.execv('/bin/true') {REPLACES} {PLACE}{BESIDE}",
    "os.execl('/bin/true', 'true')": f"os.execv('/bin/true') {REPLACES} {PLACE}{BESIDE}",
    "os.execvp('true', ['true'])": REPLACES,
    "os.execlpe('true', 'true', {})": REPLACES,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_process_that_is_left_has_failed(way: str) -> None:
    home = Path(__file__).parents[3]
    left = subprocess.run([sys.executable, "-c", _LEAVING, way], cwd=home, capture_output=True, text=True)
    assert (left.returncode, left.stdout) == (2, "")
    assert left.stderr.startswith("error: os.") and left.stderr.count("\n") == 1 and WAYS[way] in left.stderr


@pytest.mark.parametrize("guard", [leaving_is_a_mistake, leaving_raises])
def test_leaving_is_python_s_own_again_afterwards(guard: Callable[[], AbstractContextManager[None]]) -> None:
    before = {name: getattr(os, name) for name in _LEAVES}
    with guard():
        assert not any(getattr(os, name) is function for name, function in before.items())
        kept = os.kill
    assert all(getattr(os, name) is function for name, function in before.items())
    heard = list[int]()
    handler = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        kept(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, handler)
    assert heard == [signal.SIGUSR1]


@pytest.mark.parametrize("way", [way for way in WAYS if "abort" not in way])
def test_in_another_s_program_it_is_an_exception(way: str) -> None:
    with leaving_raises(), pytest.raises(UserError, match=r"^os\.(_exit|kill|exec)"):
        eval(way, {"os": os, "signal": signal})


def test_other_threads_of_that_program_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    left = list[int]()
    monkeypatch.setitem(_LEAVES, "_exit", left.append)
    with leaving_raises():
        thread = threading.Thread(target=lambda: os._exit(3))
        thread.start()
        thread.join()
    assert left == [3]


@pytest.mark.parametrize("call", ["os._exit(0)", "os.execv('/bin/true', ['true'])", "os.kill(os.getpid(), 9)"])
def test_a_builder_that_leaves_ends_no_notebook(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "leaving.py").write_text(f"import os\n\n\ndef build():\n    {call}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "leaving", raising=False)
    with pytest.raises(faqd.UserError, match=rf"^os\..* was called, which .* \({tmp_path}/leaving.py, line 5\)"):
        faqd.load_network("python:leaving:build", image_size=8)
