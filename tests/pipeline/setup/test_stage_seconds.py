"""Seconds of stages: over interruptions, killed runs included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calibration.errors import UserError
from pipeline.setup.stage_seconds import StageSeconds
from pipeline.tools.progress import LineProgress


class Clock:
    """A clock that stands still until it is told to go on."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def begun(file: Path, *, resumed: bool = False) -> tuple[StageSeconds, Clock, list[str]]:
    clock, lines = Clock(), list[str]()
    times = StageSeconds(LineProgress(lines.append, clock=clock), clock=clock)
    with times.stage("teacher"):
        clock.now += 2
        times.keep_in(file, resumed=resumed)
    return times, clock, lines


def test_a_resumed_run_adds_to_what_was_interrupted(tmp_path: Path) -> None:
    file = tmp_path / "seconds.json"
    times, clock, lines = begun(file)
    with pytest.raises(KeyboardInterrupt), times.stage("distil"):
        clock.now += 30
        raise KeyboardInterrupt
    assert json.loads(file.read_text()) == times.seconds() == {"teacher": 2.0, "distil": 30.0}
    assert lines == ["teacher       2.0 s"]

    resumed, clock, _ = begun(file, resumed=True)
    with resumed.stage("distil"):
        clock.now += 5
        resumed.say("a line")
    with resumed.stage("convert"):
        clock.now += 1
    assert json.loads(file.read_text()) == resumed.seconds() == {"teacher": 4.0, "distil": 35.0, "convert": 1.0}

    anew, _, _ = begun(file)
    assert json.loads(file.read_text()) == anew.seconds() == {"teacher": 2.0}


def test_a_killed_run_forgets_no_more_than_some_seconds(tmp_path: Path) -> None:
    file = tmp_path / "seconds.json"
    times, clock, lines = begun(file)
    with times.stage("distil"):
        for done in range(1, 5):
            clock.now += 9
            times.step(done, 5, loss=0.5)
        assert json.loads(file.read_text()) == {"teacher": 2.0, "distil": 27.0}
        assert times.seconds()["distil"] == 36
    assert lines[1:] == ["distil 2/5  loss 0.5", "distil 4/5  loss 0.5", "distil       36.0 s  loss 0.5"]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"teacher": "x"}', "\xff", '{"teacher": NaN}', '{"teacher": -1}', "[" * 9999]
)
def test_a_damaged_file_counts_no_times_and_is_told(content: str, tmp_path: Path) -> None:
    file = tmp_path / "seconds.json"
    file.write_text(content, encoding="latin-1")
    times, _, lines = begun(file, resumed=True)
    assert times.seconds() == {"teacher": 2.0}
    assert any(line.startswith(f"times of the interrupted run are not counted: {file}") for line in lines)


def test_what_ended_a_stage_is_told_and_not_that_its_seconds_cannot_be_kept(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    times, _, _ = begun(folder / "seconds.json")
    (folder / "seconds.json").unlink()
    folder.rmdir()
    folder.write_text("a file in the place of the folder")
    with pytest.raises(ZeroDivisionError), times.stage("observe"):
        raise ZeroDivisionError
    with pytest.raises(UserError), times.stage("observe"):
        pass
