"""What the tests of the public face share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def quick_runs(little_time_for_latency: None, digits_captured_once: None) -> None:
    """No test here is about times, nor about how the embedded network is captured."""
