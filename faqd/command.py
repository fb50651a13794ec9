"""The console command `faqd`, which works beside any package that has the name of one of ours."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from faqd.own_packages import own


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on arguments (default: the process's own) and return the exit status."""
    with own():
        from pipeline.tools.interruption import leave_at_once
        from pipeline.tools.streams import open_closed_streams

        open_closed_streams()
        leave_at_once("interrupted")
        from pipeline.cli import main as command_line

        return command_line(sys.argv[1:] if arguments is None else arguments)
