"""The folder of a run: what may be there already, and what a killed run left to go on with."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from calibration.errors import UserError
from pipeline.artifacts import FLOAT_MODEL
from pipeline.atomic import writable, write_text
from pipeline.circumstances import versions
from pipeline.config import RunConfig

_BEGUN_WITH = "begun-with"
#: Settings that change where or how fast a run goes, not what it makes.
_FREE = frozenset({"output", "overwrite", "resume", "workers", "threads", "batch", "device"}) | frozenset(
    {"max-drop", "output-max-drop", "min-speedup"}
)


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
        """Whether an earlier run has left more than its settings, which a mistake found at start leaves alone."""
        return self.settings.exists() and any(kept != self.settings for kept in self.state.iterdir())

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
    """Check and set up the output folder of a run.

    Raises UserError when it holds another run's results that may not be replaced, when there is nothing to resume
    or the settings differ from those of the run to resume, when other versions of faqd or torch than began it are to
    go on with it, and when it cannot be written.
    """
    folder = RunFolder(root=config.folder)
    settings = {key: value for key, value in config.to_json().items() if key not in _FREE}
    if config.output.resume:
        _check_resumable(folder, settings)
        return folder
    if not config.output.overwrite:
        if folder.bundle.exists():
            raise UserError(
                f"{folder.bundle} exists already: add --overwrite to replace it, or choose another --output"
            )
        if folder.holds_work():
            raise UserError(
                f"{folder.root} holds an interrupted run: add --resume to go on, or --overwrite to start anew"
            )
    with writable(folder.root):
        try:
            folder.root.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # what /proc and its like say: its parents were to be made as well
            raise UserError(f"cannot make the folder {folder.root}: choose another place with --output") from error
        if folder.state.exists():
            shutil.rmtree(folder.state)
        folder.state.mkdir()
    write_text(folder.settings, json.dumps(settings | {_BEGUN_WITH: _versions()}, indent=1) + "\n")
    return folder


def _versions() -> dict[str, str]:
    """What a resumed run must share with its beginning, to end with the bytes of one that was not interrupted."""
    found = versions()
    return {name: found[name] for name in ("faqd", "torch")}


def _check_resumable(folder: RunFolder, settings: dict[str, object]) -> None:
    if not folder.settings.is_file():
        raise UserError(f"--resume: {folder.root} holds no run to go on with; leave --resume out to start one")
    try:
        kept = json.loads(folder.settings.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder.settings} is damaged ({error}): start anew with --overwrite") from error
    begun, now = kept.pop(_BEGUN_WITH, {}), json.loads(json.dumps(settings))
    changed = sorted(key for key in now.keys() | kept.keys() if now.get(key) != kept.get(key))
    if changed:
        key = changed[0]
        raise UserError(
            f"--resume: --{key} was {kept.get(key)!r} and is {now.get(key)!r} now: give the settings of the run that is"
            " to go on, or start anew with --overwrite"
        )
    if begun != (running := _versions()) and not folder.bundle.exists():
        first, second = (" and ".join(f"{name} {found}" for name, found in used.items()) for used in (begun, running))
        raise UserError(
            f"--resume: the run in {folder.root} was begun with {first or 'an older faqd'}, this is {second}, which may"
            " end it with other weights: go on with those versions, or start anew with --overwrite"
        )
