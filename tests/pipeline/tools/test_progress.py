"""What a waiting person sees."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipeline.tools.progress import LineProgress, SilentProgress, TerminalProgress, progress_on


def test_lines_are_sparse() -> None:
    lines: list[str] = []
    now = 0.0
    progress = LineProgress(lines.append, clock=lambda: now)
    with progress.stage("distil"):
        for step in range(1, 26):
            now += 1
            progress.step(step, 25, loss=1 / step, learning_rate=1e-4)
    progress.say("done [here]")
    assert lines == [
        "distil 10/25  loss 0.1  learning rate 0.0001",
        "distil 20/25  loss 0.05  learning rate 0.0001",
        "distil       25.0 s  loss 0.04  learning rate 0.0001",
        "done [here]",
    ]


def test_a_stage_that_fails_is_not_called_finished() -> None:
    lines: list[str] = []
    with pytest.raises(ZeroDivisionError), LineProgress(lines.append).stage("distil"):
        raise ZeroDivisionError
    assert lines == []


def test_a_terminal_gets_a_bar_and_keeps_a_line() -> None:
    file = io.StringIO()
    progress = progress_on(Console(file=file, force_terminal=True, width=100))
    assert isinstance(progress, TerminalProgress)
    with progress.stage("observe"):
        progress.step(3, 4, loss=0.25)
        progress.say("a line [above]")
    assert "3/4" in file.getvalue()
    assert "a line [above]" in file.getvalue()
    assert file.getvalue().rstrip().endswith("s  loss 0.25")


def test_each_console_gets_what_suits_it() -> None:
    assert isinstance(progress_on(Console(file=io.StringIO())), LineProgress)
    silent = progress_on(Console(file=io.StringIO(), force_terminal=True), quiet=True)
    assert isinstance(silent, SilentProgress)
    with silent.stage("observe"):
        silent.step(1, 2)
        silent.say("nothing")
