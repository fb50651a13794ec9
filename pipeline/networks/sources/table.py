"""Every kind of network source by its name on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from pipeline.networks.sources.cifar import load_cifar
from pipeline.networks.sources.digits import load_digits
from pipeline.networks.sources.python_builder import load_python
from pipeline.networks.sources.sourced import SourcedModel
from pipeline.networks.sources.timm_models import load_timm
from pipeline.networks.sources.torchvision_models import load_torchvision

MODEL_SOURCES: Mapping[str, Callable[[str, Path | None], SourcedModel]] = MappingProxyType(
    {
        "torchvision": load_torchvision,
        "timm": load_timm,
        "cifar": load_cifar,
        "python": load_python,
        "digits": load_digits,
    }
)
"""Kind of source -> function from (rest, file of weights or None) to the network."""
