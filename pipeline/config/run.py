"""The whole tree of a run: its groups of settings and what they must be together."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from backends.device.bundle_check import records
from calibration.errors import UserError
from pipeline.config import flags
from pipeline.config.distillation import DistillationConfig
from pipeline.config.execution import ExecutionConfig, OutputConfig
from pipeline.config.flag_meaning import check_meanings
from pipeline.config.post_training import check_post_training
from pipeline.config.preprocessing import PreprocessingConfig
from pipeline.config.quantisation import QuantisationConfig
from pipeline.config.sources import EMBEDDED, NO_DATA, DataConfig, StudentConfig, TeacherConfig
from pipeline.config.strategy import StrategyConfig
from pipeline.config.validation import ENGINE_GROUP, EngineConfig, ValidationConfig, check_engine


def _group(title: str) -> Parameter:
    return Parameter(name="*", group=Group.create_ordered(title))


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that decides a run."""

    teacher: Annotated[TeacherConfig, _group("Teacher")] = field(default_factory=TeacherConfig)
    preprocessing: Annotated[PreprocessingConfig, _group("Preprocessing")] = field(default_factory=PreprocessingConfig)
    student: Annotated[StudentConfig, _group("Student")] = field(default_factory=StudentConfig)
    data: Annotated[DataConfig, _group("Data")] = field(default_factory=DataConfig)
    strategy: Annotated[StrategyConfig, _group("Strategy")] = field(default_factory=StrategyConfig)
    quantisation: Annotated[QuantisationConfig, _group("Quantisation")] = field(default_factory=QuantisationConfig)
    distillation: Annotated[DistillationConfig, _group("Distillation")] = field(default_factory=DistillationConfig)
    validation: Annotated[ValidationConfig, _group("Validation")] = field(default_factory=ValidationConfig)
    engine: Annotated[EngineConfig, Parameter(name="*", group=ENGINE_GROUP)] = field(default_factory=EngineConfig)
    execution: Annotated[ExecutionConfig, _group("Execution")] = field(default_factory=ExecutionConfig)
    output: Annotated[OutputConfig, _group("Output")] = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        flags.check_groups(self)
        if self.data.source == NO_DATA and self.distillation.label_weight is not None:
            raise UserError(f"--label-weight {self.distillation.label_weight} needs labels, and --data none has none")
        if self.quantisation.dynamic_size and self.student.source is not None:
            raise UserError("--dynamic-size takes the teacher as the student: leave --student out")
        kind, fixed = self.teacher.source.partition(":")[0], self.quantisation.static_batch
        if fixed is not None and self.validation.batch not in (1, fixed):
            raise UserError(f"--batch {self.validation.batch}: --static-batch makes a model of batch {fixed} alone")
        # The user's own builder may well be for digits; every other source is a network of something else.
        if self.data.source == EMBEDDED and kind not in (EMBEDDED, "python") and not kind.endswith(".py"):
            raise UserError(
                f"--teacher {self.teacher.source} needs images of its own kind: add --data images:FOLDER or "
                "npz:FILE#key (the embedded digits suit only the embedded teacher)"
            )
        check_engine(self.engine, backend=self.quantisation.backend, batch=self.validation.batch)
        if self.quantisation.quantiser != "faqd":
            check_post_training(self.to_json())
        settings, defaults = self.to_json(), default_settings()
        check_meanings(settings, [key for key, value in settings.items() if value != defaults[key]])

    @property
    def grids(self) -> QuantisationConfig:
        """The section of quantisation, with the roundings that the strategy takes."""
        return self.strategy.grids(self.quantisation)

    @property
    def learning(self) -> DistillationConfig:
        """The section of distillation, without steps where the strategy has none."""
        return self.strategy.learning(self.distillation)

    @property
    def evaluation_source(self) -> str | None:
        """Source of the images to score on; None: agreement on held-out images of the training source."""
        return self.validation.eval_data or (EMBEDDED if self.data.source == EMBEDDED else None)

    @property
    def folder(self) -> Path:
        """Result folder: the one given, else named after teacher, backend, target where one is given, and bits."""
        if self.output.folder is not None:
            return self.output.folder
        teacher = re.sub(r"[^A-Za-z0-9._]+", "-", self.teacher.source).strip("-.")
        bits = f"w{self.quantisation.bits}a{self.quantisation.activation_bits}"
        runtime = "-".join(filter(None, (self.quantisation.backend, self.quantisation.target)))
        other = "" if self.quantisation.quantiser == "faqd" else f"-{self.quantisation.quantiser}"
        return Path("artifacts") / f"{teacher}-{runtime}-{bits}{other}"

    def to_json(self) -> dict[str, Any]:
        """Return one flat JSON object: flag without dashes -> value, None where unset."""
        return flags.settings_of(self)

    @classmethod
    def from_json(cls, settings: dict[str, Any], *, where: str = "configuration") -> RunConfig:
        """Build a configuration from `to_json`'s object; absent keys take their defaults.

        Raises:
            UserError: a key is unknown or a value is not allowed.
        """
        return flags.configuration_of(cls, settings, where=where)


def default_settings() -> dict[str, Any]:
    """The flat settings of a run for which nothing is asked."""
    groups = (records.plain_hint(hint) for hint in records.hints(RunConfig).values())
    return {key: value for group in groups for key, value in flags.settings_of(group()).items()}
