"""One finished run for all tests that only read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import QUICK, command


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run of the embedded default at 8 bits, to be read and never written to."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    done = command("run", "--backend", "onnxruntime", "--bits", "8", *QUICK, "--output", str(folder))
    assert done.status == 0, done.err
    assert all(len(line) <= 100 for line in done.out.splitlines())
    return folder
