"""What the command line says to a mistake."""

from __future__ import annotations

import pytest

from pipeline.cli import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a user's mistake gets."""
    capsys.readouterr()
    assert main([*arguments, "--quiet"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]
