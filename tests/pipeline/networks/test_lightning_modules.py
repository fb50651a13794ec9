"""Networks that were trained with Lightning: the module itself or its part, with the checkpoint that it wrote."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.stages.teacher import load_network

# What of a LightningModule could be in the way: a property that raises outside of training, hyperparameters, losses
# and metrics beside the network, steps that are no part of its answer.
MODULES = """
import torch
from torch import nn


class LightningModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.hparams, self._trainer = {"rate": 0.1}, None

    @property
    def trainer(self):
        if self._trainer is None:
            raise RuntimeError(f"{type(self).__qualname__} is not attached to a `Trainer`.")
        return self._trainer

    def training_step(self, batch, index):
        return self.loss(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


class Digits(LightningModule):
    def __init__(self, part):
        super().__init__()
        self.part, self.loss = part, nn.CrossEntropyLoss(weight=torch.ones(4))
        inner = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        setattr(self, part, inner.append(nn.Linear(8, 4)))

    def forward(self, x):
        return getattr(self, self.part)(x)


def whole_model():
    return Digits("model")


def whole_net():
    return Digits("net")


def part_model():
    return Digits("model").model


def part_net():
    return Digits("net").net
"""


@pytest.fixture(autouse=True)
def at_the_desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "lightning_nets.py").write_text(MODULES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(entry for entry in sys.path if entry)])
    yield
    sys.modules.pop("lightning_nets", None)


@pytest.mark.parametrize("part", ["model", "net"])
@pytest.mark.parametrize("taken", ["whole", "part"])
def test_a_lightning_module_and_its_part_take_its_checkpoint(taken: str, part: str, tmp_path: Path) -> None:
    import lightning_nets  # type: ignore[import-not-found]  # written above

    torch.manual_seed(3)
    trained = lightning_nets.Digits(part)
    trained(torch.rand(8, 3, 16, 16))  # its statistics are none to begin with
    trained.eval()
    checkpoint = {
        "epoch": 2,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": trained.state_dict(),
        "optimizer_states": [torch.optim.Adam(trained.parameters()).state_dict()],
        "hyper_parameters": trained.hparams,
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    network = load_network(
        f"python:lightning_nets:{taken}_{part}", weights=tmp_path / "last.ckpt", image_size=16, mean=(0.5,), std=(0.5,)
    )
    images = torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        (answer,) = network.folded(images)
        assert torch.allclose(answer, trained(images), atol=1e-5)
    assert any(f"{part}." in note for note in network.notes) == (taken == "part"), network.notes
