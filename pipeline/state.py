"""The folder of a run: what may be there already, and what a killed run left to go on with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.errors import UserError
from pipeline.artifacts import FLOAT_MODEL
from pipeline.atomic import clear_unfinished, writable, write_text
from pipeline.bundle import MANIFEST, sha256
from pipeline.circumstances import versions
from pipeline.config import RunConfig
from pipeline.resumption import FREE, changed_keys, check_changes, check_same_inputs

_BEGUN_WITH, _INPUTS, _REPLACES = "begun-with", "inputs", "replaces"


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Paths inside a run's output folder."""

    root: Path

    @property
    def bundle(self) -> Path:
        """The finished bundle."""
        return self.root / "bundle"

    @property
    def state(self) -> Path:
        """What a resumed run reads."""
        return self.root / "state"

    @property
    def settings(self) -> Path:
        """The configuration that the state belongs to."""
        return self.state / "settings.json"

    @property
    def seconds(self) -> Path:
        """How long the stages have taken so far."""
        return self.state / "seconds.json"

    @property
    def prepared(self) -> Path:
        """Plan and calibrated ranges."""
        return self.state / "prepared.json"

    @property
    def checkpoint(self) -> Path:
        """Position within distillation."""
        return self.state / "checkpoint.safetensors"

    @property
    def trained(self) -> Path:
        """The student after distillation."""
        return self.state / "trained.safetensors"

    @property
    def generated(self) -> Path:
        """Images generated where none were given."""
        return self.state / "generated.safetensors"

    def holds_work(self) -> bool:
        """Whether an earlier run has left more than its settings and its times."""
        return self.settings.exists() and any(
            kept not in (self.settings, self.seconds) for kept in self.state.iterdir()
        )

    def is_finished(self) -> bool:
        """Whether the bundle is there, and not one that a run begun later with --overwrite is still to replace."""
        replaced = _kept(self).get(_REPLACES) if self.settings.is_file() else None
        return self.bundle.exists() and _manifest_hash(self) != replaced

    def finished(self) -> tuple[str, ...]:
        """What is kept of an earlier run, as `pipeline.resumption` names it; begun training is part of it."""
        kept = {
            "generated images": (self.generated,),
            "float student": (self.float_student, self.float_checkpoint),
            "calibration": (self.prepared,),
            "training": (self.trained, self.checkpoint, self.generation(0)),
        }
        return tuple(name for name, files in kept.items() if any(file.exists() for file in files))

    @property
    def float_student(self) -> Path:
        """A student of another architecture after float distillation."""
        return self.state / "float.safetensors"

    @property
    def float_checkpoint(self) -> Path:
        """Position within float distillation."""
        return self.state / "float-checkpoint.safetensors"

    def generation(self, number: int) -> Path:
        """A student of the chain that is not the last, numbered from 0, after distillation."""
        return self.state / f"generation{number}.safetensors"

    @property
    def float_model(self) -> Path:
        """The float counterpart of the artifact, for comparisons; not part of the bundle."""
        return self.root / FLOAT_MODEL


def open_folder(config: RunConfig) -> RunFolder:
    """The output folder of a run, which is as it was: `begin` makes room when every input has been checked.

    Raises UserError when it holds another run's results that may not be replaced, when there is nothing to resume, a
    setting differs that decides what is finished there, and when other versions of faqd or torch than began it are to
    go on with it.
    """
    folder = RunFolder(root=config.folder)
    if config.output.resume:
        _check_resumable(folder, _settings(config))
    elif not config.output.overwrite:
        if folder.bundle.exists():
            raise UserError(
                f"{folder.bundle} exists already: add --overwrite to replace it, or choose another --output"
            )
        if folder.holds_work():
            raise UserError(
                f"{folder.root} holds an interrupted run: add --resume to go on, or --overwrite to start anew"
            )
    return folder


def begin(folder: RunFolder, config: RunConfig, inputs: Mapping[str, str]) -> None:
    """Make the folder ready for the stages, now that nothing is wrong with the inputs; `inputs`: what each flag names.

    Without --resume the state of an earlier run goes. With it, the settings that it goes on with take the place of
    those that it was begun with, once networks and images are known to be those that the finished parts were made from.

    Raises:
        UserError: they are others, or the folder cannot be written.
    """
    record = {_BEGUN_WITH: _versions(), _INPUTS: dict(inputs), _REPLACES: _manifest_hash(folder)}
    settings = _settings(config)
    if config.output.resume:
        kept = _kept(folder)
        record[_REPLACES] = kept.get(_REPLACES)
        check_same_inputs(kept.get(_INPUTS, {}), inputs, settings, folder.finished(), folder=str(folder.root))
    with writable(folder.root):
        if not config.output.resume and folder.state.exists():
            shutil.rmtree(folder.state)
        folder.state.mkdir(exist_ok=True)
    write_text(folder.settings, json.dumps(settings | record, indent=1) + "\n")


def clear(folder: RunFolder) -> None:
    """Take away what a killed run was just writing, and put back what it had just moved aside."""
    for place in (folder.root, folder.state):
        with writable(place):
            clear_unfinished(place)


def _settings(config: RunConfig) -> dict[str, Any]:
    """The settings that a run may depend on, as a file holds them."""
    settings: dict[str, Any] = json.loads(json.dumps(config.to_json()))
    return {key: value for key, value in settings.items() if key not in FREE}


def _manifest_hash(folder: RunFolder) -> str | None:
    """Which bundle is in the folder, or None where there is none."""
    manifest = folder.bundle / MANIFEST
    return sha256(manifest) if manifest.is_file() else None


def _versions() -> dict[str, str]:
    """What a resumed run must share with its beginning, to end with the bytes of one that was not interrupted."""
    found = versions()
    return {name: found[name] for name in ("faqd", "torch")}


def _kept(folder: RunFolder) -> dict[str, Any]:
    try:
        kept: dict[str, Any] = json.loads(folder.settings.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder.settings} is damaged ({error}): start anew with --overwrite") from error
    return kept


def _check_resumable(folder: RunFolder, settings: Mapping[str, Any]) -> None:
    if not folder.settings.is_file():
        raise UserError(f"--resume: {folder.root} holds no run to go on with; leave --resume out to start one")
    kept = _kept(folder)
    begun, _ = kept.pop(_BEGUN_WITH, {}), kept.pop(_INPUTS, {})
    kept.pop(_REPLACES, None)
    if folder.is_finished():
        if changed := changed_keys(kept, settings):
            key = changed[0]
            raise UserError(
                f"--resume: --{key} was {kept.get(key)!r} and is {settings.get(key)!r} now, and the run in"
                f" {folder.root} is finished: score it otherwise with faqd validate {folder.bundle}, or start anew"
                " with --overwrite"
            )
        return
    check_changes(kept, settings, folder.finished(), folder=str(folder.root))
    if begun != (running := _versions()):
        first, second = (" and ".join(f"{name} {found}" for name, found in used.items()) for used in (begun, running))
        raise UserError(
            f"--resume: the run in {folder.root} was begun with {first or 'an older faqd'}, this is {second}, which may"
            " end it with other weights: go on with those versions, or start anew with --overwrite"
        )
