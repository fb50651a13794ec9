"""Files of what a run has finished: written at once, read by the run alone that they are of."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from calibration.errors import UserError
from pipeline.tools.atomic import remove, whole_file, write_text

#: Key of a run's identity, in every file that says which run it is of.
RUN: Final = "run"


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

    def save(self, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write tensors and a JSON record into one safetensors file.

        Raises UserError where the disk is full or the place cannot be written.
        """
        plain, places = dict[str, Tensor](), set[int]()
        for name, tensor in tensors.items():
            contiguous = tensor.detach().cpu().contiguous()
            # No two tensors of a file may lie in one place; all others are written from where they are.
            place = contiguous.untyped_storage().data_ptr()
            plain[name] = contiguous.clone() if place in places else contiguous
            places.add(place)
        facts = {"record": json.dumps(record), **({} if self.run is None else {RUN: self.run})}
        with whole_file(self.path) as temporary:
            try:
                save_file(plain, temporary, facts)
            except SafetensorError as error:
                # The library tells the system's refusals in words alone.
                if (code := re.search(r"\(os error (\d+)\)", str(error))) is None:
                    raise
                raise OSError(int(code[1]), os.strerror(int(code[1])), str(self.path)) from error

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `save` wrote. Raises UserError when the file is damaged, or another run's."""
        return self._loaded(tensors=True)

    def record(self) -> dict[str, Any]:
        """The JSON record of what `save` wrote, alone. Raises UserError when the file is damaged, or another run's."""
        return self._loaded(tensors=False)[1]

    def save_json(self, tree: Mapping[str, Any]) -> None:
        """Write a JSON object. Raises UserError where the disk is full or the place cannot be written."""
        whole = tree if self.run is None else {RUN: self.run, **tree}
        write_text(self.path, json.dumps(whole, indent=1))

    def load_json(self) -> dict[str, Any]:
        """What `save_json` wrote. Raises UserError when the file is damaged, or another run's."""
        try:
            tree = json.loads(self.path.read_text(encoding="utf-8"))
            if not isinstance(tree, dict):
                raise ValueError("no JSON object")
        except (ValueError, RecursionError) as error:
            raise self._damaged(error) from error
        self._check_run(tree.pop(RUN, None))
        return tree

    def _loaded(self, *, tensors: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
        try:
            with safe_open(self.path, framework="pt") as file:
                facts = file.metadata() or {}
                record = json.loads(facts["record"])
                if not isinstance(record, dict):
                    raise ValueError("its record is no JSON object")
                self._check_run(facts.get(RUN))
                names = file.keys() if tensors else ()
                return {name: file.get_tensor(name) for name in names}, record
        except (SafetensorError, KeyError, ValueError, RecursionError) as error:
            raise self._damaged(error) from error

    def _check_run(self, run: object) -> None:
        if self.run is not None and run != self.run:
            raise UserError(
                f"{self.path} is of another run than the settings beside it: put back what was there, or start anew"
                " with --overwrite"
            )

    def _damaged(self, error: Exception) -> UserError:
        return UserError(f"{self.path} is damaged ({error}): start anew with --overwrite")
