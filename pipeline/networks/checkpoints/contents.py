"""What a checkpoint holds: every tensor by its dotted path, wherever it lies in dictionaries and pickled objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor

from pipeline.networks.checkpoints.inert_checkpoint import StoredTensor
from pipeline.networks.checkpoints.inert_pickle import Foreign, Symbol

# Beginnings of words under which no network's weights lie, but tensors of the same names may.
_NO_WEIGHTS = ("optim", "momentum", "exp_avg", "grad", "sched", "lr_sched", "scaler", "rng", "loops", "fisher")
_MOST = 200_000  # tensors; a file of more is read no further: objects may refer to each other without end


@final
@dataclass(kw_only=True)
class Contents:
    """Tensors of a checkpoint by their dotted paths, and what lies about them."""

    tensors: dict[str, Tensor | StoredTensor] = field(default_factory=dict)
    containers: list[str] = field(default_factory=list)  # paths of what holds tensors
    networks: dict[str, str] = field(default_factory=dict)  # path of a pickled network -> its class


def contents_of(value: Any) -> Contents:
    """Collect the tensors of what torch.load or `read_inert_checkpoint` returned."""
    contents = Contents()
    if isinstance(value, (list, tuple)):  # such as (epoch, state)
        value = {str(index): item for index, item in enumerate(value)}
    _collect(value, "", contents, ())
    return contents


def described(value: Any) -> str:
    """What kind of thing a checkpoint holds, in a word or two."""
    if isinstance(value, Foreign):
        return str(value.made_by) if isinstance(value.made_by, Symbol) else "pickled object"
    return "Tensor" if isinstance(value, StoredTensor) else type(value).__name__


def _collect(value: Any, path: str, contents: Contents, above: tuple[int, ...]) -> None:
    """Add a container's tensors and look into what it holds."""
    if id(value) in above or len(contents.tensors) > _MOST or len(above) > 64:
        return
    if isinstance(value, Foreign) and _is_network(value):
        contents.networks[path] = described(value)
    entries = list(_entries(value))
    if path in contents.networks or any(isinstance(entry, (Tensor, StoredTensor)) for _, entry in entries):
        contents.containers.append(path)
    for key, entry in entries:
        if key.lower().startswith(_NO_WEIGHTS):
            continue
        name = f"{path}.{key}" if path else key
        if isinstance(entry, (Tensor, StoredTensor)):
            contents.tensors[name] = entry
        elif isinstance(entry, (Mapping, Foreign)):
            _collect(entry, name, contents, (*above, id(value)))


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """The named entries of a dictionary, of a pickled network as in its state_dict(), or of another object."""
    if isinstance(value, Foreign):
        state: Any = value.state
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):
            state = state[0]  # (attributes, slots)
        if _is_network(value):
            fleeting = state.get("_non_persistent_buffers_set")
            fleeting = fleeting if isinstance(fleeting, set) else set()
            for part in ("_parameters", "_buffers", "_modules"):
                yield from (
                    (str(key), entry)
                    for key, entry in state[part].items()
                    if entry is not None and not (part == "_buffers" and key in fleeting)
                )
            return
        value = value.items or state
    if isinstance(value, Mapping):
        yield from ((key, entry) for key, entry in value.items() if isinstance(key, str))


def _is_network(value: Foreign) -> bool:
    state = value.state
    return isinstance(state, dict) and all(
        isinstance(state.get(part), dict) for part in ("_parameters", "_buffers", "_modules")
    )
