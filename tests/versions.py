"""Whether a package is older than a version, where tests expect another thing of older ones."""

from __future__ import annotations

import importlib


def older(package: str, least: str) -> bool:
    """Whether the installed package is older than a version, by the first two numbers of both."""
    installed: str = importlib.import_module(package).__version__
    own, needed = (tuple(map(int, text.split(".")[:2])) for text in (installed, least))
    return own < needed
