"""`cifar:resnet20|32|44|56|110`: residual networks for 32x32 images, with the user's checkpoint."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from calibration.errors import UserError
from pipeline.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from pipeline.networks.architectures.cifar_resnet import BLOCKS, CifarResNet
from pipeline.networks.checkpoints.files import read_checkpoint
from pipeline.networks.sources.sourced import CLASSIFIER, SourcedModel, module_with_state, reproducible_weights
from pipeline.tools.source_text import split_options, whole_number

# ImageNet's statistics, which the public checkpoints of these networks were trained with.
PREPROCESSING = Preprocessing(
    channels=3,
    height=32,
    width=32,
    resize=None,
    interpolation="bilinear",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    channel_order="RGB",
)


def load_cifar(rest: str, weights: Path | None) -> SourcedModel:
    """Load `resnet20[?weights=none&num_classes=N]`; the number of classes follows the checkpoint.

    Raises:
        UserError: unknown architecture, no weights, or weights that do not fit.
    """
    source = f"cifar:{rest}"
    name, options = split_options(rest, ("weights", "num_classes"), source)
    if name not in BLOCKS:
        raise UserError(f"unknown cifar network {name!r}; known: {', '.join(BLOCKS)}")
    classes = whole_number(options, "num_classes", source)

    def build(count: int | None) -> nn.Module:
        with reproducible_weights():
            return CifarResNet(BLOCKS[name], count or 10)

    if weights is not None:
        module, notes = module_with_state(build, read_checkpoint(weights), classes=classes, source=source)
        return SourcedModel(module=module, preprocessing=PREPROCESSING, notes=notes, output_kinds=CLASSIFIER)
    if options.get("weights") != "none":
        raise UserError(f"{source} carries no weights: add --weights FILE.safetensors or .pth (?weights=none: random)")
    return SourcedModel(
        module=build(classes),
        preprocessing=PREPROCESSING,
        notes=("random weights, as asked for by ?weights=none",),
        output_kinds=CLASSIFIER,
    )
