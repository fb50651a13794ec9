"""Names of a checkpoint's tensors against a network's: what wrappers put before them, and why they do not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from pipeline.tools.source_text import shortened

#: Words that torch.compile, FSDP and activation checkpointing put into names, at any depth.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
#: Counters that thop leaves in every module.
_PROFILERS = frozenset({"total_ops", "total_params"})
#: What may be absent: BatchNorm's counter decides nothing in evaluation mode.
COUNTER = "num_batches_tracked"


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """What stands before the names of the one side and not of the other."""

    file: str = ""  # before the file's, with its last dot
    network: str = ""  # before the network's

    def key(self, own: str) -> str:
        """The file's name of a network's tensor."""
        return self.file + own.removeprefix(self.network)

    def own(self, name: str) -> str:
        """The network's name of a file's tensor."""
        return self.network + name.removeprefix(self.file)


def plain_names(keys: Collection[str], own: Collection[str]) -> dict[str, str]:
    """Return each of the file's keys by its name without the words of wrappers; profilers' counters are left out.

    Words that the network has itself stay, and all do where two keys would be one.
    """
    wrappers = _WRAPPERS - {word for key in own for word in key.split(".")}
    profilers = _PROFILERS - {key.rpartition(".")[2] for key in own}
    kept = [key for key in keys if key.rpartition(".")[2] not in profilers]
    names = {without_words(key, wrappers): key for key in kept}
    return names if len(names) == len(kept) else {key: key for key in kept}


def without_words(key: str, words: Collection[str]) -> str:
    """A dotted name without some of its words."""
    return ".".join(word for word in key.split(".") if word not in words)


def needed(own: Collection[str]) -> set[str]:
    """The network's tensors that a checkpoint must hold."""
    return {key for key in own if key.rpartition(".")[2] != COUNTER}


def fitting_prefixes(names: Collection[str], own: Collection[str]) -> list[Prefix]:
    """Every prefix with which all tensors that the network needs are among the names, the shortest first.

    What all of the network's own names begin with is taken off as far as nothing fits otherwise.
    """
    wanting = needed(own)
    for begins in _beginnings(wanting):
        targets = {key.removeprefix(begins) for key in wanting}
        votes = _votes(names, targets)
        fits = [Prefix(file=prefix, network=begins) for prefix, count in votes.items() if count == len(targets)]
        if fits:
            return sorted(fits, key=lambda prefix: (len(prefix.file), prefix.file))
    return []


def nearest_prefix(names: Collection[str], own: Collection[str]) -> tuple[Prefix, int]:
    """The prefix with which most of the needed tensors are among the names, and how many those are."""
    wanting = needed(own)
    best, most = Prefix(), 0
    for begins in _beginnings(wanting):
        votes = _votes(names, {key.removeprefix(begins) for key in wanting})
        prefix = max(votes, key=lambda prefix: (votes[prefix], -len(prefix)), default="")
        if votes[prefix] > most:
            best, most = Prefix(file=prefix, network=begins), votes[prefix]
    return best, most


def _beginnings(keys: Collection[str]) -> list[str]:
    """What all names begin with: nothing, their first word and its dot, their first two ..."""
    first, last = (min(keys, default=""), max(keys, default=""))
    words = ["", *(f"{first[:index]}." for index, letter in enumerate(first) if letter == ".")]
    return [beginning for beginning in words if last.startswith(beginning)]


def _votes(names: Collection[str], targets: Collection[str]) -> Counter[str]:
    """How many of the targets are there behind each prefix that ends at a dot."""
    votes: Counter[str] = Counter()
    for name in names:
        end = 0
        while end >= 0:
            if name[end:] in targets:
                votes[name[:end]] += 1
            dot = name.find(".", end)
            end = dot + 1 if dot >= 0 else -1
    return votes


def likely_cause(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Why a checkpoint does not fit a network, as far as the names and shapes tell, and what to do."""
    missing, unexpected = [key for key in own if key not in state], [key for key in state if key not in own]
    lasts = {key.rpartition(".")[2] for key in unexpected}
    ours = {key.rpartition(".")[2] for key in missing}
    if lasts & {"zero_point", "_packed_params", "fake_quant_enabled", "activation_post_process", "eps"} or any(
        "fake_quant" in key or "_packed_params" in key for key in unexpected
    ):
        return "its network is quantised already: give the float network's checkpoint"
    if {"weight_orig", "weight_mask"} <= lasts:
        return "its network is pruned: call torch.nn.utils.prune.remove on its layers before saving"
    if any("lora_" in key for key in unexpected):
        return "it holds LoRA's adapters: merge them into the network before saving"
    if lasts & {"weight_g", "weight_v", "original0", "original1"}:
        return "its layers have weight normalisation and the network's have not: remove it before saving"
    if "running_mean" in ours and "running_mean" not in lasts and _are_of_norms(missing):
        return "its BatchNorms are fused into its convolutions: save the network before it is fused, or build it fused"
    if "running_mean" in lasts and "running_mean" not in ours and _are_of_norms(unexpected):
        return "the network's BatchNorms are fused and the file's are not: build the network without fusing it"
    if missing and unexpected and _same_in_order(own, state):
        first = next(pair for pair in zip(state, own, strict=True) if pair[0] != pair[1])
        return (
            f"as many tensors of the same shapes in the same order: only named otherwise, as {first[0]} for {first[1]}"
        )
    if missing or unexpected:
        if not unexpected:
            return f"it holds a smaller network, or a part of this one, without {_parts(missing)}"
        if not missing:
            return f"its network has more, {_parts(unexpected)}: it is another variant or has another task"
        if 2 * len(missing) > len(own):
            return "is it a checkpoint of this architecture?"
        return f"it is of a variant of this architecture, other in {_parts(missing)}"
    changed = [key for key in own if own[key].shape != state[key].shape]
    return _cause_of_shapes([(list(state[key].shape), list(own[key].shape)) for key in changed])


def fits_but_for_classes(own: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether tensors of these shapes fit the network, or a network with another number of classes."""
    others = [(shape, tuple(own[key].shape)) for key, shape in shapes.items() if key in own and own[key].shape != shape]
    heads = {(theirs[:1], ours[:1]) for theirs, ours in others}
    return len(heads) <= 1 and all(theirs and ours and theirs[1:] == ours[1:] for theirs, ours in others)


def _cause_of_shapes(shapes: list[tuple[list[int], list[int]]]) -> str:
    """Why tensors of the same names are of other shapes: pairs of the file's and the network's."""
    heads = {(theirs[0], ours[0]) for theirs, ours in shapes if theirs and ours and theirs[1:] == ours[1:]}
    if len(heads) == 1 and all(theirs[1:] == ours[1:] for theirs, ours in shapes):
        ((theirs, ours),) = heads
        return f"its network has {theirs} classes and this one {ours}: build the network with {theirs}"
    first_theirs, first_ours = shapes[0] if shapes else ([], [])
    if len(shapes) == 1 and len(first_theirs) == len(first_ours) == 4 and first_theirs[1] != first_ours[1]:
        return f"its first layer takes {first_theirs[1]} channels and this one {first_ours[1]}"
    return "it is of a variant of this architecture, of other widths"


def _are_of_norms(keys: list[str]) -> bool:
    """Whether every key belongs to a BatchNorm, or is the bias of a layer."""
    norms = {key.rpartition(".")[0] for key in keys if key.endswith("running_mean")}
    return all(key.rpartition(".")[0] in norms or key.endswith("bias") for key in keys)


def _same_in_order(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    return len(own) == len(state) and all(
        first.shape == second.shape for first, second in zip(own.values(), state.values(), strict=True)
    )


def _parts(keys: Iterable[str]) -> str:
    """The modules that keys belong to."""
    return shortened(dict.fromkeys(key.rpartition(".")[0] or key for key in keys))
