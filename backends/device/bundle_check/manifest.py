"""What a bundle's manifest says, as typed records, and how it is read: no file of a bundle is used before.

A manifest vouches for every file of its bundle and, by its own hash, for itself. That shows what has been damaged or
edited by mistake. Who means to deceive makes new hashes too; only the signature of a key that he does not have shows
that (`backends.device.bundle_check.signature`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from . import records, stored
from .bundle_files import check_listed
from .errors import DeviceError
from .same_answer import EXACT, WITH_FLOAT
from .signature import SIGNATURE, check_signature

MANIFEST = "manifest.json"
FORMAT = 4
"""1 had golden outputs of the first output only, 2 no hash of the manifest itself, 3 no sizes of files."""
HASHED = 3
_READABLE = (2, HASHED, FORMAT)
#: What a user does about a bundle that is not as its run wrote it.
ANEW = "copy the bundle anew, or make it anew"


@dataclass(frozen=True, kw_only=True)
class InputEntry:
    """An input of the model; of its shape, a free size is a name."""

    name: str
    type: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class OutputEntry:
    """An output of the model, and what it holds (`pipeline.networks.outputs.meaning.Output`)."""

    name: str
    holds: Literal["classes", "labels", "values"]
    type: str = "float"
    shape: tuple[int | str, ...] = ()
    class_axis: int = 1
    activation: Literal["sigmoid", "softmax", "log-softmax"] | None = None
    float_activation: Literal["sigmoid", "softmax", "log-softmax"] | None = None
    """That of the float model beside the bundle, where it ends otherwise."""
    threshold: float = 0.0
    embedding: bool = False
    negligible: float = 0.0
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.negligible < 0:
            raise ValueError(f"negligible is {self.negligible}: must be 0 or more")
        if self.shape and not -len(self.shape) < self.class_axis < len(self.shape):
            raise ValueError(f"class_axis is {self.class_axis}, and its shape {list(self.shape)}")


@dataclass(frozen=True, kw_only=True)
class Needed:
    """The oldest runtime that runs the model, why, and what makes a model for an older one."""

    name: str
    least: str
    why: str
    way_out: str


@dataclass(frozen=True, kw_only=True)
class BitWidths:
    """BitWidths of the grids, bits."""

    weights: int
    activations: int


@dataclass(frozen=True, kw_only=True)
class InputPixels:
    """What the network's input is made of, of all that a manifest says of preprocessing."""

    channels: int
    height: int
    width: int
    channel_order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    divisor: float = 255

    def __post_init__(self) -> None:
        if min(self.channels, self.height, self.width) < 1 or self.divisor <= 0 or min(self.std, default=0) <= 0:
            raise ValueError("channels, height, width, divisor and std must be above 0")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std must be {self.channels} numbers each, one a channel")


@dataclass(frozen=True, kw_only=True)
class PlannedLayer:
    """A layer with integer weights."""

    layer: str
    weight_only: bool = False


@dataclass(frozen=True, kw_only=True)
class PlannedKernels:
    """What an engine is asked for, of all that a plan says."""

    weights: tuple[Mapping[str, Any], ...]
    float_nodes: Mapping[str, str]
    kinds: Mapping[str, str]

    def layers(self, where: str) -> tuple[PlannedLayer, ...]:
        """Its layers with integer weights. Raises ValueError."""
        return tuple(records.known_part(PlannedLayer, entry, where=f"{where}.weights") for entry in self.weights)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that a manifest says; what later formats added has a default."""

    format: int
    backend: str
    files: Mapping[str, str]
    """File below the bundle -> its SHA-256."""
    inputs: tuple[InputEntry, ...]
    outputs: tuple[OutputEntry, ...]
    preprocessing: Mapping[str, Any]
    plan: Mapping[str, Any]
    bits: BitWidths
    teacher: str
    student: str
    seed: int
    versions: Mapping[str, str]
    target: str | None = None
    session_options: Mapping[str, str] = field(default_factory=dict)
    least_parity: float | None = None
    """The share of answers, 0 to 1, that must be the golden ones; None in the first formats."""
    exact: bool = False
    """Whether the golden outputs must come out to the bit: all of it is integers, and its run measured nothing else."""
    runtime: Needed | None = None
    quantiser: str | None = None
    float_model: str | None = None
    """Hash of the float model that the run leaves beside the bundle."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """File below the bundle -> its bytes."""
    run: str | None = None
    """Which run the bundle is of."""
    hmac_sha256: str | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        if not self.inputs or not self.outputs:
            raise ValueError("inputs and outputs must be one each, or more")
        names = [output.name for output in self.outputs]
        if len(set(names)) < len(names):
            raise ValueError(f"outputs must have a name each, not {', '.join(map(records.shown, names))}")
        if self.least_parity is not None and not 0 < self.least_parity <= EXACT:
            raise ValueError(f"least_parity is {self.least_parity}: must be above 0, and 1 at the most")
        if self.format == FORMAT and self.sizes.keys() != self.files.keys():
            raise ValueError("sizes must be those of the files, no more and no fewer")
        if not all(len(entry.shape) >= 2 for entry in self.inputs):
            raise ValueError("inputs must have a shape, the batch first")

    @property
    def least(self) -> float:
        """The share of answers, 0 to 1, that must be the golden ones on a device."""
        return WITH_FLOAT if self.least_parity is None else self.least_parity

    @property
    def pixels(self) -> InputPixels:
        """What the network's input is made of."""
        return records.known_part(InputPixels, self.preprocessing, where="preprocessing")

    @property
    def kernels(self) -> PlannedKernels:
        """What an engine is asked for."""
        return records.known_part(PlannedKernels, self.plan, where="plan")


def read_manifest(bundle: Path, *, key: bytes | None, whoever_signed: bool = False) -> Manifest:
    """The manifest of a bundle whose files are what it says, no more and no fewer.

    `key`: whose signature it must have; None: it must have none, unless it does not matter `whoever_signed` it. Raises
    DeviceError where anything is otherwise.
    """
    if not bundle.is_dir():
        raise DeviceError(f"{bundle} is no folder: give the bundle folder that a run has written")
    path = bundle / MANIFEST
    if not path.is_file():
        raise DeviceError(f"{bundle} is no bundle: it has no {MANIFEST}; a run writes one at DIR/bundle")
    with in_one_line():
        tree, content = stored.read_object(path)
        _check_vouched(tree, content, path)
        if not whoever_signed:
            check_signature(tree, key, bundle)
        manifest = manifest_of(tree, path)
        check_listed(bundle, manifest.files, manifest.sizes, vouching=MANIFEST)
    return manifest


def manifest_of(tree: Mapping[str, Any], path: Path) -> Manifest:
    """What a manifest says as its record, each part of it such as it is read by. Raises ValueError naming the field."""
    where = f"{path}:"
    manifest = records.from_json(Manifest, tree, where=where)
    records.known_part(InputPixels, manifest.preprocessing, where=f"{where} preprocessing")
    kernels = records.known_part(PlannedKernels, manifest.plan, where=f"{where} plan")
    kernels.layers(f"{where} plan")
    return manifest


def check_made_for(manifest: Manifest, bundle: Path, backends: Collection[str]) -> None:
    """Raise DeviceError where a bundle is for another backend than these, the usual one first."""
    if manifest.backend not in backends:
        usual = next(iter(backends))
        raise DeviceError(
            f"{bundle} is a bundle for {records.shown(manifest.backend)}: make one with --backend {usual}"
        )


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Say what is damaged, or not as it should be said, as the line of a bundle that is refused."""
    try:
        yield
    except ValueError as error:
        raise DeviceError(f"{error}: {ANEW}") from error


def _check_vouched(tree: Mapping[str, Any], content: bytes, path: Path) -> None:
    """Raise where a manifest is of no format that is known here, or does not vouch for itself as its format does."""
    number = tree.get("format")
    if number not in _READABLE or isinstance(number, bool | float):
        *others, last = map(str, _READABLE)
        known = f"{', '.join(others)} or {last}"
        raise DeviceError(
            f"{path} has format {records.shown(number)}: this version reads {known}; make the bundle anew"
        )
    if number >= HASHED:
        stored.check_seal(tree, content, path)
        return
    newer = [key for key in (stored.DIGEST, SIGNATURE, "sizes", "exact") if key in tree]
    if newer:
        raise stored.DamagedError(f"{path} has format 2, and {newer[0]}, which such manifests have not")
    stored.check_text(tree, content, path)


def remark(manifest: Manifest) -> str | None:
    """What to say of a manifest that does not vouch for itself."""
    if manifest.format >= HASHED:
        return None
    return (
        f"the bundle is of format {manifest.format}, made before manifests were hashed: an edited {MANIFEST}"
        " (preprocessing, plan) would not show; a new run makes one that does"
    )


def check_outside(bundle: Path, places: Mapping[str, Path | None]) -> None:
    """Raise DeviceError where a flag names a place in the bundle, whose files are those of its manifest alone."""
    for flag, path in places.items():
        if path is not None and path.resolve().is_relative_to(bundle.resolve()):
            raise DeviceError(
                f"{flag} {path} lies in the bundle, whose files are those of its manifest alone: name a place outside"
            )


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, its folders included. Raises DeviceError where it cannot be written."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise DeviceError(f"cannot write {path}: {error.strerror or error}") from error
