"""Code of the user's that ends the process: said, with the status of a mistake, whatever status it asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.tools.user_code import leaving_is_a_mistake

_LEAVING = """
import os
import sys
from pipeline.tools.user_code import leaving_is_a_mistake
with leaving_is_a_mistake():
    child = os.fork()
    if child == 0:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    os._exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("status", [0, 1])
def test_a_process_that_is_left_has_failed(status: int) -> None:
    home = Path(__file__).parents[3]
    left = subprocess.run([sys.executable, "-c", _LEAVING, str(status)], cwd=home, capture_output=True, text=True)
    assert (left.returncode, left.stdout) == (2, "")
    assert left.stderr == (
        f"error: os._exit({status}) was called, which ends the program (<string>, line 10): let it raise an exception,"
        " or return\n"
    )


def test_leaving_is_python_s_own_again_afterwards() -> None:
    before = os._exit
    with leaving_is_a_mistake():
        assert os._exit is not before
    assert os._exit is before
