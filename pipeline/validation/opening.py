"""What a run says before it begins: what becomes of an image, and that its images are too few for a verdict."""

from __future__ import annotations

import math

from pipeline.artifacts import Network
from pipeline.config.distillation import DistillationConfig
from pipeline.config.validation import ValidationConfig
from pipeline.networks.models import fit_words
from pipeline.tools.confidence import decidable_limit, images_needed
from pipeline.validation.evaluation import Scored


def opening(
    learning: DistillationConfig, limits: ValidationConfig, teacher: Network, scored: Scored
) -> tuple[str, ...]:
    """The lines that a run opens with; no notes, as its report says the same at the end in figures."""
    preprocessing = teacher.preprocessing
    fit = f"images become the network's input with --fit {preprocessing.fit}: {fit_words(preprocessing)}"
    lines = (fit, _idle_temperature(learning, teacher), _too_few(limits, teacher, scored))
    return tuple(line for line in lines if line is not None)


def _idle_temperature(learning: DistillationConfig, teacher: Network) -> str | None:
    """That nothing is softened by a temperature, which may come from a recipe: of values nothing is decided."""
    plain = learning.temperature == DistillationConfig().temperature or learning.steps == 0
    if plain or any(output.holds != "values" for output in teacher.outputs):
        return None
    return f"--temperature {learning.temperature} changes nothing: {teacher.source} has no output of classes or labels"


def _too_few(limits: ValidationConfig, teacher: Network, scored: Scored) -> str | None:
    """That too few images are scored to pass a limit, with the flags to type; None where they are enough."""
    asked = [
        (images_needed(limit, output.decisions), limit)
        for output in teacher.outputs
        if (limit := limits.output_limits.get(output.name, limits.drop_limit)) is not None
    ]
    count, (needed, limit) = len(scored.indices), max(asked, default=(0, 0.0))
    if count >= needed:
        return None
    ways = ["--eval-data with as many (labels are not needed)"]
    if scored.trained_on and len(scored.evaluation.images) > needed:
        ways.insert(0, f"--held-out-images {needed}")
    least = decidable_limit(count)
    if least <= 100:
        ways.append(f"--max-drop {math.ceil(10 * least) / 10 if least < 1 else math.ceil(least):g}")
    images = f"{count} image{' is' if count == 1 else 's are'}"
    return (
        f"only {images} scored and a limit of {limit:g} point{'' if limit == 1 else 's'} needs {needed}: this run will"
        f" end undecided, or fail; ways out: {', '.join(ways[:-1])} or {ways[-1]}"
    )
