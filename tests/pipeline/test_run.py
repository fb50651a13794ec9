"""The main job through the real command: what it leaves behind, what it refuses, how it goes on."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from backends.facts.cpu import host_cpu
from backends.facts.onnxruntime_rules import host_profile
from pipeline.bundle.bundle import read_bundle
from pipeline.cli import main
from pipeline.images import embedded
from pipeline.report.schema import read_report

QUICK = ("--steps", "12", "--calibration-images", "128")


def command(repository: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(repository), "COLUMNS": "100"}
    line = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=environment, timeout=240, check=False)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a user's mistake gets."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def finished(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run of the embedded default at 8 bits."""
    folder = tmp_path_factory.mktemp("run") / "digits"
    done = command(repository, "run", "--backend", "onnxruntime", "--bits", "8", *QUICK, "--output", str(folder))
    assert done.returncode == 0, done.stderr
    assert all(len(line) <= 100 for line in done.stdout.splitlines())
    return folder


def test_the_default_run_is_validated_on_the_runtime(finished: Path) -> None:
    report = read_report(finished / "report.json")

    assert report.status == "validated" and report.accuracy.metric == "top1"
    assert report.accuracy.images == 450
    for score in (report.accuracy.simulated, report.accuracy.oracle, report.accuracy.runtime):
        assert score is not None and score >= 0.98
    assert report.parity.argmax_agreement == report.parity.exact_fraction == 1.0
    assert (report.kernels.integer, report.kernels.float) == (10, 0)
    assert report.size.quantised_bytes is not None and report.size.float_bytes is not None
    assert report.size.quantised_bytes < 0.35 * report.size.float_bytes
    assert set(report.seconds) == {"teacher", "observe", "distil", "convert", "validate"}


def test_the_report_has_the_keys_of_schema_1_in_order(finished: Path) -> None:
    tree = json.loads((finished / "report.json").read_text())

    assert list(tree)[:16] == [
        "schema", "status", "backend", "bits", "teacher", "student", "seed", "versions", "host", "accuracy",
        "parity", "kernels", "latency", "size", "seconds", "gates",
    ]  # fmt: skip
    assert list(tree["accuracy"]) == ["metric", "images", "teacher", "simulated", "oracle", "runtime"]
    assert list(tree["parity"]) == ["argmax_agreement", "exact_fraction", "max_difference"]
    assert list(tree["latency"]) == ["batch", "threads", "float_ms", "quantised_ms", "speedup"]


def test_the_bundle_runs_without_torch(finished: Path) -> None:
    """Read through the manifest alone, with numpy and the runtime, as a device would."""
    folder = finished / "bundle"
    manifest = json.loads((folder / "manifest.json").read_text())
    golden = np.load(folder / "golden.npz", allow_pickle=False)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {manifest["inputs"][0]["name"]: golden["inputs"]})

    assert np.array_equal(outputs, golden["outputs.output"])
    assert manifest["preprocessing"]["height"] == 8
    code = f"import sys; sys.modules['torch'] = None; sys.argv = ['check.py', {str(folder)!r}]; "
    code += f"import runpy; runpy.run_path({str(folder / 'check.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0 and "argmax 16 of 16" in done.stdout


def test_a_changed_bundle_is_refused(finished: Path, tmp_path: Path, repository: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(finished / "bundle", copy)
    (copy / "model.onnx").write_bytes(b"x" + (copy / "model.onnx").read_bytes()[1:])

    assert "SHA-256" in refused(command(repository, "validate", str(copy)))
    (copy / "model.onnx").unlink()
    assert "missing" in refused(command(repository, "validate", str(copy)))


def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished bundle with the float network beside it."""
    shutil.copytree(finished / "bundle", tmp_path / "bundle")
    shutil.copy(finished / "float.onnx", tmp_path / "float.onnx")
    return tmp_path / "bundle"


def test_an_edited_manifest_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = copied(finished, tmp_path)
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert main(["validate", str(bundle), "--quiet"]) == 0, "another layout of the text says the same"
    manifest["preprocessing"]["mean"] = [0.0]
    (bundle / "manifest.json").write_text(json.dumps(manifest, indent=1))
    capsys.readouterr()
    assert main(["validate", str(bundle), "--quiet"]) == 2
    assert "manifest.json was changed after the run (its own SHA-256 differs)" in capsys.readouterr().err
    done = subprocess.run([sys.executable, str(bundle / "check.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "manifest.json was changed after the run" in done.stderr


def test_a_runtime_that_is_too_old_is_one_line(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = copied(finished, tmp_path)
    needed = json.loads((bundle / "manifest.json").read_text())["runtime"]
    assert (needed["name"], needed["least"]) == ("onnxruntime", "1.17")
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.16.3")
    assert main(["validate", str(bundle), "--quiet"]) == 2
    assert "onnxruntime 1.16.3 is too old for this bundle's model, which needs 1.17" in capsys.readouterr().err


def test_a_bundle_from_before_manifests_were_hashed_is_read_and_says_so(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = copied(finished, tmp_path)
    manifest = json.loads((bundle / "manifest.json").read_text()) | {"format": 2}
    for key in ("sha256", "float_model", "least_parity"):
        del manifest[key]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert main(["validate", str(bundle), "--quiet"]) == 0
    assert "of format 2, made before manifests were hashed" in " ".join(capsys.readouterr().out.split())
    done = subprocess.run([sys.executable, str(bundle / "check.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "of format 2, made before manifests were hashed" in done.stdout, done.stderr
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"format": 4}))
    assert main(["validate", str(bundle), "--quiet"]) == 2
    assert "has format 4: this version reads 2 or 3" in capsys.readouterr().err


def test_few_images_are_undecided_and_more_decide_without_a_new_run(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, digits = copied(finished, tmp_path), np.load(Path(str(embedded.__file__)).parent / "digits.npz")
    images = digits["images"][digits["held_out"]]
    labels = digits["labels"][digits["held_out"]]
    np.savez(tmp_path / "few.npz", images=images[:9], labels=labels[:9])
    np.savez(tmp_path / "more.npz", images=images[:300], labels=labels[:300])
    for keys in ("images", "images,labels"):
        few, more = (f"npz:{tmp_path / name}.npz#{keys}" for name in ("few", "more"))
        capsys.readouterr()
        assert main(["validate", str(bundle), "--quiet", "--eval-data", few]) == 4
        said = " ".join(capsys.readouterr().out.split())
        assert "9 images cannot decide a limit of 1 point, 299 can" in said and "allow --max-drop 29" in said
        assert main(["validate", str(bundle), "--quiet", "--eval-data", few, "--max-drop", "29"]) == 0
        out = tmp_path / "out.json"
        assert main(["validate", str(bundle), "--quiet", "--eval-data", more, "--report", str(out)]) == 0
        gate = read_report(out).gates[0]
        assert (gate.name, gate.passed, gate.images, gate.judged_by) == ("max-drop", True, 300, "runtime")


def test_images_that_cannot_be_scored_are_counted_and_named(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(4):
        Image.new("L", (8, 8), 50 * index).save(folder / f"{index}.png")
    (folder / "2.png").write_bytes(b"no picture")
    bundle, out, scored = copied(finished, tmp_path), tmp_path / "out.json", ["--eval-data", f"images:{folder}"]
    assert main(["validate", str(bundle), "--quiet", *scored, "--report", str(out)]) == 4
    arguments = ["--steps", "0", "--calibration-images", "64", "--output", str(tmp_path / "run")]
    assert main(["run", "--quiet", *scored, *arguments]) == 4
    for report in (read_report(out), read_report(tmp_path / "run" / "report.json")):
        assert report.accuracy.images == 3
        (note,) = (note for note in report.notes if "left out" in note)
        assert note.startswith("3 of 4 images are scored: 1 unreadable image left out: 2.png (cannot identify")


def test_validate_judges_accuracy_against_the_float_file(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The float file is the run's own, and where it is absent nothing is called validated."""
    bundle = copied(finished, tmp_path)
    out = tmp_path / "out.json"
    arguments = ["validate", str(bundle), "--quiet", "--eval-data", "digits", "--report", str(out)]
    assert main(arguments) == 0
    report, run = read_report(out), read_report(finished / "report.json")
    assert report.accuracy == replace(run.accuracy, simulated=None)
    assert [(gate.name, gate.value) for gate in report.gates] == [(gate.name, gate.value) for gate in run.gates]
    (tmp_path / "float.onnx").write_bytes((bundle / "model.onnx").read_bytes())
    assert main(arguments) == 2
    assert "float.onnx is not the float network of this bundle's run" in capsys.readouterr().err
    (tmp_path / "float.onnx").unlink()
    assert main(arguments) == 4
    said = "".join(capsys.readouterr().out.split())  # long paths are broken where the table ends
    assert "float.onnx,thefloatnetworkthatarunleaves,isabsent" in said
    assert "thereisnofloatnetworktocomparewith" in said


def test_validate_repeats_the_verdict(finished: Path, repository: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.json"
    done = command(repository, "validate", str(finished / "bundle"), "--report", str(out), "--eval-data", "digits")

    assert done.returncode == 0, done.stderr
    assert read_report(out).accuracy.runtime == read_report(finished / "report.json").accuracy.runtime
    assert command(repository, "validate", str(finished / "bundle")).returncode == 0


def test_a_second_run_in_the_folder_is_refused_and_overwrite_gives_the_same_bytes(
    finished: Path, repository: Path
) -> None:
    arguments = ("run", "--backend", "onnxruntime", "--bits", "8", *QUICK, "--output", str(finished))
    assert "--overwrite" in refused(command(repository, *arguments))
    before = (finished / "bundle" / "model.onnx").read_bytes()

    assert command(repository, *arguments, "--overwrite").returncode == 0
    assert (finished / "bundle" / "model.onnx").read_bytes() == before


def test_an_interrupted_run_says_how_to_go_on_and_ends_with_the_same_bytes(
    finished: Path, repository: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "interrupted"
    arguments = ["run", "--steps", "400", "--calibration-images", "128", "--output", str(folder)]
    line = [sys.executable, "-m", "pipeline", *arguments]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    process = subprocess.Popen(
        line,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        # Tests that a shell runs in the background have inherited an ignored SIGINT, and would hand it on.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (folder / "state" / "prepared.json").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    time.sleep(2.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "Traceback" not in errors and "--resume" in errors.splitlines()[-1]
    assert not (folder / "bundle").exists()
    assert (folder / "state" / "checkpoint.safetensors").exists()
    before = json.loads((folder / "state" / "seconds.json").read_text())
    assert list(before) == ["teacher", "observe", "distil"] and before["distil"] > 1
    assert "interrupted run" in refused(command(repository, *arguments))
    assert command(repository, *arguments, "--resume").returncode == 0
    seconds = read_report(folder / "report.json").seconds
    assert list(seconds) == ["teacher", "observe", "distil", "convert", "validate"]
    assert all(seconds[stage] >= round(before[stage], 3) for stage in before) and seconds["distil"] > before["distil"]
    whole = tmp_path / "whole"
    assert command(repository, *arguments[:-1], str(whole)).returncode == 0
    assert (whole / "bundle" / "model.onnx").read_bytes() == (folder / "bundle" / "model.onnx").read_bytes()


KILLED = """
import os, signal, sys
import pipeline.run, pipeline.distillation.training.learner as learner
from pipeline.cli import main

def die(*given, **more):
    os.kill(os.getpid(), signal.SIGKILL)

where = sys.argv[1]
if where == "training":
    learner.CHECKPOINT_SECONDS = 0.0
    update = learner.Learner.update
    learner.Learner.update = lambda self, *given: die() if self.step == 7 else update(self, *given)
else:
    setattr(pipeline.run, where, die)
main(sys.argv[2:])
"""


def test_a_killed_run_ends_with_the_same_bytes(
    finished: Path, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed within training, resumed, killed in validation, and resumed: nothing of it is done twice."""
    folder = tmp_path / "killed"
    arguments = ["run", "--backend", "onnxruntime", "--bits", "8", *QUICK, "--output", str(folder), "--quiet"]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    for where, more, left in (
        ("training", [], {"prepared.json", "checkpoint.safetensors"}),
        ("validate_network", ["--resume"], {"prepared.json", "trained.safetensors"}),
    ):
        line = [sys.executable, "-c", KILLED, where, *arguments, *more]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False, timeout=240)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert {path.name for path in (folder / "state").iterdir()} == left | {"settings.json", "seconds.json"}
        assert not (folder / "bundle").exists() and not (folder / "report.json").exists()
    trained = (folder / "state" / "trained.safetensors").stat().st_mtime_ns
    assert main([*arguments, "--resume"]) == 0
    assert (folder / "state" / "trained.safetensors").stat().st_mtime_ns == trained
    capsys.readouterr()
    assert main([*arguments, "--resume"]) == 0, "and what is finished is not begun again, which --quiet does not hide"
    assert f"{folder / 'bundle'} is finished already" in capsys.readouterr().out
    for name in ("model.onnx", "golden.npz"):
        assert (folder / "bundle" / name).read_bytes() == (finished / "bundle" / name).read_bytes()


def test_four_bits_are_stored_as_four_and_multiplied_as_eight(repository: Path, tmp_path: Path) -> None:
    done = command(repository, "run", "--bits", "4", *QUICK, "--output", str(tmp_path / "w4"))
    report = read_report(tmp_path / "w4" / "report.json")

    assert done.returncode == 0, done.stderr
    assert report.bits.weights == 4 and report.kernels.float == 0
    kinds = [t.data_type for t in onnx.load(tmp_path / "w4" / "bundle" / "model.onnx").graph.initializer]
    assert kinds.count(onnx.TensorProto.INT4) == 8, "all but the first convolution and the last layer"
    assert {layer.weight_bits for layer in report.layers} == {4, 8}


@pytest.mark.parametrize(
    ("bits", "levels", "flags"),
    [
        ("3", {-3, -2, -1, 0, 1, 2, 3}, ()),
        ("1", {-1, 1}, ()),
        ("2", {-1, 0, 1}, ("--activation-bits", "2", "--backend", "reference")),
        ("1", {-1, 1}, ("--activation-bits", "2", "--backend", "reference")),
    ],
)
def test_fewer_than_four_bits_run_end_to_end(
    bits: str, levels: set[int], flags: tuple[str, ...], repository: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "few"
    command_line = ("run", "--bits", bits, *flags, *QUICK, "--max-drop", "100", "--output", str(folder))
    done = command(repository, *command_line)

    assert done.returncode == 0, done.stderr
    report = read_report(folder / "report.json")
    assert report.parity.exact_fraction == 1.0 and report.kernels.float == 0
    stored = [t for t in onnx.load(folder / "bundle" / "model.onnx").graph.initializer if t.data_type == t.INT4]
    held = [set(onnx.numpy_helper.to_array(tensor).astype(int).flatten().tolist()) for tensor in stored]
    assert len(held) == 8 and set[int]().union(*held) == levels


def test_the_reference_backend_is_its_own_runtime(repository: Path, tmp_path: Path) -> None:
    done = command(repository, "run", "--backend", "reference", *QUICK, "--output", str(tmp_path / "r"))

    assert done.returncode == 0, done.stderr
    assert read_report(tmp_path / "r" / "report.json").parity.exact_fraction == 1.0


def test_openvino_is_validated_on_its_own_kernels(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'faqd[openvino]'")
    folder = tmp_path / "ov"
    done = command(repository, "run", "--backend", "openvino", "--bits", "4", *QUICK, "--output", str(folder))
    report = read_report(folder / "report.json")

    assert done.returncode == 0, done.stderr
    assert report.status == "validated" and (report.kernels.integer, report.kernels.float) == (10, 0)
    assert report.parity.argmax_agreement is not None and report.parity.argmax_agreement >= 0.99
    assert {gate.name: gate.limit for gate in report.gates}["parity"] == 0.99
    assert any("OpenVINO rounds" in note for note in report.notes)
    assert report.latency.speedup is not None
    kinds = [t.data_type for t in onnx.load(folder / "bundle" / "model.onnx").graph.initializer]
    assert kinds.count(onnx.TensorProto.INT4) == 8
    check = [sys.executable, str(folder / "bundle" / "check.py")]
    assert "argmax 16 of 16" in subprocess.run(check, capture_output=True, text=True, check=True, timeout=60).stdout


def test_nncf_ends_in_the_same_report_and_bundle(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="NNCF is not installed: pip install 'faqd[nncf]'")
    folder = tmp_path / "nncf"
    arguments = ("--quantiser", "nncf", "--calibration-images", "64", "--output", str(folder))
    done = command(repository, "run", *arguments)
    report = read_report(folder / "report.json")

    assert done.returncode == 0, done.stderr
    assert "quantised by NNCF" in done.stdout and "simulated" not in done.stdout
    assert all(len(line) <= 100 for line in done.stdout.splitlines())
    assert report.quantiser == "nncf" and report.distillation is None and report.accuracy.simulated is None
    assert report.parity.argmax_agreement == report.parity.exact_fraction == 1.0
    assert (report.kernels.integer, report.kernels.float) == (10, 0)
    assert report.accuracy.runtime is not None and report.accuracy.runtime >= 0.98
    assert {layer.sqnr_db for layer in report.layers} == {None} and len(report.layers) == 10
    assert set(report.seconds) == {"teacher", "quantise", "validate"}
    assert read_bundle(folder / "bundle").plan.variant == host_profile().variant
    again = tmp_path / "again.json"
    assert command(repository, "validate", str(folder / "bundle"), "--report", str(again)).returncode == 0
    assert read_report(again).quantiser == "nncf"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--bits", "4"), "--bits 4: NNCF has 8-bit convolutions only"),
        (("--last-bits", "4"), "--last-bits 4: NNCF has 8-bit convolutions only"),
        (("--steps", "3"), "--steps 3 has no meaning with --quantiser nncf"),
        (("--range", "mse"), "--range mse has no meaning"),
        (("--backend", "tensorrt"), "--quantiser nncf has no files for --backend tensorrt"),
    ],
)
def test_what_nncf_cannot_do_is_refused(arguments: tuple[str, ...], said: str, capsys: Any) -> None:
    assert main(["run", "--quantiser", "nncf", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_a_quantiser_without_its_package_does_not_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: None if name == "nncf" else found(name, *more))
    assert main(["run", "--quantiser", "nncf", "--output", str(tmp_path / "o")]) == 2
    line = "--quantiser nncf needs the package nncf, which is not installed: pip install 'faqd[nncf]'"
    assert capsys.readouterr().err == f"error: {line}\n"
    assert not (tmp_path / "o").exists()


def test_an_unknown_quantiser_is_told_the_known_ones(capsys: Any) -> None:
    assert main(["run", "--quantiser", "ncnf"]) == 2
    assert 'Choose from: "faqd", "nncf"' in capsys.readouterr().err


def test_tensorrt_ends_unvalidated_with_its_own_status(repository: Path, tmp_path: Path) -> None:
    done = command(repository, "run", "--backend", "tensorrt", *QUICK, "--output", str(tmp_path / "t"))
    report = read_report(tmp_path / "t" / "report.json")

    assert done.returncode == 3, done.stderr
    assert report.status == "not-validated-on-target" and report.accuracy.runtime is None
    assert "check.py" in done.stdout
    said = "\n".join(report.notes)
    if importlib.util.find_spec("tensorrt_rtx") is None:
        assert "no engine was built" in said and report.kernels.integer is None
    else:
        assert "ahead of time" in said and report.kernels.integer == 10
    assert read_bundle(tmp_path / "t" / "bundle").backend == "tensorrt"


def test_another_processor_ends_unvalidated_with_what_was_chosen_for_it(repository: Path, tmp_path: Path) -> None:
    target = "x86-avx2" if host_cpu() != "x86-avx2" else "arm64"
    done = command(repository, "run", "--target", target, *QUICK, "--output", str(tmp_path / "t"))
    report, bundle = read_report(tmp_path / "t" / "report.json"), read_bundle(tmp_path / "t" / "bundle")

    assert done.returncode == 3, done.stderr
    assert report.target == bundle.target == bundle.manifest["target"] == target
    assert report.host["target"] == host_cpu()
    assert report.accuracy.runtime is None and report.kernels.integer == 10
    (gate,) = [gate for gate in report.gates if gate.name == "max-drop"]
    assert (gate.passed, gate.judged_by) == (True, "oracle") and "by the oracle" in done.stdout
    assert f"python3 {tmp_path / 't' / 'bundle' / 'check.py'}" in done.stdout
    said = "\n".join(report.notes)
    assert f"the artifact is for {target}" in said
    if target == "x86-avx2":
        assert "x86-avx2-limited is taken" in said or "x86-avx2-precise is taken" in said
        limits = {placement.grid.limit for placement in bundle.plan.weights}
        assert limits == ({63} if bundle.plan.variant == "x86-avx2-limited" else {None})
    again = command(repository, "validate", str(tmp_path / "t" / "bundle"), "--report", str(tmp_path / "again.json"))
    assert again.returncode == 3
    assert any(f"--target {host_cpu()}" in note for note in read_report(tmp_path / "again.json").notes)
    third = "arm64" if target == "x86-avx2" else "x86-avx2"
    line = refused(command(repository, "validate", str(tmp_path / "t" / "bundle"), "--emulate", third))
    assert f"was made for {target}" in line and f"--target {third}" in line


def test_a_failed_gate_keeps_the_bundle_and_says_so(repository: Path, tmp_path: Path) -> None:
    done = command(repository, "run", *QUICK, "--min-speedup", "1000", "--output", str(tmp_path / "gate"))

    assert done.returncode == 1
    assert read_report(tmp_path / "gate" / "report.json").status == "gate-failed"
    assert (tmp_path / "gate" / "bundle" / "manifest.json").exists()


BUILDER = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(8, 5),
    )

def nothing():
    return nn.Sequential(nn.ReLU(), nn.Flatten())

class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        x = self.conv(x)
        if x.sum() > 0:
            return x.mean((2, 3))
        return -x.mean((2, 3))

def branch():
    return Branch()

class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return torch.cumsum(self.conv(x), 3).mean((2, 3))

def summed():
    return Summed()
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a module with builders, photographs of many sizes, a broken one among them."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(BUILDER)
    generator = np.random.default_rng(0)
    (folder / "photos" / "deep").mkdir(parents=True)
    for index in range(12):
        pixels = generator.integers(0, 255, (40 + index, 52, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{index}.jpg")
    Image.fromarray(pixels[:, :, 0]).save(folder / "photos" / "deep" / "grey.png")
    (folder / "photos" / "broken.jpg").write_bytes((folder / "photos" / "1.jpg").read_bytes()[:200])
    return folder


def test_own_builder_and_photographs(own: Path, repository: Path) -> None:
    arguments = ("--teacher", "python:mine:build", "--image-size", "32", "--data", "images:photos", "--max-drop", "100")
    done = command(repository, "run", *arguments, *QUICK, "--batch-size", "4", "--output", "out", cwd=own)
    report = read_report(own / "out" / "report.json")

    assert done.returncode == 0, done.stderr
    again = command(repository, "run", *arguments[:-2], *QUICK, "--batch-size", "4", "--output", "few", cwd=own)
    assert again.returncode == 4 and "1 image cannot decide a limit of 1 point, 299 can" in " ".join(
        again.stdout.split()
    )
    assert report.accuracy.metric == "agreement" and report.accuracy.teacher is not None
    assert report.data is not None and report.data.unreadable == 1
    assert "broken.jpg" in report.data.unreadable_names[0]
    assert any("mean" in note and "assumed" in note for note in report.notes)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--teacher", "python:mine:nothing"), "no layer"),
        (("--teacher", "python:mine:branch"), "mine.py:"),
        (("--teacher", "python:mine:absent"), "absent"),
        (("--teacher", "python:mine:summed"), "no translation to ONNX"),
        (("--teacher", "python:mine:build", "--data", "images:nowhere"), "nowhere"),
        (("--teacher", "python:mine:build", "--taps", "9"), "--taps 9"),
        (("--teacher", "python:mine:build", "--device", "cuda:7"), "--device cuda:7"),
    ],
)
def test_own_mistakes_are_one_line_and_leave_no_bundle(
    own: Path, repository: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    data: tuple[Any, ...] = () if "--data" in arguments else ("--data", "images:photos")
    done = command(
        repository, "run", *arguments, *data, "--image-size", "32", *QUICK, "--output", str(tmp_path / "o"), cwd=own
    )

    assert said in refused(done)
    assert not (tmp_path / "o" / "bundle").exists()
