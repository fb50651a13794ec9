"""Make training images where there are none: a generator learns from the float teacher alone (DAFL)."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from calibration.errors import UserError
from pipeline.artifacts import GeneratedImages, Network
from pipeline.config.sources import DataConfig
from pipeline.distillation.generator import LATENT, Generator, Impressed, generator_loss, generator_losses
from pipeline.distillation.taps import pooled_features
from pipeline.images.preprocessing import Preprocessing
from pipeline.tools.kept import Kept
from pipeline.tools.memory import freed_memory_kept
from pipeline.tools.progress import SILENT, Progress
from pipeline.tools.randomness import generator_for

_BATCH = 128
_RATE = 1e-3
# A share of the largest entropy of the classes below which images are of a few classes only [ours].
_POOR, _COLLAPSED = 0.8, 0.3
_SHOWN = 32


def check_imaginable(teacher: Network) -> str:
    """The node of the teacher's pooled features. Raises UserError, naming what is missing, where it has none."""
    output = teacher.outputs[0]
    if output.holds != "classes" or len(output.shape) != 1:
        raise UserError(
            f"--data none needs a teacher that classifies: {teacher.source} gives {output.holds} {output.shape}"
        )
    pooled = pooled_features(teacher.captured)
    if pooled is None:
        raise UserError(
            f"--data none needs pooled features, a vector before a last linear layer, and {teacher.source} has none: "
            "give images with --data images:FOLDER"
        )
    return pooled


@freed_memory_kept()
def imagine(
    teacher: Network, data: DataConfig, *, seed: int = 0, place: Kept | None = None, progress: Progress = SILENT
) -> GeneratedImages:
    """Train a generator against the teacher and draw images; those that are kept at `place`, or are then.

    Raises UserError when the teacher lacks what is needed, or the images collapse to so few classes that they teach
    nothing.
    """
    if place is not None and place.exists():
        return GeneratedImages.load(place)
    generated = _imagined(teacher, data, seed, progress)
    if place is not None:
        generated.save(place)
    return generated


def _imagined(teacher: Network, data: DataConfig, seed: int, progress: Progress) -> GeneratedImages:
    steps, count = data.generator_steps, data.generated_images
    teacher_view = Impressed(teacher.captured, check_imaginable(teacher), teacher.outputs[0])
    p = teacher.preprocessing
    generator = Generator(
        channels=p.channels, height=p.height, width=p.width, generator=generator_for(seed, "generator")
    )
    for parameter in teacher.captured.parameters():
        parameter.requires_grad_(False)
    optimiser = torch.optim.Adam(generator.parameters(), lr=_RATE)
    for number in range(steps):
        images = generator(torch.randn(_BATCH, LATENT, generator=generator_for(seed, "latent", number)))
        losses = generator_losses(teacher_view.impression(images))
        loss = generator_loss(losses)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        progress.step(number + 1, steps, loss=float(loss.detach()))
    for parameter in teacher.captured.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    pixels, probabilities = _drawn(generator.eval(), teacher, count, seed)
    remarks = [f"no images were given: {count} were generated from {teacher.source} alone (DAFL, {steps} steps)"]
    if not teacher_view.norms:
        remarks.append(f"{teacher.source} has no BatchNorm statistics: its images follow its logits and features alone")
    return GeneratedImages(pixels=pixels, remarks=(*remarks, *_judged(probabilities)))


def _drawn(generator: Generator, teacher: Network, count: int, seed: int) -> tuple[NDArray[np.uint8], Tensor]:
    """Images as the network's decoder would store them, and the mean of the teacher's probabilities for these, [K]."""
    p, parts, total = teacher.preprocessing, [], torch.zeros(teacher.outputs[0].shape[0])
    with torch.no_grad():
        for start in range(0, count, _BATCH):
            size = min(_BATCH, count - start)
            images = generator(torch.randn(size, LATENT, generator=generator_for(seed, "drawn", start)))
            parts.append(_pixels(images, p))
            total += teacher.outputs[0].logits(teacher.folded(images)[0]).softmax(1).sum(0)
    return np.concatenate(parts), total / count


def _pixels(images: Tensor, p: Preprocessing) -> NDArray[np.uint8]:
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (p.mean, p.std))
    stored: NDArray[np.uint8] = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    # Sources hold RGB; a network that wants BGR turns it around itself.
    return stored[:, ::-1].copy() if p.channel_order == "BGR" else stored


def _judged(probabilities: Tensor) -> tuple[str, ...]:
    """A remark on images of few classes; raises UserError when there is all but one."""
    known = probabilities.clamp_min(1e-12)
    share = float(-(known * known.log()).sum()) / math.log(len(known))
    likeliest = int(known.argmax())
    most = f"class {likeliest} has {100 * float(known[likeliest]):.0f} % of them"
    if share < _COLLAPSED:
        raise UserError(
            f"--data none: the generated images collapsed, {most}: try more --generator-steps or another --seed"
        )
    return (f"the generated images are of few classes: {most}",) if share < _POOR else ()


def preview(pixels: NDArray[np.uint8]) -> str:
    """The first images of uint8 [N, C, H, W] side by side as a PNG, in base64."""
    shown = pixels[:_SHOWN]
    columns = min(8, len(shown))
    rows = -(-len(shown) // columns)
    _, channels, height, width = shown.shape
    sheet = np.zeros((rows * height, columns * width, channels), np.uint8)
    for index, image in enumerate(shown):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
