"""What `faqd compare` is told: each field's type, default, flag and help, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from calibration.errors import UserError
from pipeline.config import flags
from pipeline.config.sources import check_source

COUNT = 64
"""Images of --data that are compared where nothing is said."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What a bundle's model is compared with, tensor by tensor, and on which images."""

    against: Annotated[
        Path | None,
        Parameter(metavar="FILE.onnx", help="Another model to compare with. Default: the bundle's own on its runtime."),
    ] = None
    data: Annotated[
        str | None,
        Parameter(metavar="KIND:REST", help="Images to compare on, as of run. Default: the bundle's golden images."),
    ] = None
    count: Annotated[int, Parameter(metavar="COUNT", help="Images of --data at most.")] = COUNT
    tolerance: Annotated[
        int, Parameter(metavar="STEPS", help="Steps of its grid by which an integer may differ and count as equal.")
    ] = 0
    threads: Annotated[int | None, Parameter(metavar="COUNT", help="Threads of the runtime. Default: all.")] = None

    def __post_init__(self) -> None:
        flags.check_fields(self)
        if self.data is not None:
            check_source("data", self.data)
        elif self.count != COUNT:
            raise UserError(f"--count {self.count} has no meaning without --data: all golden images are compared")
        flags.check_at_least(self, count=1, tolerance=0, threads=1)
