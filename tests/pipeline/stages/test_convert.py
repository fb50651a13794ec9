"""What the conversion refuses before anything is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from calibration.capture import capture
from calibration.errors import UserError
from pipeline.stages import convert
from pipeline.stages.convert import check_convertible


def test_weights_beyond_what_a_file_holds_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = capture(nn.Conv2d(3, 4, 3, bias=False), torch.randn(2, 3, 8, 8), source="test")
    monkeypatch.setattr(convert, "LARGEST_MODEL", 4 * 3 * 9 * 4)
    check_convertible(graph, opset=None)
    monkeypatch.setattr(convert, "LARGEST_MODEL", 4 * 3 * 9 * 4 - 1)
    with pytest.raises(UserError, match=r"the network has 4.32e-07 GB of weights.*--submodule"):
        check_convertible(graph, opset=None)
