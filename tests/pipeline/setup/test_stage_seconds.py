"""Seconds of stages: over interruptions, killed runs included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from calibration.errors import UserError
from pipeline.setup.stage_seconds import StageSeconds
from pipeline.tools.kept import Kept
from pipeline.tools.progress import LineProgress
from tests.vouched import seal


def kept_in(file: Path) -> dict[str, float]:
    return Kept(file).load_tree()


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
    assert kept_in(file) == times.seconds() == {"teacher": 2.0, "distil": 30.0}
    assert lines == ["teacher       2.0 s"]

    resumed, clock, _ = begun(file, resumed=True)
    with resumed.stage("distil"):
        clock.now += 5
        resumed.say("a line")
    with resumed.stage("convert"):
        clock.now += 1
    assert kept_in(file) == resumed.seconds() == {"teacher": 4.0, "distil": 35.0, "convert": 1.0}

    anew, _, _ = begun(file)
    assert kept_in(file) == anew.seconds() == {"teacher": 2.0}


def test_a_killed_run_forgets_no_more_than_some_seconds(tmp_path: Path) -> None:
    file = tmp_path / "seconds.json"
    times, clock, lines = begun(file)
    with times.stage("distil"):
        for done in range(1, 5):
            clock.now += 9
            times.step(done, 5, loss=0.5)
        assert kept_in(file) == {"teacher": 2.0, "distil": 27.0}
        assert times.seconds()["distil"] == 36
    assert lines[1:] == ["distil 2/5  loss 0.5", "distil 4/5  loss 0.5", "distil       36.0 s  loss 0.5"]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"teacher": "x"}', "\xff", '{"teacher": NaN}', "[" * 9999, {"teacher": "x"}, {"teacher": -1}]
)
def test_a_damaged_file_counts_no_times_and_is_told(content: str | dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "seconds.json"
    if isinstance(content, str):
        file.write_text(content, encoding="latin-1")
    else:
        seal(file, content)  # its hash fits
    times, _, lines = begun(file, resumed=True)
    assert times.seconds() == {"teacher": 2.0}
    assert any(line.startswith(f"times of the interrupted run are not counted: {file}") for line in lines)
    assert kept_in(file) == {"teacher": 2.0}


def test_no_byte_of_it_may_change(tmp_path: Path) -> None:
    file, other = tmp_path / "seconds.json", tmp_path / "other.json"
    begun(file)
    content = file.read_bytes()
    for place in range(len(content)):
        other.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        times, _, lines = begun(other, resumed=True)
        assert times.seconds() == {"teacher": 2.0} and lines[0].startswith("times of the interrupted run are not")
    other.write_text(json.dumps({"teacher": 5.0}))  # as versions before wrote it, which no later one goes on with
    assert begun(other, resumed=True)[0].seconds() == {"teacher": 2.0}
    other.write_bytes(content)
    assert begun(other, resumed=True)[0].seconds() == {"teacher": 4.0}


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
