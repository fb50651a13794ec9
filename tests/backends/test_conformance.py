"""What every backend of the table promises; a new one is tested the moment it is listed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from backends import BACKENDS, backend_named, title_of
from backends.base import Backend
from backends.lint.rule import lint_rules
from backends.lint.table import lint
from backends.onnx_file.emit import emit
from calibration.errors import MissingExtra, UserError

Build = Callable[..., Any]


@pytest.fixture(params=list(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    try:
        return backend_named(request.param)
    except MissingExtra as missing:
        pytest.skip(str(missing))


def test_it_knows_its_name(backend: Backend) -> None:
    assert BACKENDS[backend.name].make(None).name == backend.name
    assert title_of(backend.name) == BACKENDS[backend.name].title != ""


def test_its_artifact_is_linted_onnx(backend: Backend, build: Build) -> None:
    built = build("residual", backend.profile)
    model = backend.emit(built.frozen, opset=None, batch=None)
    onnx.checker.check_model(model, full_check=True)
    assert lint(model, lint_rules(backend.profile, built.plan)) == []
    assert model.opset_import[0].version == 20
    assert backend.emit(built.frozen, opset=17, batch=2).opset_import[0].version == 17


def test_it_refuses_other_opsets(backend: Backend, build: Build) -> None:
    with pytest.raises(UserError, match="--opset 12"):
        backend.emit(build("residual", backend.profile).frozen, opset=12, batch=None)


def test_it_runs_or_says_why_not(backend: Backend, build: Build) -> None:
    built = build("residual", backend.profile)
    model = backend.emit(built.frozen, opset=None, batch=None).SerializeToString()
    reason = backend.unavailable()
    if reason is not None:
        assert reason.strip() and "\n" not in reason
        with pytest.raises(UserError), backend.runner(model, threads=1):
            pass
        return
    images = built.images.numpy()
    with (
        backend.runner(model, threads=1) as runner,
        backend.runner(emit(built.folded, opset=20).SerializeToString(), threads=2) as plain,
    ):
        (quantised,), (reals,) = runner.run(images), plain.run(images)
        np.testing.assert_array_equal(quantised, runner.run(images)[0])
        np.testing.assert_array_equal(quantised[:3], runner.run(images[:3])[0])
    assert quantised.dtype == reals.dtype == np.float32
    assert quantised.shape == reals.shape == (8, 10)
    assert np.abs(quantised - reals).max() < 0.2 * np.abs(reals).max()


@pytest.mark.parametrize("bits", [4, 8])
def test_its_census_leaves_no_layer_out(backend: Backend, bits: int, build: Build) -> None:
    built = build("residual", backend.profile, bits=bits)
    layers = [placement.layer for placement in built.plan.weights]
    model = backend.emit(built.frozen, opset=None, batch=None).SerializeToString()
    try:
        census = backend.census(model, [*layers, "no_such_layer"])
    except MissingExtra as missing:
        pytest.skip(str(missing))
    assert census.integer == tuple(layers)
    assert census.floating == ("no_such_layer",)
    assert sum(census.histogram.values()) >= len(layers)


def test_a_runner_needs_a_thread(backend: Backend) -> None:
    with pytest.raises((ValueError, UserError)), backend.runner(b"", threads=0):
        pass


def test_what_is_no_model_is_the_users_mistake(backend: Backend) -> None:
    for damaged in (b"", b"not a model", bytes(100)):
        with pytest.raises(UserError), backend.runner(damaged, threads=1):
            pass


def test_an_unknown_backend_is_told_the_known_ones() -> None:
    known = "onnxruntime, tensorrt, openvino, reference"
    with pytest.raises(UserError, match=f"--backend onxruntime: unknown; known are {known}"):
        backend_named("onxruntime")


def test_naming_the_backends_loads_no_runtime() -> None:
    code = (
        "import sys, backends, backends.openvino.backend, backends.placement.place;"
        "import backends.facts.tensorrt_rules, backends.lint.table;"
        "print(sorted({'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx'} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
