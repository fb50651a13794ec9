"""Standard streams that are closed, full or read by nobody, of real processes."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.tools.streams import messages_may_fail

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no such device")

#: What prints results, and what prints a line of a mistake; neither needs torch.
RESULT, MISTAKE = "recipes", "run --bits 99"


def status_of(repository: Path, command: str, redirected: str) -> tuple[int, str]:
    """Exit status of the command line under a shell's redirections, and what reached the other streams."""
    line = f"{sys.executable} -m pipeline {command} {redirected}"
    if "|" in redirected:
        line += "; exit ${PIPESTATUS[0]}"
    done = subprocess.run(
        ["bash", "-c", line],
        env=os.environ | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "redirected", "status"),
    [
        (RESULT, "| true", 141),
        (RESULT, ">&-", 0),
        (RESULT, "<&- >&- 2>&-", 0),
        (RESULT, "2>/dev/full", 0),
        (MISTAKE, "2>/dev/full", 2),
        (MISTAKE, "2>&-", 2),
    ],
)
def test_a_stream_that_takes_nothing_is_no_failed_gate(
    command: str, redirected: str, status: int, repository: Path
) -> None:
    ended, said = status_of(repository, command, redirected)
    assert ended == status, said
    assert "Traceback" not in said and "Exception ignored" not in said


def test_results_that_find_no_room_are_told(repository: Path) -> None:
    status, said = status_of(repository, RESULT, ">/dev/full")
    assert (status, said) == (2, f"error: cannot write the output: {os.strerror(errno.ENOSPC)}: make room there\n")


def test_work_goes_on_when_messages_find_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "full")

        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(sys, "stderr", full := Full())
    with messages_may_fail():
        assert sys.stderr.write("a word") == 6
        sys.stderr.flush()
        assert sys.stderr.encoding == full.encoding
    assert sys.stderr is full
