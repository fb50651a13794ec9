"""What the tests of the public face share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def quick_latency(little_time_for_latency: None) -> None:
    """No test here is about times."""
