"""A student in a training loop of your own: faqd prepares it, plain torch trains it, faqd takes it back.

    python examples/own_loop.py

Replace `build()` by your trained network and `pictures()` by your images: a folder's path, an array or a data set.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
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


def train(student: faqd.Student, teacher: nn.Module, images: faqd.Images, *, epochs: int) -> None:
    """Train the student's module in place: it is a plain `nn.Module`, and this a plain loop."""
    optimiser = torch.optim.Adam(
        [
            {"params": student.module.weight_parameters(), "lr": 1e-4},
            {"params": student.module.scale_parameters(), "lr": 1e-3},
        ]
    )
    student.module.train()
    for _ in range(epochs):
        for batch in DataLoader(images.training, batch_size=32, shuffle=True):
            with torch.no_grad():
                target = teacher(batch).softmax(1)
            loss = functional.kl_div(student.module(batch).log_softmax(1), target, reduction="batchmean")
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
    student.module.eval()


def main(*, epochs: int = 2) -> faqd.Artifact:
    """Capture, prepare, train, convert, run and judge; what is left is model.onnx."""
    model = build()
    network = faqd.capture(model, torch.zeros(2, 3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    images = faqd.open_images(pictures(), network)
    student = faqd.prepare(network, images, backend="onnxruntime", bits=4)
    print(student)

    train(student, model, images, epochs=epochs)

    artifact = faqd.convert(student)
    print("written:", artifact.save("model.onnx"))
    batch = torch.stack([images.held_out[index] for index in range(len(images.held_out))])
    with torch.no_grad():
        simulated = student.module(batch).numpy()
    print("what was simulated is what runs:", np.array_equal(artifact.run(batch)["output"], simulated))
    print(faqd.validate(artifact, images))
    return artifact


if __name__ == "__main__":
    main()
