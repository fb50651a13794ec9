"""Quantise a vision network without labels, and prove on its runtime that it still works.

A whole run, as on the command line:

    report = faqd.run(faqd.RunConfig(...))    its files and bundle are in config.folder

Its steps, each usable alone:

    network = faqd.capture(model)             your own nn.Module; faqd.load_network("torchvision:resnet18") by name
    images = faqd.open_images("photos", network)
    student = faqd.prepare(network, images)   quantised and calibrated; student.module is a plain nn.Module
    student = faqd.distil(student, network, images)
    artifact = faqd.convert(student)          artifact.save(path), artifact.run(images)
    report = faqd.validate(artifact)          or a bundle, or its folder
    bundle = faqd.write_bundle(artifact, folder)

and for a bundle faqd.read_bundle(folder), faqd.validate(bundle), faqd.compare(bundle). help(faqd.prepare) and its
siblings say what each takes; their keywords are fields of the classes named ...Config. Mistakes in the input are
faqd.UserError, one line each. Importing this is quick: torch is imported by what needs it.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from faqd.api import compare, run, validate, write_bundle
from faqd.chain import capture, convert, distil, load_network, open_images, prepare, read_bundle
from faqd.own_packages import own

# As the command line does: read by torch's threads when torch is first imported, which nothing here has done yet.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from calibration.errors import UserError
    from faqd.results import Artifact, Images, Student
    from pipeline import __version__
    from pipeline.artifacts import Network
    from pipeline.bundle.bundle import Bundle
    from pipeline.config import (
        DataConfig,
        DistillationConfig,
        EngineConfig,
        ExecutionConfig,
        OutputConfig,
        PreprocessingConfig,
        QuantisationConfig,
        RunConfig,
        StrategyConfig,
        StudentConfig,
        TeacherConfig,
        ValidationConfig,
    )
    from pipeline.config.compare import CompareConfig
    from pipeline.images.preprocessing import Preprocessing
    from pipeline.report.comparison import ComparisonReport
    from pipeline.report.schema import Report
    from pipeline.tools.progress import Progress

__all__ = [
    "Artifact",
    "Bundle",
    "CompareConfig",
    "ComparisonReport",
    "DataConfig",
    "DistillationConfig",
    "EngineConfig",
    "ExecutionConfig",
    "Images",
    "Network",
    "OutputConfig",
    "Preprocessing",
    "PreprocessingConfig",
    "Progress",
    "QuantisationConfig",
    "Report",
    "RunConfig",
    "StrategyConfig",
    "Student",
    "StudentConfig",
    "TeacherConfig",
    "UserError",
    "ValidationConfig",
    "__version__",
    "capture",
    "compare",
    "convert",
    "distil",
    "load_network",
    "open_images",
    "prepare",
    "read_bundle",
    "run",
    "validate",
    "write_bundle",
]

_MODULES = {
    "Artifact": "faqd.results",
    "Bundle": "pipeline.bundle.bundle",
    "CompareConfig": "pipeline.config.compare",
    "ComparisonReport": "pipeline.report.comparison",
    "Images": "faqd.results",
    "Network": "pipeline.artifacts",
    "Preprocessing": "pipeline.images.preprocessing",
    "Progress": "pipeline.tools.progress",
    "Report": "pipeline.report.schema",
    "Student": "faqd.results",
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
