"""Strategies as users type them: what each does, where it stops, and that an interrupted one ends with its bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import pipeline.run
from pipeline.report.course import Course
from pipeline.report.schema import read_report
from pipeline.validation.validate import validate_network
from tests.command_line import TINY, command

AUTO = (*TINY[:-2], "--strategy", "auto", "--bits", "2", "--first-bits", "2", "--last-bits", "2", "--steps", "2")
FILES = ("bundle/model.onnx", "bundle/golden.npz", "float.onnx")


def course_in(folder: Path) -> Course:
    course = read_report(folder / "report.json").strategy
    assert course is not None
    return course


def test_it_stops_at_the_first_step_that_suffices(tiny_desk: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = command(*AUTO, "--max-drop", "100", "--output", str(folder), cwd=tiny_desk)
    assert done.status == 0, done.err
    assert [(step.name, step.reached) for step in course_in(folder).steps] == [("calibrated", True)]
    assert "calibrated is the cheapest that reaches it" in " ".join(done.out.split())
    assert (
        "the first is taken that loses at most 100 points (--max-drop) of agreement with the float teacher" in done.err
    )
    assert "Strategy" in (folder / "report.html").read_text(encoding="utf-8")
    assert {path.name for path in (folder / "state").iterdir()} == {
        *("settings.json", "seconds.json", "prepared.json", "measured.json")
    }


def test_it_goes_all_the_way_and_an_interrupted_one_ends_with_the_same_bytes(
    tiny_desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bits and two steps lose too much of a network with random weights."""
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    done = command(*AUTO, "--max-drop", "0.5", "--output", str(whole), cwd=tiny_desk)
    assert done.status in (1, 4), done.err
    course = course_in(whole)
    assert [step.name for step in course.steps] == ["calibrated", "corrected", "reconstructed", "distilled"]
    assert not any(step.suffices for step in course.steps)
    assert course.result.over == min(step.over or 0 for step in course.steps)
    assert all(step.gained is not None for step in course.steps[1:]) and course.steps[0].gained is None
    assert [step.seconds is None for step in course.steps] == [False, True, False, False]

    def stop(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    killed = (*AUTO, "--max-drop", "0.5", "--output", str(folder))
    for at, measured in (("reconstruct", 2), ("distil", 3)):
        with monkeypatch.context() as patch:
            patch.setattr(pipeline.run, at, stop)
            resume = ("--resume",) if measured > 2 else ()
            assert command(*killed, *resume, cwd=tiny_desk).status == 130
    asked = list[str]()

    def counted(*arguments: Any, **named: Any) -> Any:
        asked.append("judged")
        return validate_network(*arguments, **named)

    monkeypatch.setattr(pipeline.run, "validate_network", counted)
    done = command(*killed, "--resume", cwd=tiny_desk)
    assert done.status in (1, 4), done.err
    assert len(asked) == (1 if course.chosen == "distilled" else 2), "only what was not measured, and the result"
    assert [step.lost for step in course_in(folder).steps] == [step.lost for step in course.steps]
    assert course_in(folder).chosen == course.chosen
    assert all((folder / name).read_bytes() == (whole / name).read_bytes() for name in FILES)


def test_named_ones_do_what_their_settings_say(tiny_desk: Path, tmp_path: Path) -> None:
    bits = (*(word for word in TINY if word not in ("--batch-size", "8", "--affinity", "none")), "--bits", "4")
    same = {
        ("--strategy", "calibrate"): ("--steps", "0", "--rounding", "nearest"),
        ("--strategy", "reconstruct"): ("--steps", "0"),
    }
    for number, (named, settings) in enumerate(same.items()):
        folders = [tmp_path / f"{number}{kind}" for kind in ("named", "typed")]
        for flags, folder in zip((named, settings), folders, strict=True):
            assert command(*bits, *flags, "--output", str(folder), cwd=tiny_desk).status == 0
        first, second = ((folder / "bundle" / "model.onnx").read_bytes() for folder in folders)
        assert first == second
        assert read_report(folders[0] / "report.json").strategy is None
    # What was reconstructed is what another strategy begins to train with.
    reconstructed, trained = tmp_path / "1named", (*bits, "--steps", "2", "--strategy", "distil")
    refusal = command(*trained, "--output", str(reconstructed), "--resume", cwd=tiny_desk).refusal
    assert "--strategy was reconstruct and is distil now" in refusal and "--restart-training" in refusal
    resumed = command(*trained, "--output", str(reconstructed), "--resume", "--restart-training", cwd=tiny_desk)
    assert resumed.status == 0, resumed.err
    assert command(*trained, "--output", str(tmp_path / "anew"), cwd=tiny_desk).status == 0
    assert all((tmp_path / "anew" / name).read_bytes() == (reconstructed / name).read_bytes() for name in FILES)
