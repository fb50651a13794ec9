"""The commands as functions; what they need is imported when they are called."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from faqd.own_packages import own

Configuration = TypeVar("Configuration")

if TYPE_CHECKING:
    from pipeline.config import EngineConfig, RunConfig, ValidationConfig
    from pipeline.config.compare import CompareConfig
    from pipeline.report.comparison import ComparisonReport
    from pipeline.report.schema import Report
    from pipeline.tools.progress import Progress


def run(config: RunConfig | None = None, *, progress: Progress | None = None) -> Report:
    """Quantise, distil, convert and validate a network; the report, whose files and bundle are in `config.folder` then.

    `config` None: the embedded digits. `progress` None: nothing is said on the way.

    Raises:
        UserError: a mistake in the input, as one line.
    """
    with own():
        from pipeline.config import RunConfig
        from pipeline.run import run as run_pipeline
        from pipeline.tools.progress import SilentProgress

        return run_pipeline(_configured(config, RunConfig), progress or SilentProgress())


def validate(
    bundle: str | PathLike[str],
    config: ValidationConfig | None = None,
    *,
    engine: EngineConfig | None = None,
    emulate: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Validate the bundle of a run on this machine's runtime, or on an emulated processor (x86-avx2 or arm64).

    Raises:
        UserError: a mistake in the input, as one line.
    """
    with own():
        from pipeline.config import EngineConfig, ValidationConfig
        from pipeline.run import validate_bundle
        from pipeline.tools.progress import SilentProgress

        return validate_bundle(
            Path(bundle),
            _configured(config, ValidationConfig),
            _configured(engine, EngineConfig),
            progress or SilentProgress(),
            emulate=emulate,
        )


def compare(
    bundle: str | PathLike[str], config: CompareConfig | None = None, *, progress: Progress | None = None
) -> ComparisonReport:
    """Compare a bundle's integers with its runtime's, or with another model's, tensor by tensor.

    Raises:
        UserError: a mistake in the input, as one line.
    """
    with own():
        from pipeline.config.compare import CompareConfig
        from pipeline.run import compare as compare_models
        from pipeline.tools.progress import SilentProgress

        return compare_models(Path(bundle), _configured(config, CompareConfig), progress or SilentProgress())


def _configured(config: Configuration | None, kind: type[Configuration]) -> Configuration:
    """The configuration of a command, its defaults where none is given; UserError where it is something else."""
    from calibration.errors import UserError

    if config is not None and not isinstance(config, kind):
        raise UserError(f"{config!r} is no configuration of this command: give a {kind.__name__}, faqd.{kind.__name__}")
    return kind() if config is None else config
