"""Run in the copy that has every recipe: one command uses all that is new."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli import main


def test_all_recipes_together_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--image-size 32 --logit-loss huber --affinity none --steps 2 --batch-size 8 --backend evaluator"
    status = main(
        ["run", "--teacher", "pocket:4", "--data", "gradients:40", "--output", str(tmp_path / "run"), *flags.split()]
    )
    shown = capsys.readouterr().out
    assert status == 4, shown  # four held-out images decide nothing
    assert "pocket:4 -> ONNX's evaluator W8A8" in shown
    assert "2 of 2 weighted layers integer, 0 float" in shown
