"""What the functions of the chain take by name: the fields of the sections of a run, for type checkers and editors.

At run time the sections themselves check what is given; a test holds that names and types here are theirs.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from backends import BackendName
from pipeline.config import Bits
from pipeline.config.affinity_points import AffinityChoice, Distance, Normalisation, Over


class DataSettings(TypedDict, total=False):
    """Fields of `faqd.DataConfig`: how images are read and divided."""

    workers: int | None
    augmentation: Literal["auto", "crop", "crop-flip", "none"]
    calibration_images: int
    held_out_images: int | None
    generator_steps: int
    generated_images: int


class QuantisationSettings(TypedDict, total=False):
    """Fields of `faqd.QuantisationConfig`: where the network will run and on which grids."""

    backend: BackendName
    target: Literal["x86-vnni", "x86-avx2", "x86-avx2-limited", "x86-avx2-precise", "arm64"] | None
    bits: Bits
    first_bits: Bits
    depthwise_bits: Bits
    last_bits: Bits
    activation_bits: Literal[8, 4, 3, 2]
    range_method: Literal["auto", "mse", "minmax", "moving-average", "percentile"]
    rounding: Literal["auto", "nearest", "least-squares"]
    learned_scales: Literal["all", "weights", "none"]
    weight_grids: Literal["lsq", "faqd"]
    activation_grids: Literal["lsq", "pact"]
    rest: Literal["fp32", "fp16"]
    weight_only: Literal["auto", "none"]
    opset: int | None
    static_batch: int | None
    external_data_above: int


class DistillationSettings(TypedDict, total=False):
    """Fields of `faqd.DistillationConfig`: how a student learns; `float_steps` and their rate are of float students."""

    steps: int | None
    patience: int | None
    minutes: float | None
    float_steps: int | None
    float_learning_rate: float
    batch_norm: Literal["auto", "kept", "folded"]
    batch_size: int | None
    learning_rate: float | None
    optimiser: Literal["adam", "sgd"]
    weight_decay: float
    scale_learning_rate: float
    targets: Literal["auto", "image", "mirror"]
    logit_loss: Literal["kl", "mse"]
    temperature: float | str
    logit_weight: float | str
    class_weight: float | str | None
    label_weight: float | str | None
    affinity: AffinityChoice
    affinity_order: Literal["squared", "1", "2"]
    normalise: Normalisation | None
    distance: Distance | None
    over: Over | None
    affinity_weight: float | str | None
    adapters: Literal["identity", "trained"]
    feed_weight: float | str | None
    sakd_weight: float | str | None
    speq_weight: float | str | None
    speq_bits: int | None
    speq_probability: float
    generations: int
    projections: int
    taps: tuple[str, ...] | None
