"""A lack of memory is one line that does not blame the network, wherever it shows; what is finished stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from calibration.capture.graph_from_module import capture
from calibration.errors import is_out_of_memory
from tests.command_line import command

pytestmark = pytest.mark.usefixtures("all_digits_narrow")

TINY = ("run", "--quiet", "--steps", "2", "--calibration-images", "16", "--batch-size", "8", "--max-drop", "100")
WORDS = (
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 93126656 bytes. Error code 12"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("std::bad_alloc"),
    OSError(12, "Cannot allocate memory"),
)


@pytest.mark.parametrize("error", WORDS, ids=lambda error: type(error).__name__)
def test_it_is_known_by_type_and_by_words_and_as_a_cause(error: BaseException) -> None:
    assert is_out_of_memory(error)
    try:
        raise ValueError("what came of it") from error
    except ValueError as outer:
        assert is_out_of_memory(outer)


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), OSError(2, "No such file"), KeyError()])
def test_nothing_else_is_taken_for_it(error: BaseException) -> None:
    assert not is_out_of_memory(error)


def lacking(*_: Any, **__: Any) -> Any:
    raise WORDS[1]


def test_it_is_no_fault_of_the_network_that_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.capture.graph_from_module.export", lacking)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        capture(nn.Conv2d(1, 2, 3), torch.zeros(2, 1, 4, 4), source="mine")


@pytest.mark.parametrize(
    ("place", "kept"),
    [
        ("pipeline.run._read", False),
        ("pipeline.distillation.training.learner.Learner.update", True),
        ("pipeline.run.validate_network", True),
    ],
)
def test_it_is_one_line_with_the_way_on(
    place: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(place, lacking)
        refusal = command(*TINY, "--output", str(tmp_path / "run")).refusal
    assert refusal.startswith("error: out of memory, asked for 93126656 bytes more: lower --batch-size or --workers")
    assert ("then add --resume: what is finished is kept" in refusal) == kept
    if place.endswith("validate_network"):
        assert command(*TINY, "--output", str(tmp_path / "run"), "--resume").status == 0
