"""One network's tensors of a checkpoint: which part of it, under which prefix, chosen by the names that fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from calibration.errors import UserError
from pipeline.networks.checkpoints.contents import Contents
from pipeline.networks.checkpoints.inert_checkpoint import InertCheckpoint, InertCheckpointError, StoredTensor
from pipeline.networks.checkpoints.key_names import (
    COUNTER,
    Prefix,
    fits_but_for_classes,
    fitting_prefixes,
    nearest_prefix,
    needed,
    plain_names,
    without_words,
)
from pipeline.tools.source_text import shortened

# Containers of weights that nobody need be told of.
_USUAL = ("", "state_dict", "model_state_dict", "model")


@final
@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that has been read, and nothing of it run."""

    path: Path
    part: str  # the part of it that the user named, as in FILE#ema; empty: none
    contents: Contents
    inert: InertCheckpoint | None  # where the numbers of stored tensors are to be had

    def fitted_to(
        self, own: Mapping[str, Tensor], *, rename: Callable[[str], str] = str
    ) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Return the tensors for a network by its names for them, and what the user should be told.

        `own` are the network's tensors by their names. A file holds them under any prefix: that of a container, of the
        attribute that holds the network, of wrappers. Where none makes all of them fit, the nearest is taken off:
        `fit_state` says what is missing then. `rename` puts other spellings of the file's names right.

        Raises:
            UserError: two parts of the file fit, or a tensor of the one that does is NaN, infinite or cut off.
        """
        places, fitting = self._places(self._keys(rename), own)
        prefixes = self._meant(fitting)
        if len(prefixes) > 1:
            prefixes = self._possible(places, prefixes, fitting, own)
        if len(prefixes) > 1 and not self._are_equal(places, prefixes, own):
            labels = [f"#{_label(prefix.file)}" for prefix in prefixes]
            raise UserError(
                f"weights {self.path} hold {len(prefixes)} networks that fit, {shortened(labels, 6)}: choose one with"
                f" --weights {self.path}{labels[0]}"
            )
        prefix = prefixes[0] if prefixes else nearest_prefix(places, own)[0]
        chosen = {prefix.own(name): places[name] for name in _behind(prefix, fitting, places)}
        tensors = self._loaded(chosen)
        broken = [key for key, tensor in tensors.items() if tensor.is_floating_point() and not _is_usable(tensor)]
        if broken:
            raise UserError(f"weights {self.path} hold NaN or infinity in {len(broken)} tensors ({shortened(broken)})")
        return tensors, self._notes(prefix, places) if prefixes else ()

    def _keys(self, rename: Callable[[str], str]) -> dict[str, str]:
        """The file's paths of tensors, renamed -> as they are; only those of the named part where one is named."""
        paths = list(self.contents.tensors)
        if self.part and self.part != ".":
            within = [path for path in paths if path.startswith(f"{self.part}.")]
            paths = within or [path for path in paths if f".{self.part}." in path]
            if not paths:
                heads = list(dict.fromkeys(_label(path.partition(".")[0]) for path in self.contents.tensors))
                raise UserError(f"weights {self.path}: there is no #{self.part} in it; it holds {shortened(heads, 12)}")
        return {rename(path): path for path in paths}

    def _places(self, keys: Mapping[str, str], own: Mapping[str, Tensor]) -> tuple[dict[str, str], list[Prefix]]:
        """Names without wrappers -> paths of the tensors, and the prefixes with which they fit."""
        names = plain_names(keys, own)
        prefixes = fitting_prefixes(names, own)
        if not prefixes:
            parallel = {without_words(name, {"module"}): key for name, key in names.items()}
            if len(parallel) == len(names) and (prefixes := fitting_prefixes(parallel, own)):
                names = parallel
        return {name: keys[key] for name, key in names.items()}, prefixes

    def _meant(self, prefixes: list[Prefix]) -> list[Prefix]:
        """Those of the prefixes that the user has named, where one is; all otherwise."""
        part = self.part.strip(".")
        named = [p for p in prefixes if bool(p.file) == bool(part) and f".{_label(p.file)}".endswith(f".{part}")]
        return named if self.part and named else prefixes

    def _possible(
        self, places: Mapping[str, str], prefixes: list[Prefix], fitting: list[Prefix], own: Mapping[str, Tensor]
    ) -> list[Prefix]:
        """Those of several prefixes behind which there is nothing but the network, in its shapes; all if none is so."""
        exact = []
        for prefix in prefixes:
            shapes = {prefix.own(name): self._shape(places[name]) for name in _behind(prefix, fitting, places)}
            counters = {key for key in shapes if key.endswith(COUNTER)}
            if shapes.keys() - counters <= own.keys() and fits_but_for_classes(own, shapes):
                exact.append(prefix)
        return exact or prefixes

    def _shape(self, path: str) -> tuple[int, ...]:
        tensor = self.contents.tensors[path]
        if isinstance(tensor, StoredTensor):
            return tensor.size
        return tuple(tensor.shape) if not tensor.is_nested else (-1,)  # which has none, and fits nowhere

    def _are_equal(self, places: Mapping[str, str], prefixes: list[Prefix], own: Mapping[str, Tensor]) -> bool:
        """Whether all that fits holds the same numbers, as where one network is referred to twice."""
        for key in needed(own):
            first, *others = (self._loaded({key: places[p.key(key)]}) for p in prefixes)
            if any(other[key].shape != first[key].shape or not torch.equal(other[key], first[key]) for other in others):
                return False
        return True

    def _loaded(self, chosen: Mapping[str, str]) -> dict[str, Tensor]:
        tensors = {}
        for key, path in chosen.items():
            tensor = self.contents.tensors[path]
            if isinstance(tensor, StoredTensor):
                assert self.inert is not None
                try:
                    tensor = self.inert.tensor(tensor)
                except InertCheckpointError as error:
                    raise UserError(f"weights {self.path} are truncated or damaged: {error}") from None
            if kind := _no_weight(tensor):
                raise UserError(
                    f"weights {self.path} hold a {kind} tensor, {path}: save the state dict of the float network, whose"
                    " tensors are plain ones with values"
                )
            tensors[key] = tensor.detach()
        return tensors

    def _notes(self, prefix: Prefix, places: Mapping[str, str]) -> tuple[str, ...]:
        about = [path for path in self.contents.containers if prefix.file.startswith(f"{path}." if path else "")]
        container = max(about, key=len, default="")
        notes = []
        taken = prefix.file.removeprefix(f"{container}." if container else "")
        network = self.contents.networks.get(container)
        if network is not None:
            notes.append(f"{self.path.name}: the weights of a pickled network ({network}); nothing of it was run")
        if container not in _USUAL and not self.part:
            notes.append(f"{self.path.name}: its weights {container} are taken")
        if taken:
            notes.append(f"{self.path.name}: the prefix {taken} of its names is taken off")
        if prefix.network:
            notes.append(f"{self.path.name}: its names have no prefix {prefix.network}, which is put before them")
        left = [place for name, place in places.items() if not name.startswith(prefix.file) and self._shape(place)]
        if left and not self.part:
            heads = list(dict.fromkeys(place.rpartition(".")[0] or place for place in left))
            notes.append(
                f"{self.path.name}: {len(left)} tensors beside the network's are left out ({shortened(heads)})"
            )
        return tuple(notes)


def _no_weight(tensor: Tensor) -> str:
    """What a tensor is that can be no weight of a float network; empty where it can be one."""
    if tensor.is_meta:
        return "meta"
    if tensor.is_nested:
        return "nested"
    if tensor.layout is not torch.strided:
        return f"sparse ({str(tensor.layout).removeprefix('torch.')})"
    return "quantised" if tensor.is_quantized else "complex" if tensor.is_complex() else ""


def _is_usable(tensor: Tensor) -> bool:
    # +inf is a diverged training as surely as NaN; -inf is what attention masks are made of. Compared in float32:
    # comparisons are not defined for every 8-bit float.
    return bool((tensor.to(torch.float32) < torch.inf).all())


def _label(prefix: str) -> str:
    """How a part of a file is named behind its #."""
    return prefix.rstrip(".") or "."


def _behind(prefix: Prefix, fitting: list[Prefix], names: Iterable[str]) -> list[str]:
    """The names that begin with a prefix, and not with a longer one that fits as well: those are another network's."""
    longer = tuple(p.file for p in fitting if len(p.file) > len(prefix.file))
    return [name for name in names if name.startswith(prefix.file) and not name.startswith(longer)]
