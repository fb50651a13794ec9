"""The same integers on every processor: ONNX Runtime's kernels of another one, run by QEMU, against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from backends.base import Backend
from backends.cpu import host_cpu
from backends.emulation import EMULATED, EmulatedOnnxRuntime, emulated_command
from backends.onnx_view import OnnxView
from backends.onnxruntime import OnnxRuntime
from backends.onnxruntime_rules import ARM64, CPU_PROFILES, X64, X64_PRECISE, X64_WITHOUT_VNNI
from backends.profile import Profile
from backends.reference import IntegerOracle
from backends.reference_kernels import Quantised, Target, add_in_fixed_point
from calibration.errors import UserError
from pipeline.networks.cifar_resnet import CifarResNet
from tests.zoo import ZOO

Build = Callable[..., Any]
#: A plain residual network, depthwise convolutions with ReLU6, and squeeze-excite blocks with ReLU: all integers.
NETWORKS = ("resnet20", "mobilenet_v2", "regnet_y_400mf")


def backend_on(profile: Profile) -> Backend:
    """The runtime on the profile's processor, emulated where it is not the one here."""
    return OnnxRuntime(profile) if profile.cpu == host_cpu() else EmulatedOnnxRuntime(profile)


def differing(built: Any, profile: Profile, *, bits: int) -> dict[str, int]:
    """Elements of every rounded tensor and output that differ between oracle and processor, by name."""
    backend = backend_on(profile)
    model = backend.emit(built.frozen, opset=None, batch=None)
    oracle = IntegerOracle(model, fixed_point_sums=profile.fixed_point_sums)
    outputs, rounded = oracle.run(built.images, trace=True)
    view, extended = OnnxView(model), onnx.ModelProto()
    extended.CopyFrom(model)
    for name in rounded:
        quantise = view.producer(name)
        assert quantise is not None
        kind = view.integer_type(quantise)
        assert kind is not None
        extended.graph.output.append(helper.make_tensor_value_info(name, kind, None))
    with backend.runner(extended.SerializeToString(), threads=1) as runner:
        found = runner.run(built.images.numpy())
    expected = {f"output {index}": output for index, output in enumerate(outputs)} | rounded
    assert any(len(np.unique(values.numpy())) > 8 for values in rounded.values())
    return {
        name: int((values.numpy() != theirs).sum())
        for (name, values), theirs in zip(expected.items(), found, strict=True)
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
    assert differing(build(module, profile, bits=bits, inputs=images), profile, bits=bits) == {}


@pytest.mark.emulation
def test_the_precise_option_is_exact_without_vnni(build: Build) -> None:
    module, images = network("resnet20")
    assert differing(build(module, X64_PRECISE, inputs=images), X64_PRECISE, bits=8) == {}


@pytest.mark.emulation
def test_unlimited_weights_saturate_without_vnni(build: Build) -> None:
    module, images = network("resnet20")
    unlimited = replace(X64_WITHOUT_VNNI, weight_limit=None)
    assert len(differing(build(module, unlimited, inputs=images), unlimited, bits=8)) > 5


@pytest.mark.emulation
def test_float32_sums_are_not_those_of_arm(build: Build) -> None:
    module, images = network("resnet20")
    assert differing(build(module, ARM64, inputs=images), replace(ARM64, fixed_point_sums=False), bits=8) != {}


@pytest.mark.emulation
def test_every_pair_of_integers_is_added_as_on_arm() -> None:
    generator, draws = np.random.default_rng(0), 60
    pairs = np.stack(np.meshgrid(np.arange(256), np.arange(256), indexing="ij")).astype(np.float32)
    grids = np.exp(generator.uniform(-6, 0, (draws, 3))).astype(np.float32)
    grids[:, 2] = np.maximum(grids[:, 0], grids[:, 1]) * 2 ** generator.uniform(-1, 2, draws)
    zeros = generator.integers(0, 256, (draws, 3))
    nodes, constants, results = [], [], []
    for draw in range(draws):
        for index in range(3):
            constants.append(numpy_helper.from_array(grids[draw, index], f"s{draw}_{index}"))
            constants.append(numpy_helper.from_array(np.array(zeros[draw, index], np.uint8), f"z{draw}_{index}"))
        for index in range(2):
            given = [f"u{index}", f"s{draw}_{index}", f"z{draw}_{index}"]
            nodes.append(helper.make_node("DequantizeLinear", given, [f"r{draw}_{index}"]))
        nodes.append(helper.make_node("Add", [f"r{draw}_0", f"r{draw}_1"], [f"y{draw}"]))
        nodes.append(helper.make_node("QuantizeLinear", [f"y{draw}", f"s{draw}_2", f"z{draw}_2"], [f"q{draw}"]))
        results.append(helper.make_tensor_value_info(f"q{draw}", TensorProto.UINT8, None))
    split = [
        helper.make_node("Split", ["x"], ["x0", "x1"], axis=0, num_outputs=2),
        *(helper.make_node("Cast", [f"x{index}"], [f"u{index}"], to=TensorProto.UINT8) for index in range(2)),
    ]
    described = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 256, 256])]
    model = helper.make_model(
        helper.make_graph([*split, *nodes], "sums", described, results, constants),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    with backend_on(ARM64).runner(model.SerializeToString(), threads=1) as runner:
        theirs = runner.run(pairs)
    for draw in range(draws):
        np.testing.assert_array_equal(fixed_point(pairs, grids[draw], zeros[draw]), theirs[draw][0], err_msg=str(draw))


def fixed_point(pairs: Any, scales: Any, zeros: Any) -> Any:
    """The oracle's sum of pairs [2, ...] of integers."""
    inputs = [
        Quantised(
            integers=torch.from_numpy(np.array(values)).int(),
            scale=torch.tensor(float(scale)),
            zero_point=torch.tensor(int(zero), dtype=torch.int32),
            axis=None,
            low=0,
            high=255,
        )
        for values, scale, zero in zip(pairs, scales, zeros, strict=False)
    ]
    target = Target(name="q", scale=torch.tensor(float(scales[2])), zero_point=int(zeros[2]), low=0, high=255)
    return add_in_fixed_point(inputs, {}, target).numpy()


def test_a_fixed_point_sum_by_hand() -> None:
    # Both ratios are 0.5: multipliers 2**21, shift 22. 1 + 2 halves to 1.5 -> 2, 1 + 4 to 2.5 -> 3, -1 + -2 to -2.
    halves = np.array([[1, 1, 0, 255], [2, 4, 0, 255]])
    assert fixed_point(halves, (0.5, 0.5, 1.0), (0, 0, 0)).tolist() == [2, 3, 0, 255]
    assert fixed_point(np.array([[9, 9], [8, 8]]), (0.5, 0.5, 1.0), (10, 10, 100)).tolist() == [98, 98]


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

    monkeypatch.setattr("backends.emulation.emulated_command", lambda cpu: ([sys.executable], dict(os.environ)))
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
