"""Runs that were interrupted or killed, as real processes, go on and end with the same bytes.

The network is as small as may be: it is not the point, and a process of its own captures it anew.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.report.schema import read_report
from pipeline.tools.kept import Kept
from tests.command_line import TINY, command

STOPPED = """
import os, signal, sys
import pipeline.run, pipeline.distillation.training.learner as learner
from pipeline.cli import main

where, word, *arguments = sys.argv[1:]
# What a shell runs in the background has inherited an ignored SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)

kill = os.kill  # a command keeps its user's code from killing it

def stop(*arguments, **named):
    kill(os.getpid(), signal.Signals[word])

if where == "training":
    learner.CHECKPOINT_SECONDS = 0.0 if word == "SIGKILL" else 1e9
    update = learner.Learner.update
    learner.Learner.update = lambda self, *batch: stop() if self.step == 7 else update(self, *batch)
else:
    setattr(pipeline.run, where, stop)
sys.exit(main(arguments))
"""


RUN = (*TINY, "--backend", "onnxruntime", "--bits", "8", "--steps", "12")


@pytest.fixture(scope="module")
def whole(tiny_desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the same run that nobody stops."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert command(*RUN, "--output", str(folder), cwd=tiny_desk).status == 0
    return folder / "bundle"


def stopped(
    repository: Path, desk: Path, where: str, by: signal.Signals, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that gets a signal in its eighth training step, or in a function of a run."""
    line = [sys.executable, "-c", STOPPED, where, by.name, *arguments]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    return subprocess.run(line, env=environment, cwd=desk, capture_output=True, text=True, check=False, timeout=240)


def test_an_interrupted_run_says_how_to_go_on_and_ends_with_the_same_bytes(
    whole: Path, tiny_desk: Path, repository: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "interrupted"
    arguments = [*RUN, "--output", str(folder)]
    done = stopped(repository, tiny_desk, "training", signal.SIGINT, *arguments)

    assert done.returncode == 130
    assert "Traceback" not in done.stderr and "--resume" in done.stderr.splitlines()[-1]
    assert not (folder / "bundle").exists()
    assert (folder / "state" / "checkpoint.safetensors").exists()
    before = Kept(folder / "state" / "seconds.json").load_tree()
    assert list(before) == ["teacher", "observe", "reconstruct", "distil"] and before["distil"] > 0
    assert "interrupted run" in command(*arguments, cwd=tiny_desk).refusal
    assert command(*arguments, "--resume", cwd=tiny_desk).status == 0
    seconds = read_report(folder / "report.json").seconds
    assert list(seconds) == ["teacher", "observe", "reconstruct", "distil", "convert", "validate"]
    assert all(seconds[stage] >= round(before[stage], 3) for stage in before) and seconds["distil"] > before["distil"]
    assert (folder / "bundle" / "model.onnx").read_bytes() == (whole / "model.onnx").read_bytes()


def test_a_killed_run_ends_with_the_same_bytes(whole: Path, tiny_desk: Path, repository: Path, tmp_path: Path) -> None:
    """Killed within training, resumed, killed in validation, and resumed: nothing of it is done twice."""
    folder = tmp_path / "killed"
    arguments = [*RUN, "--output", str(folder), "--quiet"]
    for where, more, left in (
        ("training", [], {"prepared.json", "checkpoint.safetensors"}),
        ("validate_network", ["--resume"], {"prepared.json", "trained.safetensors", "float.onnx"}),
    ):
        done = stopped(repository, tiny_desk, where, signal.SIGKILL, *arguments, *more)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert {path.name for path in (folder / "state").iterdir()} == left | {"settings.json", "seconds.json"}
        assert not (folder / "bundle").exists() and not (folder / "report.json").exists()
    trained = (folder / "state" / "trained.safetensors").stat().st_mtime_ns
    assert command(*arguments, "--resume", cwd=tiny_desk).status == 0
    assert (folder / "state" / "trained.safetensors").stat().st_mtime_ns == trained
    again = command(*arguments, "--resume", cwd=tiny_desk)
    assert again.status == 0, "and what is finished is not begun again, which --quiet does not hide"
    said = again.out
    assert f"{folder / 'bundle'} is finished already" in said
    assert "the network's code was not read again" in said
    for name in ("model.onnx", "golden.npz"):
        assert (folder / "bundle" / name).read_bytes() == (whole / name).read_bytes()
