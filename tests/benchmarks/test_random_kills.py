"""Real processes, killed at random moments: each ends, after one --resume, with the bytes of a run that was not.

python3 -m pytest -m benchmark tests/benchmarks/test_random_kills.py -s

FAQD_KILLS: how many (50 by default). Every third process begins a run, every third replaces a finished one by one of
another seed, every third goes on with one that was killed before.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Columns, Results, Row

pytestmark = pytest.mark.benchmark

COUNT = int(os.environ.get("FAQD_KILLS", "50"))
RUN = ("run", "--steps", "40", "--calibration-images", "16", "--batch-size", "8", "--max-drop", "100")
KINDS = ("begins", "replaces", "goes on")
COLUMNS: Columns = {
    "the process": lambda row: row["key"]["kind"],
    "killed": lambda row: "yes" if row["killed"] else "it had ended",
    "then": lambda row: row["outcome"],
    "times": lambda row: row["times"],
}
_SAME = ("bundle/model.onnx", "bundle/golden.npz", "float.onnx", "state/trained.safetensors")


def process(repository: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command line in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments],
        env=os.environ | {"PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(repository: Path, *arguments: str) -> tuple[int, str]:
    """Exit status and all that a command printed; it hangs where it takes more than four minutes."""
    running = process(repository, *arguments)
    said, _ = running.communicate(timeout=240)
    return running.returncode, said


def killed(repository: Path, after: float, *arguments: str) -> bool:
    """Kill a command after some seconds; whether it was still running."""
    running = process(repository, *arguments)
    try:
        running.communicate(timeout=after)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        return True


def same(folder: Path, other: Path) -> bool:
    """Whether two runs have the same results, and each report is its bundle's."""
    return all((folder / name).read_bytes() == (other / name).read_bytes() for name in _SAME) and all(
        (folder / name).read_bytes() == (folder / "bundle" / name).read_bytes()
        for name in ("report.json", "report.html")
    )


@pytest.fixture
def whole(repository: Path, tmp_path: Path) -> Iterator[tuple[Path, Path, float]]:
    """Runs of two seeds that nothing interrupted, and the seconds that one takes."""
    folders = [tmp_path / f"seed{seed}" for seed in range(2)]
    seconds = 0.0
    for seed, folder in enumerate(folders):
        begun = time.monotonic()
        status, said = ended(repository, *RUN, "--seed", str(seed), "--output", str(folder))
        assert status == 0, said
        seconds = time.monotonic() - begun
    yield folders[0], folders[1], seconds


def test_random_kills(whole: tuple[Path, Path, float], repository: Path, tmp_path: Path, results: Results) -> None:
    first, second, seconds = whole
    draw = random.Random(0)
    for number in range(COUNT):
        kind = KINDS[number % 3]
        folder, flags = tmp_path / "run", ("--seed", "1", "--output", str(tmp_path / "run"))
        if kind == "replaces":
            shutil.copytree(first, folder)
            hit = killed(repository, draw.uniform(0.3, seconds), *RUN, *flags, "--overwrite")
        else:
            hit = killed(repository, draw.uniform(0.3, seconds), *RUN, *flags)
        if kind == "goes on":
            hit = killed(repository, draw.uniform(0.3, seconds), *RUN, *flags, "--resume")
        status, said = ended(repository, *RUN, *flags, "--resume")
        line = said.strip().splitlines()[-1]
        if status == 2 and "holds no run to go on with" in line:
            outcome = "nothing had begun"
            status, said = ended(repository, *RUN, *flags)
        elif status == 2 and "--seed was 0 and is 1 now" in line and "is finished" in line:
            outcome = "the first run is still there"
            assert same(folder, first)
            status, said = ended(repository, *RUN, *flags, "--overwrite")
        else:
            outcome = "went on"
        assert status == 0 and "Traceback" not in said, said
        assert same(folder, second)
        results.add({"number": number, "kind": kind}, killed=hit, outcome=outcome)
        shutil.rmtree(folder)
    results.publish("Processes killed at random moments", COLUMNS, counted(results.newest()))


def counted(rows: list[Row]) -> list[Row]:
    """How often each kind of process had each outcome; those that had ended before they were killed are marked."""
    outcomes = Counter((row["key"]["kind"], row["outcome"], row["killed"]) for row in rows)
    return [
        {
            "key": {"kind": kind},
            "outcome": outcome,
            "killed": hit,
            "times": times,
            "circumstances": rows[-1]["circumstances"],
        }
        for (kind, outcome, hit), times in sorted(outcomes.items())
    ]
