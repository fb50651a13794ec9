"""One tree of frozen dataclasses that says all of a run: each field's type, default, flag and help, once.

A value that exists is valid. A stage takes the groups that are its own, as losses and training do which it is made of;
other components see none, and nobody but who sets up a run sees the tree.
Every flag without its dashes is also a key of the file given with `--config`.
"""

from pipeline.config.distillation import DistillationConfig
from pipeline.config.execution import LARGEST_SEED, ExecutionConfig, OutputConfig
from pipeline.config.preprocessing import PreprocessingConfig
from pipeline.config.quantisation import Bits, QuantisationConfig
from pipeline.config.run import RunConfig
from pipeline.config.sources import EMBEDDED, NO_DATA, DataConfig, StudentConfig, TeacherConfig, check_source
from pipeline.config.strategy import StrategyConfig
from pipeline.config.validation import ENGINE_GROUP, EngineConfig, ValidationConfig, check_engine

__all__ = [
    "EMBEDDED",
    "ENGINE_GROUP",
    "LARGEST_SEED",
    "NO_DATA",
    "Bits",
    "DataConfig",
    "DistillationConfig",
    "EngineConfig",
    "ExecutionConfig",
    "OutputConfig",
    "PreprocessingConfig",
    "QuantisationConfig",
    "RunConfig",
    "StrategyConfig",
    "StudentConfig",
    "TeacherConfig",
    "ValidationConfig",
    "check_engine",
    "check_source",
]
