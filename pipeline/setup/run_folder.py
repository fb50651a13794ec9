"""The folder of a run: where what a run makes lies, and what of it is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from backends.device.bundle_check.records import value_from_json
from backends.device.bundle_check.stored import DamagedError, digest_of_file, read_whole
from backends.onnx_file.serialised import DATA_SUFFIX
from calibration.errors import UserError
from pipeline.artifacts import FLOAT_MODEL, TrainingFiles
from pipeline.bundle.bundle import REPORT, float_digest, run_of
from pipeline.distillation.training.learner import Place
from pipeline.setup.folder_lock import LOCK
from pipeline.setup.own_files import BUNDLE, OF_A_RUN, PAGE, SETTINGS, STATE
from pipeline.setup.resumption import Finished, Settings
from pipeline.setup.run_identity import RunIdentity
from pipeline.tools.atomic import remove, unfinished, writable, write_bytes
from pipeline.tools.kept import ANEW, RUN, Kept

#: Keys of SETTINGS beside the settings: versions that the run was begun with, what its inputs hold by flag and by path,
#: its identity, the settings as they came out, and the instruction sets of
#: the processors that it was computed on.
BEGUN_WITH: Final = "begun-with"
INPUTS_HELD: Final = "inputs"
CONTENTS: Final = "contents"
IDENTITY: Final = "identity"
SETTLED: Final = "settled"
PROCESSORS: Final = "processors"
RECORDED: Final[Mapping[str, Any]] = {
    BEGUN_WITH: dict[str, str],
    INPUTS_HELD: dict[str, str],
    CONTENTS: dict[str, str],
    IDENTITY: dict[str, Any],
    SETTLED: dict[str, Any],
    PROCESSORS: tuple[str, ...],
}
_MOST_REPORT = 1 << 28
#: What a flag may hold.
Typed = bool | int | float | str | tuple[bool | int | float | str, ...] | None

Part = Literal["generated images", "float student", "calibration"]


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Paths inside a run's output folder."""

    root: Path

    @property
    def bundle(self) -> Path:
        """The finished bundle."""
        return self.root / BUNDLE

    @property
    def state(self) -> Path:
        """What a resumed run reads."""
        return self.root / STATE

    @property
    def settings(self) -> Path:
        """The configuration that the state belongs to."""
        return self.state / SETTINGS

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
        """Whether the bundle that is there is of the run that the settings are of."""
        if not self.settings.is_file() or not self.bundle.exists():
            return False
        known = self.kept()[1].get(IDENTITY)
        return isinstance(known, dict) and known.get(RUN) == run_of(self.bundle) is not None

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

    def of(self, part: Part) -> Kept:
        """Where one of the parts that are finished at once is kept.

        Raises UserError where the state does not say which run it belongs to.
        """
        places = {
            "generated images": self.generated,
            "float student": self.float_student,
            "calibration": self.prepared,
        }
        return Kept(places[part], self.identity().parts[part])

    def training_of_float(self) -> TrainingFiles:
        """Where float distillation keeps its position, and its student."""
        place = self.of("float student")
        return TrainingFiles(checkpoint=Kept(self.float_checkpoint, place.run), students=(place,))

    def training(self, generations: int) -> TrainingFiles:
        """Where distillation keeps its position, and its students: those before the last are numbered from 0."""
        run = self.identity().parts["training"]
        earlier = (self.state / f"generation{number}.safetensors" for number in range(generations - 1))
        return TrainingFiles(
            checkpoint=Kept(self.checkpoint, run), students=tuple(Kept(file, run) for file in (*earlier, self.trained))
        )

    @property
    def float_model(self) -> Path:
        """The float counterpart of the artifact, for comparisons; not part of the bundle."""
        return self.root / FLOAT_MODEL

    @property
    def float_of_next_bundle(self) -> Path:
        """The same until the bundle is there that it belongs to: an earlier one keeps its own as long."""
        return self.state / FLOAT_MODEL

    def identity(self) -> RunIdentity:
        """Which run the state belongs to.

        Raises UserError where it does not say, as versions before this one have left it.
        """
        return RunIdentity.from_json(self.kept()[1].get(IDENTITY), where=str(self.settings))

    def is_trained(self) -> bool:
        """Whether nothing is left to be computed but the files."""
        return self.trained.exists()

    def threads(self) -> int:
        """Threads that calibrate and train in this run."""
        return int(self.kept()[0].settled["training-threads"])

    def remarks(self) -> tuple[str, ...]:
        """What there is to say of how the run came about, a line each."""
        processors = self.kept()[1].get(PROCESSORS, [])
        if len(processors) < 2:
            return ()
        others = ", then ".join(processors[1:])
        return (
            f"WARNING: the run was begun on {processors[0]} and went on on {others}: weights may be others, in last"
            " bits, than those of a run on one processor",
        )

    def is_whole(self) -> bool:
        """Whether all that belongs beside a finished bundle is there, and nothing that a killed run left."""
        if self.float_of_next_bundle.exists() or (self.root / LOCK).exists():
            return False
        if unfinished(self.root, OF_A_RUN) or unfinished(self.state):
            return False
        return all(_content(self.root / name) == _content(self.bundle / name) for name in (REPORT, PAGE))

    def make_whole(self) -> None:
        """Lay beside a bundle what belongs there: the float model that waits for it, and its reports.

        A run does so when its bundle is there, and one that goes on where an earlier one was killed just then.
        Raises UserError when the folder cannot be written.
        """
        with writable(self.root):
            waiting = self.float_of_next_bundle
            if waiting.exists():
                data, place = (file.with_name(FLOAT_MODEL + DATA_SUFFIX) for file in (waiting, self.float_model))
                if data.exists():
                    data.replace(place)
                elif digest_of_file(waiting) == float_digest(self.bundle):  # there is no second file
                    place.unlink(missing_ok=True)
                waiting.replace(self.float_model)
        for name in (REPORT, PAGE):
            if (content := _content(self.bundle / name)) != _content(self.root / name) and content is not None:
                write_bytes(self.root / name, content)

    def kept(self) -> tuple[Settings, dict[str, Any]]:
        """The settings that the state belongs to, and what is recorded beside them.

        Raises UserError where the file is damaged.
        """
        kept = Kept(self.settings).load_tree()
        record: dict[str, Any] = {key: kept.pop(key) for key in RECORDED if key in kept}
        try:
            for key, hint in RECORDED.items():
                if key in record:
                    value_from_json(record[key], hint, where=f"{self.settings}: {key}")
            value_from_json(kept, dict[str, Typed], where=f"{self.settings}:")
        except ValueError as error:
            raise UserError(f"{error}: {ANEW}") from error
        return Settings(typed=kept, settled=record.get(SETTLED, {})), record


def _content(file: Path) -> bytes | None:
    """What a report's file holds; None where there is none, or something else."""
    try:
        return read_whole(file, most=_MOST_REPORT)
    except DamagedError:
        return None


def _steps_in(checkpoint: Path) -> str:
    """How many steps of training a checkpoint is ahead, in words."""
    steps = Kept(checkpoint).record(Place).step
    return f"{steps} step" if steps == 1 else f"{steps} steps"
