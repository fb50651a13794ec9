"""Train the embedded teacher: python -m scripts.embedded.train_digits [FILE] [--epochs 30].

Plain supervised training on the 1,347 training digits and their labels; the last epoch is kept, and the
held-out digits are looked at once, after it. The same machine and torch give the same file to the byte.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.images.embedded import ARCHIVE_NAME, TEACHER_NAME, digits_images, read_embedded
from pipeline.images.preprocessing import normalise
from pipeline.networks.architectures.digits import DigitsNetwork
from pipeline.networks.sources.digits import digits_preprocessing


@dataclass(frozen=True, kw_only=True)
class TeacherTraining:
    """The teacher's recipe: SGD with Nesterov momentum and one cosine decay, no restarts."""

    seed: int = 0
    epochs: int = 30
    batch_size: int = 64  # images per step; what does not fill the last batch is left out of that epoch
    learning_rate: float = 0.1  # of the first step; zero after the last one
    momentum: float = 0.9
    weight_decay: float = 5e-4
    shift: int = 1  # pixels: each image is moved by up to this much in both directions

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or self.shift < 0:
            raise ValueError(f"epochs >= 1, batch_size >= 2 and shift >= 0 expected, got {self}")


def labelled_training_digits() -> tuple[Tensor, Tensor]:
    """Return the training split with labels: uint8 [1347, 1, 8, 8] and int64 [1347]."""
    with np.load(io.BytesIO(read_embedded(ARCHIVE_NAME)), allow_pickle=False) as archive:
        training = ~archive["held_out"]
        return torch.from_numpy(archive["images"][training]), torch.from_numpy(archive["labels"][training])


def shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move each image of [B, C, H, W] by up to most pixels in both directions; what comes in is paper (0)."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (most,) * 4)
    tops = torch.randint(0, 2 * most + 1, (count, 1), generator=generator)
    lefts = torch.randint(0, 2 * most + 1, (count, 1), generator=generator)
    rows = (tops + torch.arange(height))[:, :, None]
    columns = (lefts + torch.arange(width))[:, None, :]
    # Advanced indices on both sides of the channel slice put the channels last.
    return padded[torch.arange(count)[:, None, None], :, rows, columns].permute(0, 3, 1, 2).contiguous()


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """Draw every convolution (He et al. 2015, fan out) and linear layer from the generator, in order."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.zeros_(module.bias)


@contextmanager
def _deterministic() -> Iterator[None]:
    """One thread and deterministic kernels inside; the caller's settings back afterwards."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)  # sums in another order would change the last bits
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)


def train_teacher(recipe: TeacherTraining) -> DigitsNetwork:
    """Return the digits network in eval mode after the recipe's last epoch, on the CPU in float32."""
    generator = torch.Generator().manual_seed(recipe.seed)
    preprocessing = digits_preprocessing()
    images, labels = labelled_training_digits()
    steps_per_epoch = len(labels) // recipe.batch_size
    with _deterministic():
        network = DigitsNetwork()
        initialise(network, generator)
        optimiser = torch.optim.SGD(
            network.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=True,
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.epochs * steps_per_epoch)
        for _ in range(recipe.epochs):
            order = torch.randperm(len(labels), generator=generator)
            for step in range(steps_per_epoch):
                chosen = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
                batch = normalise(shifted(images[chosen], recipe.shift, generator), preprocessing)
                loss = functional.cross_entropy(network(batch), labels[chosen])
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
                schedule.step()
    return network.eval()


def held_out_accuracy(network: nn.Module) -> float:
    """Return the fraction of the 450 held-out digits that the network classifies rightly."""
    _, images, labels = digits_images()
    with torch.inference_mode():
        predictions = network(normalise(torch.from_numpy(images), digits_preprocessing())).argmax(dim=1)
    return float((predictions == torch.from_numpy(labels)).double().mean())


def teacher_bytes(network: nn.Module) -> bytes:
    """Return the network's weights and batch-normalisation statistics as a safetensors file."""
    return safetensors.torch.save(network.state_dict())


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, write the file named on the command line, print its hash and the held-out accuracy."""
    parser = argparse.ArgumentParser(description="Train the embedded digits teacher.")
    parser.add_argument("file", type=Path, nargs="?", default=Path(TEACHER_NAME), help="file to write")
    parser.add_argument("--epochs", type=int, default=TeacherTraining.epochs, help="passes over the training digits")
    asked = parser.parse_args(arguments)
    file: Path = asked.file
    network = train_teacher(TeacherTraining(epochs=asked.epochs))
    contents = teacher_bytes(network)
    file.write_bytes(contents)
    digest = hashlib.sha256(contents).hexdigest()
    print(f"{file}: {len(contents)} bytes, sha256 {digest}")
    print(f"accuracy on the 450 held-out digits: {held_out_accuracy(network):.4f}")


if __name__ == "__main__":
    main()
