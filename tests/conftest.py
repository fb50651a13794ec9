"""What all tests share: threads, the folder of shared material, the repository's root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch or numpy are imported: one thread makes sums repeatable and shares a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Folder of the shared data and models: $FAQD_SHARED, else `shared` beside the repository."""
    folder = Path(os.environ.get("FAQD_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"shared material is absent: {folder} is no folder; set FAQD_SHARED to it")
    return folder
