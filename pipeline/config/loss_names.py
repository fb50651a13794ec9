"""Names of logit losses, the choices of `--logit-loss`: without torch, as the command line checks a configuration."""

from __future__ import annotations

from typing import Literal

#: Each has its row in `pipeline.distillation.losses.table.LOGIT_LOSSES`.
LogitLossName = Literal["kl", "mse"]
