"""The processors that artifacts are made for: which one is here, and the profiles that are exact on each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from backends import backend_of, backends_for
from backends.facts.cpu import CPUS, cpu_flags, elsewhere, host_cpu
from backends.facts.onnxruntime_rules import CPU_PROFILES, X64, X64_PRECISE, host_profile
from backends.onnx_file.emit import emit
from backends.onnxruntime.backend import OnnxRuntime
from backends.oracle.backend import IntegerOracle
from calibration.errors import UserError
from tests.versions import older

Build = Callable[..., Any]


def test_flags_of_both_architectures_are_read(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni\n\nflags\t\t: fpu\n", encoding="utf-8")
    assert cpu_flags(file) == frozenset({"fpu", "avx2", "avx512_vnni"})
    file.write_text("processor\t: 0\nFeatures\t: asimd asimddp i8mm\n", encoding="utf-8")
    assert cpu_flags(file) == frozenset({"asimd", "asimddp", "i8mm"})
    assert cpu_flags(tmp_path / "absent") is None


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", {"avx2", "avx512_vnni"}, "x86-vnni"),
        ("x86_64", {"avx2", "avx_vnni"}, "x86-vnni"),
        ("AMD64", {"avx2", "avx512f", "avx512bw"}, "x86-avx2"),
        ("x86_64", None, "x86-avx2"),
        ("aarch64", {"asimd"}, "arm64"),
        ("arm64", None, "arm64"),
        ("riscv64", {"rv64gc"}, None),
    ],
)
def test_the_processor_here_is_told_from_machine_and_flags(
    monkeypatch: pytest.MonkeyPatch, machine: str, flags: set[str] | None, expected: str | None
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("backends.facts.cpu.cpu_flags", lambda: flags)
    assert host_cpu() == expected
    for cpu in CPUS:
        reason = elsewhere(cpu)
        assert (reason is None) == (cpu == expected)
        assert reason is None or (cpu in reason and (expected or machine) in reason)
    if expected is None:
        with pytest.raises(UserError, match="give --target x86-vnni, x86-avx2, arm64"):
            backends_for("onnxruntime", None)


def test_every_processor_has_profiles_with_a_source() -> None:
    assert CPU_PROFILES.keys() == CPUS.keys()
    profiles = [profile for profiles in CPU_PROFILES.values() for profile in profiles]
    assert len({profile.variant for profile in profiles}) == len(profiles)
    for cpu, of_cpu in CPU_PROFILES.items():
        assert all(profile.cpu == cpu and profile.source for profile in of_cpu)


def test_backends_are_found_by_processor_and_by_variant() -> None:
    assert [b.profile.variant for b in backends_for("onnxruntime", "x86-avx2")] == [
        "x86-avx2-limited",
        "x86-avx2-precise",
    ]
    assert [b.profile for b in backends_for("onnxruntime", "x86-avx2-precise")] == [X64_PRECISE]
    assert [b.profile.variant for b in backends_for("openvino", "x86-avx2-limited")] == ["x86-avx2-limited"]
    assert [b.profile.cpu for b in backends_for("reference", "arm64")] == ["arm64"]
    assert [b.profile for b in backends_for("onnxruntime", None)] == list(CPU_PROFILES[str(host_cpu())])
    assert backend_of("onnxruntime", "x86-avx2-precise").profile == X64_PRECISE
    recorded = backend_of("onnxruntime", "arm64", {"session.intra_op.allow_spinning": "0"})
    assert dict(recorded.profile.session_options) == {"session.intra_op.allow_spinning": "0"}
    assert backend_of("tensorrt", "").name == backends_for("tensorrt", None)[0].name == "tensorrt"


def test_wrong_processors_are_told_what_is_right() -> None:
    with pytest.raises(UserError, match="--target z80: unknown; give --target x86-vnni, x86-avx2, arm64"):
        backends_for("onnxruntime", "z80")
    with pytest.raises(UserError, match="--target arm64 names a processor, and --backend tensorrt runs on none"):
        backends_for("tensorrt", "arm64")
    with pytest.raises(UserError, match="--target x86-avx2-precise: unknown; give --target x86-vnni, x86-avx2, arm64"):
        backends_for("openvino", "x86-avx2-precise")
    with pytest.raises(UserError, match="the profile x86-mmx of onnxruntime is unknown to this version"):
        backend_of("onnxruntime", "x86-mmx")


def test_a_runtime_is_available_for_the_processor_here_alone() -> None:
    assert OnnxRuntime(host_profile()).unavailable() is None
    others = [cpu for cpu in CPUS if cpu != host_cpu()]
    for cpu in others:
        reason = OnnxRuntime(CPU_PROFILES[cpu][0]).unavailable()
        assert reason is not None and cpu in reason


@pytest.mark.parametrize("network", ["residual", "shared_weight", "linear", "depthwise"])
def test_layers_have_their_own_constants_where_the_profile_asks_for_it(network: str, build: Build) -> None:
    built = build(network)
    shared = built.model()
    own = emit(built.frozen, opset=20, form=X64_PRECISE.form)
    zeros = [
        node.input[2]
        for node in own.graph.node
        if node.op_type == "DequantizeLinear" and node.name.endswith("weight_dq")
    ]
    assert len(zeros) == len(set(zeros)) == len(built.plan.weights)
    (mine, _), (theirs, _) = IntegerOracle(own).run(built.images), IntegerOracle(shared).run(built.images)
    for one, other in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.parametrize("network", ["residual", "shared_weight", "squeeze_excite", "depthwise"])
def test_the_precise_option_is_exact_here_too(network: str, build: Build) -> None:
    built, backend = build(network, X64_PRECISE), OnnxRuntime(X64_PRECISE)
    model = backend.emit(built.frozen)
    outputs, _ = IntegerOracle(model).run(built.images)
    with backend.runner(model.SerializeToString(), threads=1) as runner:
        np.testing.assert_array_equal(runner.run(built.images.numpy())[0], outputs[0].numpy())
    layers = [placement.layer for placement in built.plan.weights]
    assert backend.census(model.SerializeToString(), layers).floating == ()


@pytest.mark.skipif(host_cpu() == "arm64", reason="the option concerns x86-64 alone")
@pytest.mark.skipif(older("onnxruntime", "1.32"), reason="older versions take shared constants")
def test_the_precise_option_fails_on_shared_constants(build: Build) -> None:
    built = build("residual", X64_PRECISE)
    shared = emit(built.frozen, opset=20, form=X64.form)
    assert isinstance(shared, onnx.ModelProto)
    with (
        pytest.raises(UserError, match="existing tensor"),
        OnnxRuntime(X64_PRECISE).runner(shared.SerializeToString(), threads=1),
    ):
        pass
