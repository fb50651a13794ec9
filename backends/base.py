"""What every deployment target offers: a profile to place by, an artifact, and a runner for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx
from numpy.typing import NDArray

from backends.facts.profile import Profile
from backends.onnx_file.serialised import Serialised
from calibration.simulation.freeze import FrozenNetwork

Array = NDArray[np.float32]


class Runner(Protocol):
    """A loaded artifact: images in, outputs out. Made by a context manager; holds the device until that closes."""

    def run(self, images: Array) -> list[NDArray[Any]]:
        """Normalised images float32 [B, C, H, W] to the outputs in the file's order, float32."""
        ...


@runtime_checkable
class DeviceTimed(Protocol):
    """A runner on a device with a clock of its own, whose time copies and the host's calls do not blur."""

    def device_seconds(self, images: Array) -> float:
        """Time of one inference on the device, its data already there, seconds."""
        ...


@dataclass(frozen=True, kw_only=True)
class Census:
    """Which weighted layers the runtime executes on integers, read from its own optimised graph.

    `integer` and `floating` name layers of the network; `histogram` counts the runtime's kernels by name; `remark` is
    what else the user should hear of them; `elsewhere`: another compiler than the runtime's own has chosen them.
    """

    integer: tuple[str, ...]
    floating: tuple[str, ...]
    histogram: Mapping[str, int] = field(default_factory=dict)
    remark: str = ""
    elsewhere: bool = False


class Backend(ABC):
    """One deployment target. Vendor libraries are imported inside the methods that need them, never at import.

    `has_times`: how long a run takes here means something. `reads_split_models`: a model's weights may lie in a second
    file. `cpu_profiles` holds, where the processor matters, the
    profiles that are exact on each, the fastest first.
    """

    name: str
    profile: Profile
    has_times: bool = True
    reads_split_models: bool = False
    cpu_profiles: Mapping[str, tuple[Profile, ...]] = MappingProxyType({})

    @abstractmethod
    def emit(self, network: FrozenNetwork, *, opset: int | None, batch: int | None) -> onnx.ModelProto:
        """The artifact for this target, linted. `opset` None: the target's best; `batch` None: free batch size.

        Raises UserError naming node and rule when the file would break one of the target's rules.
        """

    @abstractmethod
    def unavailable(self) -> str | None:
        """None when artifacts of this target run on this machine, else why they do not, with the way to get there."""

    @abstractmethod
    def runner(self, model: Serialised, *, threads: int) -> AbstractContextManager[Runner]:
        """A runner for a serialised model (quantised or float); `threads` >= 1 CPU threads."""

    @abstractmethod
    def census(self, model: Serialised, layers: Sequence[str]) -> Census:
        """What the runtime makes of each named weighted layer of a quantised model."""
