"""`python -m pipeline`, the same as the console command `faqd`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pipeline.setup.machine.siblings import shadowed_sibling
from pipeline.tools.interruption import leave_at_once
from pipeline.tools.streams import open_closed_streams


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line on arguments (default: the process's own) and return the exit status."""
    open_closed_streams()
    if stranger := shadowed_sibling():
        print(f"faqd: {stranger}", file=sys.stderr)
        return 2
    leave_at_once("interrupted")
    # Only now: the command line imports `calibration`, which the check above has just vouched for.
    from pipeline.cli import main as command_line

    return command_line(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    raise SystemExit(main())
