"""Real processes, killed at random moments: each ends, after one --resume, with the bytes of a run that was not.

python3 -m pytest -m benchmark tests/benchmarks/test_random_kills.py -s

FAQD_KILLS: how many (50 by default). Every third process begins a run, every third replaces a finished one by one of
another seed, every third goes on with one that was killed before. Each says how it ended as soon as it has.

FAQD_KILLS_SECONDS: no further one begins after these, 3,600 by default; what was done by then is published with its
number. The same command with the same FAQD_BENCHMARK_OUTPUT goes on there: each kill is drawn by its own number.
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
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Columns, Results, Row

pytestmark = pytest.mark.benchmark

COUNT = int(os.environ.get("FAQD_KILLS", "50"))
SECONDS = float(os.environ.get("FAQD_KILLS_SECONDS", "3600"))
# A run of these is mostly import, capture and validation; its steps, a tenth of it, hold several checkpoints.
RUN = ("run", "--steps", "12", "--calibration-images", "16", "--batch-size", "8", "--max-drop", "100")
KINDS = ("begins", "replaces", "goes on")
COLUMNS: Columns = {
    "the process": lambda row: row["key"]["kind"],
    "killed": lambda row: "yes" if row["killed"] else "it had ended",
    "then": lambda row: row["outcome"],
    "times": lambda row: row["times"],
}
_PATIENCE = 240.0  # seconds; where a run takes long, twenty times as long as it
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


def ended(repository: Path, *arguments: str, timeout: float) -> tuple[int, str]:
    """Exit status and all that a command printed; one that takes longer than `timeout` seconds hangs, and is ended."""
    running = process(repository, *arguments)
    try:
        said, _ = running.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        said, _ = running.communicate()
        pytest.fail(f"{' '.join(arguments)} took more than {timeout:.0f} s; it had printed:\n{said}")
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
def whole(repository: Path, tmp_path: Path) -> tuple[Path, Path, float]:
    """Runs of two seeds that nothing interrupted, and the seconds that one takes."""
    folders = [tmp_path / f"seed{seed}" for seed in range(2)]
    seconds = 0.0
    for seed, folder in enumerate(folders):
        begun = time.monotonic()
        status, said = ended(repository, *RUN, "--seed", str(seed), "--output", str(folder), timeout=_PATIENCE)
        assert status == 0, said
        seconds = time.monotonic() - begun
    return folders[0], folders[1], seconds


def test_random_kills(whole: tuple[Path, Path, float], repository: Path, tmp_path: Path, results: Results) -> None:
    first, second, seconds = whole
    begun, patience = time.monotonic(), max(_PATIENCE, 20 * seconds)
    for number in range(COUNT):
        key = {"number": number, "kind": KINDS[number % 3]}
        if results.find(key) is not None:
            continue
        if time.monotonic() - begun > SECONDS:
            print(f"{number} of {COUNT} in {SECONDS:.0f} s; the same command with this folder goes on", flush=True)
            break
        hit, outcome = killed_and_gone_on(repository, tmp_path / "run", (first, second), key, seconds, patience)
        results.add(key, killed=hit, outcome=outcome)
        spent = time.monotonic() - begun
        print(f"{number + 1} of {COUNT}, {spent:.0f} s: {key['kind']}, killed {hit}, {outcome}", flush=True)
    rows = results.newest()
    assert rows
    results.publish(f"{len(rows)} processes killed at random moments", COLUMNS, counted(rows))


def killed_and_gone_on(
    repository: Path, folder: Path, whole: tuple[Path, Path], key: Row, seconds: float, patience: float
) -> tuple[bool, str]:
    """Whether one process was killed before its end, and what the next one found; its results are the right ones."""
    first, second = whole
    draw, flags = random.Random(key["number"]), ("--seed", "1", "--output", str(folder))
    shutil.rmtree(folder, ignore_errors=True)
    replaces = key["kind"] == "replaces"
    if replaces:
        shutil.copytree(first, folder)
    hit = killed(repository, draw.uniform(0.3, seconds), *RUN, *flags, *(["--overwrite"] if replaces else []))
    if key["kind"] == "goes on":
        hit = killed(repository, draw.uniform(0.3, seconds), *RUN, *flags, "--resume")
    status, said = ended(repository, *RUN, *flags, "--resume", timeout=patience)
    line = said.strip().splitlines()[-1]
    if status == 2 and "holds no run to go on with" in line:
        outcome = "nothing had begun"
        status, said = ended(repository, *RUN, *flags, timeout=patience)
    elif status == 2 and "--seed was 0 and is 1 now" in line and "is finished" in line:
        outcome = "the first run is still there"
        assert same(folder, first)
        status, said = ended(repository, *RUN, *flags, "--overwrite", timeout=patience)
    else:
        outcome = "went on"
    assert status == 0 and "Traceback" not in said, said
    assert same(folder, second)
    return hit, outcome


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
