"""Threads and processor decide the last bits of a result: a run keeps the former and says when the latter changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pipeline.stages.distill as stage
from pipeline.report.schema import read_report
from tests.command_line import command

pytestmark = pytest.mark.usefixtures("all_digits_narrow")

TINY = ("run", "--quiet", "--steps", "2", "--calibration-images", "16", "--batch-size", "8", "--max-drop", "100")


@pytest.fixture(autouse=True)
def threads_of_the_environment() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def interrupted(patched: pytest.MonkeyPatch, *arguments: str) -> list[int]:
    """Interrupt a run as it begins to train; how many threads would have."""
    seen = list[int]()

    def teach(*_: Any, **__: Any) -> Any:
        seen.append(torch.get_num_threads())
        raise KeyboardInterrupt

    patched.setattr(stage, "teach", teach)
    assert command(*TINY, *arguments).status == 130
    return seen


def test_a_run_goes_on_with_its_own_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = ("--output", str(tmp_path / "run"))
    torch.set_num_threads(2)
    for arguments, threads in (
        ((*place, "--training-threads", "3"), 3),
        ((*place, "--overwrite"), 2),
    ):
        with monkeypatch.context() as patched:
            assert interrupted(patched, *arguments) == [threads]
        assert torch.get_num_threads() == 2, "what the run took is the run's alone"
    torch.set_num_threads(1)
    with monkeypatch.context() as patched:
        assert interrupted(patched, *place, "--resume") == [2]
        assert interrupted(patched, *place, "--resume", "--training-threads", "2") == [2]
    assert "--training-threads was 2 and is 1 now, and the calibration in" in (
        command(*TINY, *place, "--resume", "--training-threads", "1").refusal
    )
    assert (
        "--training-threads 0: must be 1 or more"
        in command(*TINY, *place, "--overwrite", "--training-threads", "0").refusal
    )


def test_another_processor_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = ("--output", str(tmp_path / "run"))
    with monkeypatch.context() as patched:
        interrupted(patched, *place)
    monkeypatch.setattr("pipeline.setup.state.instruction_set", lambda: "AVX1024")
    assert command(*TINY, *place, "--resume").status == 0
    processors = json.loads((tmp_path / "run" / "state" / "settings.json").read_text())["processors"]
    assert processors == [torch.backends.cpu.get_cpu_capability(), "AVX1024"]
    report = read_report(tmp_path / "run" / "report.json")
    assert any(f"begun on {processors[0]} and went on on AVX1024" in note for note in report.notes)
    assert report.host["instruction_set"] == processors[0] and report.host["threads"] == torch.get_num_threads()
