"""How a check on the device ends: its report, its last line and its exit status, whatever the runtime."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import DeviceError
from .manifest import write_whole
from .stored import printable


def say(line: str) -> None:
    """Print a line; what files, outputs and classes are named is shown, never obeyed by the terminal."""
    print(printable(line), flush=True)


def ended(check: Callable[[], dict[str, Any]], report_file: Path | None) -> int:
    """Run a check whose report says "passed", write the report where a file is named, and return the exit status.

    0: every output is as it should be; 1: one is not; 2: a DeviceError, as one line; 130: interrupted.
    """
    try:
        report = check()
        # Before the report is written, which may fail.
        say(f"status             {'as it should be' if report['passed'] else 'FAILED'}")
        if report_file is not None:
            write_whole(report_file, (json.dumps(report, indent=1) + "\n").encode())
    except DeviceError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0 if report["passed"] else 1
