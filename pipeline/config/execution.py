"""The machine that trains, and the folder of the results."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from calibration.errors import UserError
from pipeline.config import flags

LARGEST_SEED = 2**63 - 1
"""torch.Generator takes a signed 64-bit seed."""

MOST_THREADS = 1024
"""More than any processor runs at once; torch would try to begin each of them, or end in a traceback [ours]."""


@dataclass(frozen=True, kw_only=True)
class ExecutionConfig:
    """The machine that trains."""

    device: Annotated[
        str,
        Parameter(metavar="auto|cpu|cuda|cuda:N", help="Where training runs; auto: a GPU when there is one."),
    ] = "auto"
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Parameter(
            help="Arithmetic of training; bfloat16: teacher in bfloat16, student in TF32, which holds its integers "
            "exactly; auto: that on a GPU, else float32."
        ),
    ] = "auto"
    seed: Annotated[int, Parameter(metavar="NUMBER", help="Seed of all randomness: same seed, same batches.")] = 0
    training_threads: Annotated[
        int | None,
        Parameter(
            metavar="COUNT",
            help="Threads that calibrate and train, kept by --resume: another number is another seed in the last bits. "
            "Default: as many as torch takes where the run begins.",
        ),
    ] = None

    def __post_init__(self) -> None:
        flags.check_fields(self)
        if self.training_threads is not None:
            flags.check_at_least(self, training_threads=1)
            if self.training_threads > MOST_THREADS:
                raise UserError(f"--training-threads {self.training_threads}: must be 1 to {MOST_THREADS}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UserError(f"--device {self.device}: must be auto, cpu, cuda or cuda:N")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise UserError(f"--seed {self.seed}: must be 0 to {LARGEST_SEED}")


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where the results go, and what may be there already."""

    folder: Annotated[
        Path | None,
        Parameter(name="--output", metavar="DIR", help="Result folder. Default: artifacts/TEACHER-BACKEND-wXaY."),
    ] = None
    overwrite: Annotated[bool, Parameter(help="Replace the results of an earlier run in the folder.")] = False
    resume: Annotated[bool, Parameter(help="Go on after the last finished stage or training checkpoint.")] = False
    restart_training: Annotated[
        bool,
        Parameter(negative=(), help="With --resume: train anew from the first step on, with what is calibrated."),
    ] = False

    def __post_init__(self) -> None:
        flags.check_fields(self)
        if self.overwrite and self.resume:
            raise UserError("--overwrite starts anew and --resume goes on: give one of them")
