"""What must start quickly does not wait for torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_errors_are_importable_without_torch(repository: Path) -> None:
    code = "import calibration, calibration.errors, sys; print('torch' in sys.modules, 'numpy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
