"""Rewrites that say when they are applied and whether they changed something."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch.fx import GraphModule

from backends.facts.profile import Profile
from calibration.rewrites.rewrite import Rewrite
from calibration.rewrites.wide_branches import WIDE_BRANCHES


def recorded_row(row: Rewrite, applied: list[str], changing: set[str] | None = None) -> Rewrite:
    """The row, which adds its name to `applied` when it is applied, and to `changing` when it changed something."""

    def edit(graph_module: GraphModule) -> bool:
        applied.append(row.name)
        changed = row.edit(graph_module)
        if changed and changing is not None:
            changing.add(row.name)
        return changed

    return replace(row, edit=edit)


def recording(profile: Profile, applied: list[str], monkeypatch: pytest.MonkeyPatch) -> Profile:
    """The profile with all rows that a run may apply recorded, that for narrow activations included."""
    monkeypatch.setattr("backends.facts.profile.WIDE_BRANCHES", recorded_row(WIDE_BRANCHES, applied))
    return replace(profile, rewrites=tuple(recorded_row(row, applied) for row in profile.rewrites))
