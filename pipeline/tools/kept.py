"""Files of what a run has finished: written at once, vouching for themselves, read by the run alone that they are of.

What was cut, changed or is another run's is a UserError, one line that names the file and what of it.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from backends.device.bundle_check.records import from_json, to_json
from backends.device.bundle_check.stored import (
    DamagedError,
    check_seal,
    parse_json,
    read_sealed,
    sealed,
    text_as_written,
)
from calibration.errors import UserError
from pipeline.tools.atomic import remove, whole_file, write_bytes

Record = TypeVar("Record")

#: Key of a run's identity, in every file that says which run it is of.
RUN: Final = "run"
# The one key of a tensor file's metadata, since the library writes several in any order; and those of what it holds
# beside the run, as JSON that vouches for itself: the record, and the hash of all tensors.
_FACTS, _RECORD, _TENSORS = "facts", "record", "tensors-sha256"
#: What to do about a run's own file that is damaged.
ANEW: Final = "start anew with --overwrite"


@dataclass(frozen=True)
class Kept:
    """A place for something finished, and the run (`pipeline.setup.run_identity`) that it belongs to, if to any."""

    path: Path
    run: str | None = None

    def __str__(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        """Whether there is something."""
        return self.path.exists()

    def remove(self) -> None:
        """Remove what may be there. Raises UserError where the folder cannot be written."""
        remove(self.path)

    def save(self, tensors: Mapping[str, Tensor], record: Any) -> None:
        """Write tensors and a record, a dataclass or values that JSON has, into one safetensors file.

        Raises UserError where the disk is full or the place cannot be written.
        """
        plain, places = dict[str, Tensor](), set[int]()
        for name, tensor in tensors.items():
            contiguous = tensor.detach().cpu().contiguous()
            # No two tensors of a file may lie in one place; all others are written from where they are.
            place = contiguous.untyped_storage().data_ptr()
            plain[name] = contiguous.clone() if place in places else contiguous
            places.add(place)
        facts = {_RECORD: to_json(record), _TENSORS: _digest(plain)} | ({} if self.run is None else {RUN: self.run})
        with whole_file(self.path) as temporary:
            try:
                save_file(plain, temporary, {_FACTS: text_as_written(sealed(facts)).decode()})
            except SafetensorError as error:
                # The library tells the system's refusals in words alone, before 0.6 in those of a debugger.
                if (code := re.search(r"\(os error (\d+)\)|\bOs \{ code: (\d+),", str(error))) is None:
                    raise
                number = int(code[1] or code[2])
                raise OSError(number, os.strerror(number), str(self.path)) from error

    def load(self, record_type: type[Record]) -> tuple[dict[str, Tensor], Record]:
        """What `save` wrote. Raises UserError when the file is damaged, or another run's."""
        return self._loaded(record_type, tensors=True)

    def record(self, record_type: type[Record]) -> Record:
        """The record of what `save` wrote; no tensor is read.

        Raises UserError when it is damaged, or another run's.
        """
        return self._loaded(record_type, tensors=False)[1]

    def save_json(self, record: Any) -> None:
        """Write a dataclass, or a table of values that JSON has.

        Raises UserError where the disk is full or the place cannot be written.
        """
        tree = to_json(record)
        write_bytes(self.path, text_as_written(sealed(tree if self.run is None else {RUN: self.run, **tree})))

    def load_tree(self) -> dict[str, Any]:
        """What `save_json` wrote, as plain values. Raises UserError when the file is damaged, or another run's."""
        try:
            tree = read_sealed(self.path)
        except ValueError as error:
            raise self.damaged(error) from error
        self._check_run(tree.pop(RUN, None))
        return tree

    def load_json(self, record_type: type[Record]) -> Record:
        """What `save_json` wrote. Raises UserError when the file is damaged, or another run's."""
        tree = self.load_tree()
        try:
            return from_json(record_type, tree, where=f"{self.path}:")
        except (ValueError, UserError) as error:  # a grid that cannot be is the one or the other
            raise self.damaged(error) from error

    def give_weights(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Give a module the tensors of this file. Raises UserError where they are not those that it has."""
        try:
            module.load_state_dict(dict(tensors))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.path} holds the weights of another network ({reason}): {ANEW}") from error

    def damaged(self, error: object) -> UserError:
        """The line of a file that is not what was written."""
        line = str(error)
        return UserError(f"{line if str(self.path) in line else f'{self.path} is damaged ({line})'}: {ANEW}")

    def _loaded(self, record_type: type[Record], *, tensors: bool) -> tuple[dict[str, Tensor], Record]:
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):  # a pipe would be waited for
                raise DamagedError(f"{self.path} is no regular file")
            with safe_open(self.path, framework="pt") as file:
                said = (file.metadata() or {}).get(_FACTS, "").encode("utf-8", "replace")
                loaded = {name: file.get_tensor(name) for name in (file.keys() if tensors else ())}
            facts = parse_json(said, self.path)
            if not isinstance(facts, dict):
                raise DamagedError(f"{self.path} is damaged: it does not say what it holds")
            check_seal(facts, said, self.path)
            if tensors and _digest(loaded) != facts.get(_TENSORS):
                raise DamagedError(f"{self.path} was changed after it was written (its SHA-256 differs)")
            self._check_run(facts.get(RUN))
            return loaded, from_json(record_type, facts.get(_RECORD), where=f"{self.path}:")
        except (SafetensorError, OSError, ValueError, OverflowError, RuntimeError) as error:
            raise self.damaged(error) from error

    def _check_run(self, run: object) -> None:
        if self.run is not None and run != self.run:
            raise UserError(
                f"{self.path} is of another run than the settings beside it: put back what was there, or start anew"
                " with --overwrite"
            )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """The hash of tensors with their names, kinds and shapes."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
