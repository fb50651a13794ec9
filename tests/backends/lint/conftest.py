"""A residual network as each target gets it, to be changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from backends.lint.rule import LintRules
from tests.mutants import Mutant, rules_of

Build = Callable[..., Any]


@pytest.fixture
def residual(build: Build) -> tuple[Mutant, LintRules, Any]:
    """The file of a residual network for ONNX Runtime, its rules, and images."""
    built = build("residual")
    return Mutant(built.model()), rules_of(built), built.images


@pytest.fixture
def for_tensorrt(build: Build) -> tuple[Mutant, LintRules]:
    """The same network's file for TensorRT, and its rules."""
    built = build("residual", "tensorrt")
    return Mutant(built.model()), rules_of(built)
