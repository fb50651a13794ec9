"""The folder of a run: what may be there already, and what a killed run left to go on with."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from calibration.errors import UserError
from pipeline.artifacts import FLOAT_MODEL, load_record
from pipeline.bundle.bundle import MANIFEST, sha256
from pipeline.config import EngineConfig, RunConfig, ValidationConfig, flags
from pipeline.setup.machine.circumstances import versions
from pipeline.setup.resumption import (
    FREE,
    IDENTIFIED,
    Finished,
    Settings,
    changed_keys,
    check_changes,
    check_left_out,
    check_same_inputs,
    decides,
    hashes_of_inputs,
    same_files,
    typed_or_not,
)
from pipeline.setup.settled import BY_INPUTS, settled_by_configuration
from pipeline.tools.atomic import NoRoom, clear_unfinished, remove, writable, write_text

_BEGUN_WITH, _INPUTS, _REPLACES, _SETTLED = "begun-with", "inputs", "replaces", "settled"
_CONTENTS = "contents"

#: Name of the folder of what --resume needs.
STATE = "state"


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
        return self.root / STATE

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

    def beginning(self) -> tuple[int, int] | None:
        """Which run the folder belongs to, a mark that changes where one begins or goes on; None where none has."""
        try:
            status = self.settings.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def holds_work(self) -> bool:
        """Whether an earlier run has left more than its settings and its times."""
        return self.settings.exists() and any(
            kept not in (self.settings, self.seconds) for kept in self.state.iterdir()
        )

    def is_finished(self) -> bool:
        """Whether the bundle is there, and not one that a run begun later with --overwrite is still to replace."""
        replaced = _kept(self)[1].get(_REPLACES) if self.settings.is_file() else None
        return self.bundle.exists() and _manifest_hash(self) != replaced

    def finished(self, *, restart_training: bool = False) -> tuple[Finished, ...]:
        """What is kept of an earlier run; begun training is part of it, unless that is to begin anew."""
        parts = list[Finished]()
        if self.generated.exists():
            parts.append(Finished(name="generated images", what=f"the generated images in {self.root}", several=True))
        if self.float_student.exists():
            parts.append(Finished(name="float student", what=f"the float student in {self.root}"))
        elif self.float_checkpoint.exists() and not restart_training:
            steps = f"{_steps_in(self.float_checkpoint)} of the float student's training in {self.root}"
            parts.append(Finished(name="float student", what=steps, several=True, trained=True))
        if self.prepared.exists():
            parts.append(Finished(name="calibration", what=f"the calibration in {self.root}"))
        files = self._of_training()
        if files == (self.checkpoint,) and not restart_training:
            steps = f"{_steps_in(self.checkpoint)} of training in {self.root}"
            parts.append(Finished(name="training", what=steps, several=True, trained=True))
        elif files and not restart_training:
            parts.append(Finished(name="training", what=f"the training in {self.root}", trained=True))
        return tuple(parts)

    def _of_training(self) -> tuple[Path, ...]:
        """What training of the quantised student has left, every generation of it."""
        files = (self.checkpoint, self.trained, *sorted(self.state.glob("generation*.safetensors")))
        return tuple(file for file in files if file.exists())

    def drop_training(self) -> str | None:
        """Remove what training has left, of the float student too where it is not finished; a line of what that was.

        Raises UserError where the folder cannot be written.
        """
        dropped = [part for part in self.finished() if part.trained]
        for file in (*self._of_training(), *(() if self.float_student.exists() else (self.float_checkpoint,))):
            remove(file)
        if not dropped:
            return None
        several = len(dropped) > 1 or dropped[0].several
        return f"{' and '.join(part.what for part in dropped)} {'are' if several else 'is'} dropped"

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


def is_finished(config: RunConfig) -> bool:
    """Whether a run that goes on has nothing left to do, so that its report is that of the run before."""
    goes_on = config.output.resume and not config.output.restart_training
    return goes_on and RunFolder(root=config.folder).is_finished()


def open_run_folder(config: RunConfig) -> RunFolder:
    """The output folder of a run, which is as it was: `begin` makes room when every input has been checked.

    Raises UserError when it holds another run's results that may not be replaced, when there is nothing to resume, a
    setting differs that decides what is finished there, and when other versions of faqd or torch than began it are to
    go on with it.
    """
    folder = RunFolder(root=config.folder)
    if config.output.resume:
        _check_resumable(folder, config)
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


def begin(
    folder: RunFolder, config: RunConfig, inputs: Mapping[str, str], settled: Mapping[str, Any]
) -> tuple[str, ...]:
    """Make the folder ready for the stages, now that nothing is wrong with the inputs; lines of what goes.

    Without --resume the state of an earlier run goes. With it, the settings that it goes on with take the place of
    those that it was begun with, once networks and images are known to be those that the finished parts were made from.

    Args:
        folder: of the run.
        config: of the run.
        inputs: what each of `pipeline.setup.resumption.INPUTS` holds.
        settled: the settings that these settle (see `pipeline.setup.settled`).

    Raises:
        UserError: they are others, or the folder cannot be written.
    """
    now = _settings(config, settled)
    restart, lines = config.output.restart_training, list[str]()
    record: dict[str, Any] = {_BEGUN_WITH: _versions(), _INPUTS: dict(inputs), _REPLACES: _manifest_hash(folder)}
    record[_CONTENTS] = hashes_of_inputs(now.typed)
    if config.output.resume:
        before, kept = _kept(folder)
        if not restart:
            record[_REPLACES] = kept.get(_REPLACES)
        finished = folder.finished(restart_training=restart)
        changed = changed_keys(before, now)
        check_same_inputs(kept.get(_INPUTS, {}), inputs, changed, now.typed, finished)
        check_changes(before, now, finished)
    with writable(folder.root):
        if not config.output.resume and folder.state.exists():
            shutil.rmtree(folder.state)
        folder.state.mkdir(exist_ok=True)
    if restart:
        # Before the settings are those of a training that has not begun.
        lines += filter(None, [folder.drop_training()])
    write_text(folder.settings, json.dumps({**now.typed, **record, _SETTLED: now.settled}, indent=1) + "\n")
    return tuple(lines)


def clear(folder: RunFolder) -> None:
    """Take away what a killed run was just writing, and put back what it had just moved aside."""
    for place in (folder.root, folder.state):
        with writable(place):
            clear_unfinished(place)


@contextlib.contextmanager
def told_to_resume(folder: RunFolder, *, overwrite: bool) -> Iterator[None]:
    """Say in the line of a disk that is full how to go on, where something is kept that another --output would lose."""
    try:
        yield
    except NoRoom as error:
        if not folder.holds_work() or folder.is_finished():
            raise
        instead = " in place of --overwrite" if overwrite else ""
        raise UserError(
            f"cannot write {error.path}: {error.reason}: make room there, then go on from what is finished with"
            f" --resume{instead}"
        ) from error


def _settings(config: RunConfig, settled: Mapping[str, Any] = MappingProxyType({})) -> Settings:
    """The settings that a run may depend on, as a file holds them."""
    typed, values = json.loads(json.dumps([config.to_json(), {**settled_by_configuration(config), **settled}]))
    return Settings(typed={key: value for key, value in typed.items() if key not in FREE}, settled=values)


def _manifest_hash(folder: RunFolder) -> str | None:
    """Which bundle is in the folder, or None where there is none."""
    manifest = folder.bundle / MANIFEST
    return sha256(manifest) if manifest.is_file() else None


def _versions() -> dict[str, str]:
    """What a resumed run must share with its beginning, to end with the bytes of one that was not interrupted."""
    installed = versions()
    return {name: installed[name] for name in ("faqd", "torch")}


def _steps_in(checkpoint: Path) -> str:
    """How many steps of training a checkpoint is ahead, in words."""
    steps = int(load_record(checkpoint)["step"])
    return f"{steps} step" if steps == 1 else f"{steps} steps"


def _kept(folder: RunFolder) -> tuple[Settings, dict[str, Any]]:
    """The settings that the state belongs to, and what is recorded beside them."""
    try:
        kept: dict[str, Any] = json.loads(folder.settings.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder.settings} is damaged ({error}): start anew with --overwrite") from error
    record = {key: kept.pop(key) for key in (_BEGUN_WITH, _INPUTS, _REPLACES, _SETTLED, _CONTENTS) if key in kept}
    return Settings(typed=kept, settled=record.get(_SETTLED, {})), record


def _check_resumable(folder: RunFolder, config: RunConfig) -> None:
    if not folder.settings.is_file():
        raise UserError(f"--resume: {folder.root} holds no run to go on with; leave --resume out to start one")
    (before, record), now = _kept(folder), _settings(config)
    begun, restart = record.get(_BEGUN_WITH, {}), config.output.restart_training
    finished = folder.finished(restart_training=restart)
    changed = changed_keys(before, now)
    if not folder.is_finished() or restart:
        changed = [key for key in changed if key not in BY_INPUTS and any(decides(key, part.name) for part in finished)]
    check_left_out(before, now, _settings(RunConfig()).typed, changed)
    if folder.is_finished() and not restart:
        changed = [
            key
            for key in changed_keys(before, now)
            if key not in IDENTIFIED
            or not same_files(before.typed.get(key), now.typed.get(key), record.get(_CONTENTS, {}))
        ]
        if changed:
            key = changed[0]
            other = "make another beside it with --output"
            if key in flags.flags(ValidationConfig) or key in flags.flags(EngineConfig):
                other = f"score it otherwise with faqd validate {folder.bundle}"
            elif not any(decides(key, name) for name in ("float student", "calibration")) and decides(key, "training"):
                other = "train it otherwise with --restart-training, which keeps the calibration"
            was, is_now = typed_or_not(before.typed.get(key)), typed_or_not(now.typed.get(key))
            raise UserError(
                f"--resume: --{key} was {was} and is {is_now} now, and the run in {folder.root} is finished: {other},"
                " or start anew with --overwrite"
            )
        return
    check_changes(before, now, finished, later=BY_INPUTS)
    if begun != (running := _versions()):
        first, second = (" and ".join(f"{name} {its}" for name, its in used.items()) for used in (begun, running))
        raise UserError(
            f"--resume: the run in {folder.root} was begun with {first or 'an older faqd'}, this is {second}, which may"
            " end it with other weights: go on with those versions, or start anew with --overwrite"
        )
