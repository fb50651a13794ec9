"""A student as the network of a LightningModule: Lightning trains it, faqd takes it back.

    pip install pytorch-lightning
    python examples/lightning_loop.py

With the package `lightning` import `lightning.pytorch` instead; the rest stays as it is.
"""

from __future__ import annotations

import numpy as np
import pytorch_lightning
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

import faqd


def build() -> nn.Module:
    """Stand in for a trained network: images float32 [B, 3, 32, 32], normalised, to logits [B, 10]."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels_in, channels in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(channels_in, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()


def pictures(count: int = 96) -> NDArray[np.uint8]:
    """Stand in for photographs: uint8 [N, 3, 32, 32]."""
    blocks = np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), np.uint8)
    return blocks.repeat(4, 2).repeat(4, 3)


class Distiller(pytorch_lightning.LightningModule):
    """Teaches `student` to answer like `teacher`, which does not learn."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher.requires_grad_(False)

    def on_fit_start(self) -> None:
        """Training as training and the teacher as it is: Lightning takes modules in the mode that it finds them in."""
        self.student.train()
        self.teacher.eval()

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        """The divergence of the student's answers from the teacher's, for images float32 [B, C, H, W]."""
        target = self.teacher(batch).softmax(1)
        return functional.kl_div(self.student(batch).log_softmax(1), target, reduction="batchmean")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over weights and scales."""
        return torch.optim.Adam(self.student.parameters(), lr=1e-4)


def main(*, epochs: int = 2) -> faqd.Artifact:
    """Capture, prepare, train with Lightning, convert, run; what is left is model.onnx."""
    model = build()
    network = faqd.capture(model, torch.zeros(2, 3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    images = faqd.open_images(pictures(), network)
    student = faqd.prepare(network, images, backend="onnxruntime", bits=4)

    trainer = pytorch_lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.fit(Distiller(student.module, model), DataLoader(images.training, batch_size=32, shuffle=True))
    student.module.eval()

    artifact = faqd.convert(student)
    print("written:", artifact.save("model.onnx"))
    batch = torch.stack([images.held_out[index] for index in range(len(images.held_out))])
    with torch.no_grad():
        simulated = student.module(batch).numpy()
    print("what was simulated is what runs:", np.array_equal(artifact.run(batch)["output"], simulated))
    return artifact


if __name__ == "__main__":
    main()
