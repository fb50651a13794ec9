"""The folder of a run: what each file in it is called, and which run what lies there must be of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.artifacts import FLOAT_MODEL, TrainingFiles
from pipeline.setup.own_files import (
    BUNDLE,
    CHECKPOINT,
    FLOAT_CHECKPOINT,
    FLOAT_STUDENT,
    GENERATED,
    GENERATION,
    MEASURED,
    PREPARED,
    RECONSTRUCTED,
    SECONDS,
    SETTINGS,
    STATE,
    TRAINED,
)
from pipeline.setup.recorded import Recorded
from pipeline.setup.run_identity import RunIdentity
from pipeline.tools.kept import Kept

Part = Literal["generated images", "float student", "calibration", "reconstruction"]


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Places inside a run's output folder; what is there, `pipeline.setup.left_in_folder` says."""

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
        return self.state / SECONDS

    @property
    def prepared(self) -> Path:
        """Plan and calibrated ranges."""
        return self.state / PREPARED

    @property
    def reconstructed(self) -> Path:
        """Weights as they are rounded before any training."""
        return self.state / RECONSTRUCTED

    @property
    def measured(self) -> Path:
        """What was measured of students on the way to a goal."""
        return self.state / MEASURED

    @property
    def checkpoint(self) -> Path:
        """Position within distillation."""
        return self.state / CHECKPOINT

    @property
    def trained(self) -> Path:
        """The student after distillation."""
        return self.state / TRAINED

    @property
    def generated(self) -> Path:
        """Images generated where none were given."""
        return self.state / GENERATED

    @property
    def float_student(self) -> Path:
        """A student of another architecture after float distillation."""
        return self.state / FLOAT_STUDENT

    @property
    def float_checkpoint(self) -> Path:
        """Position within float distillation."""
        return self.state / FLOAT_CHECKPOINT

    @property
    def float_model(self) -> Path:
        """The float counterpart of the artifact, for comparisons; not part of the bundle."""
        return self.root / FLOAT_MODEL

    @property
    def float_of_next_bundle(self) -> Path:
        """The same until the bundle is there that it belongs to: an earlier one keeps its own as long."""
        return self.state / FLOAT_MODEL

    def trainings(self) -> tuple[Path, ...]:
        """What training of the quantised student has left, every generation of it."""
        files = (self.checkpoint, self.trained, *sorted(self.state.glob(GENERATION.format("*"))))
        return tuple(file for file in files if file.exists())

    def recorded(self) -> Recorded:
        """What is recorded of the run that the state belongs to. Raises UserError where the file is damaged."""
        return Recorded.read(self.settings)

    def identity(self) -> RunIdentity:
        """Which run the state belongs to.

        Raises UserError where it does not say, as versions before this one have left it.
        """
        return self.recorded().identity_in(self.settings)

    def of(self, part: Part) -> Kept:
        """Where one of the parts that are finished at once is kept.

        Raises UserError where the state does not say which run it belongs to.
        """
        places = {
            "generated images": self.generated,
            "float student": self.float_student,
            "calibration": self.prepared,
            "reconstruction": self.reconstructed,
        }
        return Kept(places[part], self.identity().parts[part])

    def training_of_float(self) -> TrainingFiles:
        """Where float distillation keeps its position, and its student."""
        place = self.of("float student")
        return TrainingFiles(checkpoint=Kept(self.float_checkpoint, place.run), students=(place,))

    def training(self, generations: int) -> TrainingFiles:
        """Where distillation keeps its position, and its students: those before the last are numbered from 0."""
        run = self.identity().parts["training"]
        earlier = (self.state / GENERATION.format(number) for number in range(generations - 1))
        return TrainingFiles(
            checkpoint=Kept(self.checkpoint, run), students=tuple(Kept(file, run) for file in (*earlier, self.trained))
        )
