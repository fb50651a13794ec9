"""What a checkpoint of training must be to be gone on from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from calibration.errors import UserError
from pipeline.distillation.training.learner import load_checkpoint
from pipeline.tools.kept import Kept


def test_a_checkpoint_of_another_form_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    """As the float student's was kept before there was one loop: its optimiser's tensors had other names."""
    kept = tmp_path / "float-checkpoint.safetensors"
    Kept(kept).save({"network.weight": torch.zeros(2), "optimiser.0.exp_avg": torch.zeros(2)}, {"step": 3})
    with pytest.raises(UserError, match=r"was written by another version of faqd: add --restart-training") as raised:
        load_checkpoint(Kept(kept))
    assert str(kept) in str(raised.value) and "\n" not in str(raised.value)


def test_what_was_not_kept_is_not_gone_on_from(tmp_path: Path) -> None:
    assert load_checkpoint(None) is None and load_checkpoint(Kept(tmp_path / "checkpoint.safetensors")) is None
