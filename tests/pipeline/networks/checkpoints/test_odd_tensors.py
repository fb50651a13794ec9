"""Tensors in checkpoints that are no weights of a float network: named by their key, never half read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from calibration.errors import UserError
from pipeline.networks.checkpoints.files import read_checkpoint

_ODD: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse (sparse_coo)": lambda weight: weight.to_sparse(),
    "sparse (sparse_csr)": lambda weight: weight.to_sparse_csr(),
    "complex": lambda weight: weight.to(torch.complex64),
    "quantised": lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
    "meta": lambda weight: weight.to("meta"),
    "nested": lambda weight: torch.nested.nested_tensor([weight[0], weight[1, :2]]),
}


@pytest.mark.filterwarnings("ignore")  # of torch: sparse rows and nested tensors are unfinished there
@pytest.mark.parametrize("kind", _ODD)
def test_a_tensor_that_is_no_weight_is_named(kind: str, tmp_path: Path) -> None:
    state = nn.Linear(3, 2).state_dict()
    torch.save(state | {"weight": _ODD[kind](state["weight"])}, tmp_path / "weights.pth")
    with pytest.raises(UserError) as refused:
        read_checkpoint(tmp_path / "weights.pth").fitted_to(state)
    assert f"hold a {kind} tensor, weight: save the state dict of the float network" in str(refused.value)
