"""Quantise a vision network without labels, and prove on its runtime that it still works.

What is listed here is public; importing it is quick, and torch is imported by what needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from faqd.api import compare, run, validate
from faqd.own_packages import own

if TYPE_CHECKING:
    from calibration.errors import UserError
    from pipeline import __version__
    from pipeline.config import (
        DataConfig,
        DistillationConfig,
        EngineConfig,
        ExecutionConfig,
        OutputConfig,
        PreprocessingConfig,
        QuantisationConfig,
        RunConfig,
        StudentConfig,
        TeacherConfig,
        ValidationConfig,
    )
    from pipeline.config.compare import CompareConfig
    from pipeline.report.comparison import ComparisonReport
    from pipeline.report.schema import Report

__all__ = [
    "CompareConfig",
    "ComparisonReport",
    "DataConfig",
    "DistillationConfig",
    "EngineConfig",
    "ExecutionConfig",
    "OutputConfig",
    "PreprocessingConfig",
    "QuantisationConfig",
    "Report",
    "RunConfig",
    "StudentConfig",
    "TeacherConfig",
    "UserError",
    "ValidationConfig",
    "__version__",
    "compare",
    "run",
    "validate",
]

_MODULES = {
    "CompareConfig": "pipeline.config.compare",
    "ComparisonReport": "pipeline.report.comparison",
    "Report": "pipeline.report.schema",
    "UserError": "calibration.errors",
    "__version__": "pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with own():
        public = getattr(importlib.import_module(_MODULES.get(name, "pipeline.config")), name)
    globals()[name] = public
    return public


def __dir__() -> list[str]:
    return sorted(__all__)
