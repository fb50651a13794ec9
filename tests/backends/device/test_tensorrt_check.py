"""The whole check of a bundle on its device, on a stand-in for SDK and CUDA: its answers and its refusals."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.device.tensorrt_device import check as device_check
from backends.device.tensorrt_device.build import EngineOptions, build_engine
from backends.oracle.backend import IntegerOracle
from backends.tensorrt.backend import TensorRT
from calibration.errors import UserError
from tests.backends.device import tensorrt_stand_in as stand_in
from tests.backends.device.cuda_stand_in import FakeCuda
from tests.vouched import vouch

Build = Callable[..., Any]
HERE = Path(__file__).parent


@pytest.fixture
def cuda() -> Any:
    return FakeCuda()


@pytest.fixture(scope="module")
def model(build: Build) -> bytes:
    return bytes(TensorRT().emit(build("residual", "tensorrt").frozen).SerializeToString())


@pytest.fixture
def bundle(build: Build, tmp_path: Path) -> Path:
    """A bundle as a run writes it."""
    from backends.oracle.layer_samples import oracle_layers

    built = build("residual", "tensorrt")
    model = TensorRT().emit(built.frozen)
    (outputs,), _ = IntegerOracle(model, fused_rounding=False).run(built.images)
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    np.savez(folder / "golden.npz", inputs=built.images.numpy(), **{"outputs.output": outputs.numpy()})  # type: ignore[arg-type]
    (folder / "layers.npz").write_bytes(oracle_layers(model, built.plan, built.images[:2]))
    preprocessing = {"channels": 3, "height": 12, "width": 12, "channel_order": "RGB"}
    preprocessing |= {"mean": [0.0] * 3, "std": [1.0] * 3}
    outputs_of_model = [{"name": "output", "holds": "classes", "class_axis": 1}]
    vouch(folder, backend="tensorrt", plan=built.plan.to_json(), preprocessing=preprocessing, outputs=outputs_of_model)
    return folder


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch, cuda: Any, tmp_path: Path) -> Callable[..., int]:
    """Run the bundle's program with the stand-in of a version."""

    def run(bundle: Path, *arguments: str, version: str = "10.3.0", gpu: str = "8.7", refuses: str = "") -> int:
        sdk = stand_in.stand_in(cuda, version=version, gpu=gpu, refuses=refuses)
        monkeypatch.setitem(sys.modules, "tensorrt", sdk)
        monkeypatch.setattr(device_check, "Cuda", lambda: cuda)
        monkeypatch.setattr(type(cuda), "compute_capability", lambda self: gpu)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return device_check.main(list(arguments), bundle)

    return run


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0"])
def test_one_command_checks_a_bundle(
    version: str, bundle: Path, on_device: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 12, 12), np.uint8)
    np.savez(tmp_path / "images.npz", x=images, y=np.zeros(20, np.int64))
    report = tmp_path / "device.json"
    arguments = ("--images", f"{tmp_path / 'images.npz'}#x,y", "--batch", "2", "--report", str(report))
    assert on_device(bundle, *arguments, version=version) == 0
    out = capsys.readouterr().out
    for words in (
        f"device             Stand-in, compute capability 8.7, TensorRT {version}",
        "kernels            5 of 5 planned layers int8; 5 kernels, 0 of them fused, 0 reformat copies (0 of int8)",
        "engine vs oracle   output: same argmax 8 of 8",
        "of 20 images",
        "latency            0.2500 ms (p90 0.2500), batch 2, on the device between CUDA events, one CUDA graph",
        "layers vs oracle   5 compared, the noisiest ",
        "status             as it should be",
    ):
        assert words in out
    written = json.loads(report.read_text())
    assert written["passed"] is True and set(written["layers"]) == {"a", "b", "down", "c", "fc"}
    assert min(written["layers"].values()) > 35
    assert (tmp_path / "cache" / "faqd" / "tensorrt-timing.cache").is_file()


def test_an_engine_file_is_written_then_loaded_and_refused_elsewhere(
    bundle: Path, on_device: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = str(tmp_path / "model.plan")
    assert on_device(bundle, "--engine", engine, "--no-layers") == 0
    assert "built in" in capsys.readouterr().out
    assert on_device(bundle, "--engine", engine, "--no-layers") == 0
    assert "loaded" in capsys.readouterr().out
    assert on_device(bundle, "--engine", engine, "--no-layers", "--batch", "2") == 2
    assert "was built from other options: remove it" in capsys.readouterr().err
    assert on_device(bundle, "--engine", engine, "--no-layers", version="11.4.0", gpu="8.9") == 2
    error = capsys.readouterr().err
    assert "was built with TensorRT 10.3.0, Stand-in, compute capability 8.7; here is TensorRT 11.4.0" in error
    assert error.count("\n") == 1


#: What the builder says -> what the user reads, from the bundle's program and from faqd.
REFUSALS_OF_A_BUILDER = {
    "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)": (
        "the model: TensorRT 10.3.0 builds no engine; the device's memory does not suffice for building"
    ),
    "Error Code 2: OutOfMemory (Requested size was 4294967296 bytes.)": (
        "the model: TensorRT 10.3.0 builds no engine; the device's memory does not suffice for building"
    ),
    "Error Code 10: Internal Error (Could not find any implementation for node {ForeignNode[a...relu]}.)": (
        "the layers a to relu: TensorRT 10.3.0 builds no engine; TensorRT has no kernel for this layer on this GPU"
    ),
    "[ONNX Layer: b] input and weights must have the same data type": (
        "b: TensorRT 10.3.0 builds no engine; rule 8: float types are mixed"
    ),
}


@pytest.mark.parametrize("said", REFUSALS_OF_A_BUILDER)
def test_what_the_builder_refuses_is_one_line(
    said: str, bundle: Path, on_device: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert on_device(bundle, "--no-layers", refuses=said) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {REFUSALS_OF_A_BUILDER[said]}") and error.count("\n") == 1
    assert f"the SDK says: {said}" in error


@pytest.mark.parametrize(
    ("elsewhere", "versions"),
    [({"gpu": "8.9"}, "(here 8.9, the engine's 8.7)"), ({"version": "10.9.0"}, "(here 10.9.0, the engine's 10.3.0)")],
)
def test_an_engine_without_its_record_names_both(
    elsewhere: dict[str, str],
    versions: str,
    bundle: Path,
    cuda: Any,
    on_device: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    built = build_engine(stand_in.stand_in(cuda), (bundle / "model.onnx").read_bytes(), EngineOptions())
    (tmp_path / "a.plan").write_bytes(built.plan)
    assert on_device(bundle, "--engine", str(tmp_path / "a.plan"), "--no-layers", **elsewhere) == 2
    error = capsys.readouterr().err
    assert versions in error and "it was built for another GPU or SDK" in error and error.count("\n") == 1


def test_other_outputs_fail(bundle: Path, on_device: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(bundle / "golden.npz") as golden:
        arrays = dict(golden)
    np.savez(bundle / "golden.npz", **arrays | {"outputs.output": -arrays["outputs.output"]})
    vouch(bundle)
    assert on_device(bundle, "--no-layers") == 1
    assert "status             FAILED" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batches", "1,2"), "batches (1, 2): must be three"),
        (("--batches", "a,b,c"), "--batches a,b,c: must be three whole numbers"),
        (("--batch", "4", "--batches", "1,2,2"), "--batch 4 lies outside of --batches 1,2,2"),
        (("--batch", "0"), "--batch 0: must be 1 or more"),
        (("--images", "nothing.npz#x,y"), "--images nothing.npz#x,y: cannot be read"),
        (("--images", "nothing.npz"), "must be FILE.npz#IMAGES or FILE.npz#IMAGES,LABELS"),
        (("--optimisation-level", "9"), "optimisation level 9"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], message: str, bundle: Path, on_device: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert on_device(bundle, "--no-layers", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_damaged_bundle_is_not_run(bundle: Path, on_device: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "model.onnx").write_bytes(b"")
    assert on_device(bundle) == 2
    assert "model.onnx is not what was written: it has 0 bytes" in capsys.readouterr().err
    (bundle / "manifest.json").write_text("{}")
    assert on_device(bundle) == 2
    (bundle / "manifest.json").unlink()
    assert on_device(bundle) == 2
    assert "it has no manifest.json" in capsys.readouterr().err


def test_the_devices_code_needs_nothing_of_ours(bundle: Path, repository: Path, tmp_path: Path) -> None:
    # As in a bundle: the folder alone, where torch, onnx and the project cannot be imported.
    from pipeline.bundle.device_files import check_files

    for name, content in check_files("tensorrt").items():
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_bytes(content)
    vouch(bundle)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('torch', 'onnx', 'backends', 'calibration', 'pipeline', 'tensorrt'):\n"
        "    sys.modules[name] = None\n"
    )
    done = subprocess.run(
        [sys.executable, str(bundle / "check.py")],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: the Python package tensorrt cannot be imported here")
    assert done.stderr.count("\n") == 1
    assert not list(bundle.rglob("__pycache__")), "a bundle stays as its manifest says"


def test_faqd_itself_runs_engines_where_they_run(
    model: bytes, build: Build, cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import backends.tensorrt.backend as backend_module
    from backends.timing import interleaved_latency

    sdk, images = stand_in.stand_in(cuda), build("residual", "tensorrt").images.numpy()
    monkeypatch.setitem(sys.modules, "tensorrt", sdk)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: object())
    monkeypatch.setattr(backend_module, "Cuda", lambda: cuda)
    backend = TensorRT(options=EngineOptions(batches=(2, 2, 2)))
    assert backend.unavailable() is None
    with backend.runner(model, threads=1) as runner:
        assert runner.run(images)[0].shape == (8, 10)
        assert interleaved_latency({"a": runner}, images[:2], warm_up=1, repeats=3)["a"].median_ms == 0.25
    counted = backend.census(model, ["a", "fc", "gone"])
    assert (counted.integer, counted.floating) == (("a", "fc"), ("gone",))
    assert counted.remark == "engine: 5 kernels, 0 of them fused, 0 reformat copies"
    assert len(sdk.built) == 1, "one build for scoring, counting and timing"


@pytest.mark.parametrize("said", REFUSALS_OF_A_BUILDER)
def test_faqd_itself_says_refusals_as_the_users_mistakes(
    said: str, model: bytes, cuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import backends.tensorrt.backend as backend_module

    monkeypatch.setitem(sys.modules, "tensorrt", stand_in.stand_in(cuda, refuses=said))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: object())
    monkeypatch.setattr(backend_module, "Cuda", lambda: cuda)
    with pytest.raises(UserError) as refused, TensorRT().runner(model, threads=1):
        pass
    assert str(refused.value).startswith(REFUSALS_OF_A_BUILDER[said]) and "\n" not in str(refused.value)


def test_a_bundles_layers_are_those_of_the_oracle(bundle: Path) -> None:
    with np.load(bundle / "layers.npz") as kept:
        assert kept["layers"].tolist() == ["a", "b", "down", "c", "fc"]
        assert kept["tensors"].tolist() == ["relu", "b", "down", "c", "output"]
        assert kept["values_4"].shape == (2, 10)
        with np.load(bundle / "golden.npz") as golden:
            np.testing.assert_array_equal(kept["values_4"], golden["outputs.output"][:2])
