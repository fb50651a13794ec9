"""The same integers on every processor: ONNX Runtime's kernels of another one, run by QEMU, against the oracle."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backends.base import Backend
from backends.facts.cpu import host_cpu
from backends.facts.onnxruntime_rules import ARM64, CPU_PROFILES, X64, X64_PRECISE, X64_WITHOUT_VNNI
from backends.facts.profile import Profile
from backends.onnx_file.exposed import exposed
from backends.onnxruntime.backend import OnnxRuntime
from backends.onnxruntime.emulation import EMULATED, EmulatedOnnxRuntime, emulated_command
from backends.onnxruntime.emulation_setup import WHEELS, wheels_for
from backends.oracle.backend import IntegerOracle
from calibration.errors import UserError
from pipeline.networks.architectures.cifar_resnet import CifarResNet
from tests.zoo import ZOO

Build = Callable[..., Any]
#: A plain residual network, depthwise convolutions with ReLU6, and squeeze-excite blocks with ReLU: all integers.
NETWORKS = ("resnet20", "mobilenet_v2", "regnet_y_400mf")


def backend_on(profile: Profile) -> Backend:
    """The runtime on the profile's processor, emulated where it is not the one here."""
    return OnnxRuntime(profile) if profile.cpu == host_cpu() else EmulatedOnnxRuntime(profile)


def differing(built: Any, profile: Profile, *, linted: bool = True) -> dict[str, int]:
    """Elements of every rounded tensor and output that differ between oracle and processor, by name."""
    backend = backend_on(profile)
    model = backend.emit(built.frozen, opset=None, batch=None) if linted else built.model()
    oracle = IntegerOracle(model, arm_arithmetic=profile.arm_arithmetic)
    outputs, rounded = oracle.run(built.images, trace=True)
    with backend.runner(exposed(model, list(rounded)).SerializeToString(), threads=1) as runner:
        results = runner.run(built.images.numpy())
    expected = {f"output {index}": output for index, output in enumerate(outputs)} | rounded
    assert any(len(np.unique(values.numpy())) > 8 for values in rounded.values())
    return {
        name: int((values.numpy() != theirs).sum())
        for (name, values), theirs in zip(expected.items(), results, strict=True)
        if (values.numpy() != theirs).any()
    }


def network(name: str) -> tuple[Any, torch.Tensor]:
    """A network with random weights that behave, and images for it."""
    if name == "resnet20":
        torch.manual_seed(0)
        return CifarResNet(3).eval(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    entry = ZOO[name]
    return entry.build(pixels=64), entry.images(2, pixels=64)


@pytest.mark.emulation
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("cpu", list(CPU_PROFILES))
@pytest.mark.parametrize("name", NETWORKS)
def test_every_integer_is_the_oracles(name: str, cpu: str, bits: int, build: Build) -> None:
    if cpu not in (*EMULATED, host_cpu()):
        pytest.skip(f"{cpu} is not this machine's processor and QEMU cannot emulate it")
    module, images = network(name)
    profile = CPU_PROFILES[cpu][0]
    assert differing(build(module, profile, bits=bits, inputs=images), profile) == {}


@pytest.mark.emulation
def test_the_precise_option_is_exact_without_vnni(build: Build) -> None:
    module, images = network("resnet20")
    assert differing(build(module, X64_PRECISE, inputs=images), X64_PRECISE) == {}


@pytest.mark.emulation
def test_unlimited_weights_saturate_without_vnni(build: Build) -> None:
    module, images = network("resnet20")
    unlimited = replace(X64_WITHOUT_VNNI, weight_limit=None)
    assert len(differing(build(module, unlimited, inputs=images), unlimited)) > 5


@pytest.mark.emulation
def test_the_arithmetic_of_x86_is_not_that_of_arm(build: Build) -> None:
    module, images = network("resnet20")
    assert differing(build(module, ARM64, inputs=images), replace(ARM64, arm_arithmetic=False)) != {}


@pytest.mark.emulation
@pytest.mark.parametrize("cpu", list(EMULATED))
def test_every_kind_of_operator_is_the_oracles(exact_network: str, cpu: str, build: Build) -> None:
    profile = CPU_PROFILES[cpu][0]
    assert differing(build(exact_network, profile, seed=5), profile) == {}


def test_what_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--emulate z80: must be x86-avx2 or arm64"):
        emulated_command("z80")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="not installed: apt-get install qemu-user-static"):
        emulated_command("arm64")
    old = tmp_path / "qemu"
    old.write_text("#!/bin/sh\necho qemu-aarch64 version 6.2.0\n")
    old.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(old))
    with pytest.raises(UserError, match=r"needs qemu-aarch64-static 7\.2 or newer"):
        emulated_command("arm64")
    old.write_text("#!/bin/sh\necho qemu-aarch64 version 9.0.1\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="faqd emulation arm64"):
        emulated_command("arm64")
    reason = EmulatedOnnxRuntime(ARM64).unavailable()
    assert reason is not None and "faqd emulation arm64" in reason


def test_an_emulated_session_speaks_through_pipes(monkeypatch: pytest.MonkeyPatch, build: Build) -> None:
    """The same worker in the Python here: census, outputs and errors without an emulator."""
    import os
    import sys

    monkeypatch.setattr(
        "backends.onnxruntime.emulation.emulated_command", lambda cpu: ([sys.executable], dict(os.environ))
    )
    built, backend = build("residual", X64), EmulatedOnnxRuntime(X64)
    model = backend.emit(built.frozen).SerializeToString()
    with backend.runner(model, threads=1) as runner, OnnxRuntime(X64).runner(model, threads=1) as plain:
        for count in (8, 3):
            images = built.images[:count].numpy()
            np.testing.assert_array_equal(runner.run(images)[0], plain.run(images)[0])
    layers = [placement.layer for placement in built.plan.weights]
    assert backend.census(model, layers) == OnnxRuntime(X64).census(model, layers)
    with pytest.raises(UserError, match="ended without an answer"), backend.runner(b"no model", threads=1):
        pass


def test_what_is_downloaded_is_known_by_its_hashes() -> None:
    wheels, requirements = wheels_for("1.32.0")
    assert wheels[0] == "--require-hashes" and requirements == ["numpy==2.4.6", "onnxruntime==1.32.0"]
    assert wheels_for("1.99.0") == (["numpy", "onnxruntime==1.99.0"],) * 2
    hashed = WHEELS.read_text(encoding="utf-8").splitlines()
    assert (
        len([line for line in hashed if re.fullmatch(r" +--hash=sha256:[0-9a-f]{64}( \\)?", line)]) == len(hashed) - 3
    )
