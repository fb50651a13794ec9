"""Output folders of runs that have begun, or come to their end, without their stages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from pipeline.config import (
    OutputConfig,
    RunConfig,
)
from pipeline.config.distillation import DistillationConfig
from pipeline.setup.folder_lock import locked
from pipeline.setup.run_folder import RunFolder
from pipeline.setup.state import begin, open_run_folder
from pipeline.tools.kept import Kept

INPUTS = {"teacher": "a network", "data": "some images"}


def config(
    folder: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    restart: bool = False,
    steps: int | None = 5,
    **groups: Any,
) -> RunConfig:
    learning = groups.pop("distillation", DistillationConfig(steps=steps))
    output = OutputConfig(folder=folder, overwrite=overwrite, resume=resume, restart_training=restart)
    return RunConfig(output=output, distillation=learning, **groups)


def left_at(file: Path, step: int) -> None:
    """A checkpoint."""
    Kept(file).save({"weight": torch.zeros(1)}, {"step": step})


def begun(config: RunConfig, inputs: dict[str, str] = INPUTS, settled: dict[str, Any] | None = None) -> RunFolder:
    """The folder of a run whose inputs have been checked."""
    with locked(config.folder, print):
        folder = open_run_folder(config)
        begin(folder, config, inputs, {} if settled is None else settled)
    return folder


def finish(folder: RunFolder) -> None:
    """What a run leaves that has come to its end: its bundle, whose manifest says which run it is of."""
    if folder.bundle.exists():
        shutil.rmtree(folder.bundle)
    folder.bundle.mkdir()
    (folder.bundle / "manifest.json").write_text(json.dumps({"run": folder.identity().run, "files": {}}))
