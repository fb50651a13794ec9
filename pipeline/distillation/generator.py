"""Images out of a teacher: a generator whose images the teacher finds as it found its training images.

Source: DAFL, Chen et al., Data-free learning of student networks, ICCV 2019, arXiv 1904.01186, generator and losses as
in the released code. The statistics of the teacher's BatchNorms as a further target follow DeepInversion (Yin et al.,
arXiv 1912.08795); their form, relative to the running statistics, is ours. So are latent size, batch, rate and the
order: the student learns from the finished generator's images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional

from calibration.graph.operators import constant, kind
from pipeline.distillation.logit_reading import logit_readings
from pipeline.networks.outputs.meaning import Output

LATENT = 256
_SLOPE = 0.2
# Weights of the losses for CIFAR-10 in the released code, and ours of the statistics.
ONE_HOT, ACTIVATION, BALANCE, STATISTICS = 0.05, 0.01, 5.0, 1.0
_SMALLEST_PROBABILITY = 1e-8


@dataclass(frozen=True, kw_only=True)
class Impression:
    """What a teacher makes of a batch: logits [B, K] and features [B, d] before the last layer.

    `statistics`: how far each BatchNorm's inputs are from what it saw in training, a scalar, 0 without BatchNorms.
    """

    logits: Tensor
    features: Tensor
    statistics: Tensor


class Impressed(Interpreter):
    """Runs a captured teacher, noting its pooled features and its BatchNorms' inputs, with gradients to the images.

    `output`: what its first output holds.
    """

    def __init__(self, captured: GraphModule, pooled: str, output: Output) -> None:
        super().__init__(captured)
        self.pooled, (self._reading, *_) = pooled, logit_readings(captured, [output])
        self._logits: Tensor | None = None
        self.norms = {n.name for n in captured.graph.nodes if kind(n) == "batch_norm" and _statistics(captured, n)}
        self._features: Tensor | None = None
        self._distances: list[Tensor] = []

    def run_node(self, n: Node) -> object:
        """Run one node as usual."""
        if n.name in self.norms:
            statistics = _statistics(self.module, n)
            assert statistics is not None
            assert isinstance(n.args[0], Node)
            values = self.env[n.args[0]]
            self._distances.append(statistics_distance(values, *statistics))
        value = super().run_node(n)
        if n.name == self.pooled:
            assert isinstance(value, Tensor)
            self._features = value
        if n.name == self._reading.node:
            assert isinstance(value, Tensor)
            self._logits = value
        return value

    def impression(self, images: Tensor) -> Impression:
        """Normalised images [B, C, H, W] to what the teacher makes of them."""
        self._features, self._logits, self._distances = None, None, []
        outputs: tuple[Tensor, ...] = self.run(images)
        assert self._features is not None
        zero = images.new_zeros(())
        distance = torch.stack(self._distances).mean() if self._distances else zero
        read = outputs[0] if self._logits is None else self._logits
        return Impression(logits=self._reading.made(read), features=self._features, statistics=distance)


def _statistics(captured: nn.Module, node: Node) -> tuple[Tensor, Tensor] | None:
    assert isinstance(captured, GraphModule)
    mean, variance = (constant(captured, node.args[position]) for position in (3, 4))
    return None if mean is None or variance is None else (mean, variance)


def statistics_distance(values: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """How far a batch is from running statistics: mean over channels of ((m - mean) / sd)^2 + (log v / variance)^2.

    Args:
        values: [B, C, ...], the inputs of a BatchNorm.
        mean, variance: its running statistics, [C].

    Returns:
        Scalar, >= 0: no unit, so that layers of any magnitude count alike [ours].
    """
    axes = [axis for axis in range(values.dim()) if axis != 1]
    batch_variance, batch_mean = torch.var_mean(values, axes, correction=0)
    variance = variance.clamp_min(1e-8)
    shifted = (batch_mean - mean).square() / variance
    scaled = (batch_variance.clamp_min(1e-8) / variance).log().square()
    return (shifted + scaled).mean()


def generator_losses(impression: Impression) -> Mapping[str, Tensor]:
    """The losses of DAFL, scalars each: one_hot, activation, balance, and the distance of the statistics.

    one_hot: cross entropy of the logits with their own argmax. activation: minus the mean magnitude of the features.
    balance: minus the entropy of the batch's mean probabilities, natural logarithm, -log K where all K classes occur
    alike.
    """
    logits = impression.logits
    mean = logits.softmax(1).mean(0).clamp_min(_SMALLEST_PROBABILITY)
    return {
        "one_hot": functional.cross_entropy(logits, logits.detach().argmax(1)),
        "activation": -impression.features.abs().mean(),
        "balance": (mean * mean.log()).sum(),
        "statistics": impression.statistics,
    }


def generator_loss(losses: Mapping[str, Tensor]) -> Tensor:
    """Their weighted sum, a scalar."""
    return (
        ONE_HOT * losses["one_hot"]
        + ACTIVATION * losses["activation"]
        + BALANCE * losses["balance"]
        + STATISTICS * losses["statistics"]
    )


class Generator(nn.Module):
    """Latent vectors [B, LATENT] to images [B, channels, height, width] in the teacher's normalised space.

    A linear layer to 128 maps at a quarter of the size, then twice upsampling, 3x3 convolution, BatchNorm and
    LeakyReLU, a 3x3 convolution, tanh and a BatchNorm without weights. `generator` draws the weights.
    """

    def __init__(self, *, channels: int, height: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.size, self.start = (height, width), (max(1, height // 4), max(1, width // 4))
        self.linear = nn.Linear(LATENT, 128 * self.start[0] * self.start[1], device="meta")
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, device="meta")
            for before, after in ((128, 128), (128, 64), (64, channels))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(128) for _ in range(2))
        self.last_norm, self.norm = nn.BatchNorm2d(channels, affine=False), nn.BatchNorm2d(64)
        for layer in (self.linear, *self.convolutions):
            layer.to_empty(device="cpu")
            nn.init.kaiming_normal_(layer.weight, a=_SLOPE, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, latent: Tensor) -> Tensor:
        """See the class."""
        x = self.norms[0](self.linear(latent).reshape(-1, 128, *self.start))
        half = (max(1, self.size[0] // 2), max(1, self.size[1] // 2))
        x = functional.leaky_relu(self.norms[1](self.convolutions[0](functional.interpolate(x, half))), _SLOPE)
        x = functional.leaky_relu(self.norm(self.convolutions[1](functional.interpolate(x, self.size))), _SLOPE)
        images: Tensor = self.last_norm(torch.tanh(self.convolutions[2](x)))
        return images
