"""Bundles that are validated again: what was changed, what is too old, few images and many."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backends.base import Runner
from backends.device.bundle_check.stored import text_as_written
from backends.onnx_file.serialised import Serialised
from backends.onnxruntime.backend import OnnxRuntime
from pipeline.cli import main
from pipeline.images import embedded
from pipeline.report.schema import read_report
from tests.command_line import command
from tests.vouched import vouch


def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished bundle with the float network beside it."""
    shutil.copytree(finished / "bundle", tmp_path / "bundle")
    shutil.copy(finished / "float.onnx", tmp_path / "float.onnx")
    return tmp_path / "bundle"


def test_a_changed_bundle_is_refused(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(finished / "bundle", copy)
    (copy / "model.onnx").write_bytes(b"x" + (copy / "model.onnx").read_bytes()[1:])

    assert "SHA-256" in command("validate", str(copy)).refusal
    (copy / "model.onnx").unlink()
    assert "missing" in command("validate", str(copy)).refusal


def test_an_edited_manifest_is_refused(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = copied(finished, tmp_path)
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert (
        "manifest.json was changed after it was written (its layout is another)"
        in command("validate", str(bundle)).refusal
    )
    manifest["preprocessing"]["mean"] = [0.0]
    (bundle / "manifest.json").write_text(json.dumps(manifest, indent=1))
    capsys.readouterr()
    assert main(["validate", str(bundle), "--quiet"]) == 2
    assert "manifest.json was changed after it was written (its own SHA-256 differs)" in capsys.readouterr().err
    done = subprocess.run([sys.executable, str(bundle / "check.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "manifest.json was changed after it was written" in done.stderr


def test_a_bundle_that_was_changed_and_vouched_for_anew_is_one_line(finished: Path, tmp_path: Path) -> None:
    bundle = copied(finished, tmp_path)
    original = json.loads((bundle / "manifest.json").read_text())
    plan = original["plan"]
    for changes, line in (
        ({"plan": None}, "manifest.json: lacks the key 'plan': copy the bundle anew, or make it anew"),
        ({"plan": plan | {"activations": [3]}}, "manifest.json: plan.activations[0] is 3: must be a JSON object"),
        ({"outputs": "all"}, "manifest.json: outputs is 'all': must be a list, each of them"),
        ({"preprocessing": {"mean": "grey"}}, "manifest.json: preprocessing.mean is 'grey': must be a list"),
    ):
        vouch(bundle, **(original | changes))
        for verb in ("validate", "compare"):
            assert line in command(verb, str(bundle)).refusal
    with np.load(bundle / "golden.npz") as arrays:
        none = {name: values[:0] for name, values in arrays.items()}
    np.savez(bundle / "golden.npz", allow_pickle=False, **none)
    vouch(bundle, **original)
    assert "golden.npz holds no images with their outputs" in command("validate", str(bundle)).refusal
    (bundle / "golden.npz").write_bytes(b"nothing")
    vouch(bundle, **original)
    assert "golden.npz cannot be read" in command("validate", str(bundle)).refusal


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

    def write(tree: dict[str, object]) -> None:
        (bundle / "manifest.json").write_bytes(text_as_written(tree))

    for key in ("sha256", "float_model", "least_parity", "sizes", "exact"):
        del manifest[key]
    write(manifest)
    assert main(["validate", str(bundle), "--quiet"]) == 0
    assert "of format 2, made before manifests were hashed" in " ".join(capsys.readouterr().out.split())
    done = subprocess.run([sys.executable, str(bundle / "check.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "of format 2, made before manifests were hashed" in done.stdout, done.stderr
    write(manifest | {"exact": True})
    assert "has format 2, and exact, which such manifests have not" in command("validate", str(bundle)).refusal
    write(manifest | {"format": 5})
    assert "has format 5: this version reads 2, 3 or 4" in command("validate", str(bundle)).refusal


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
    # Nothing is simulated behind a bundle.
    judged = [(gate.name, gate.value) for gate in run.gates if gate.name != "simulation"]
    assert [(gate.name, gate.value) for gate in report.gates] == judged and len(judged) == len(run.gates) - 1
    (tmp_path / "float.onnx").write_bytes((bundle / "model.onnx").read_bytes())
    assert main(arguments) == 2
    assert "float.onnx is not the float network of this bundle's run" in capsys.readouterr().err
    (tmp_path / "float.onnx").unlink()
    assert main(arguments) == 4
    said = "".join(capsys.readouterr().out.split())  # long paths are broken where the table ends
    assert "float.onnx,thefloatnetworkthatarunleaves,isabsent" in said
    assert "thereisnofloatnetworktocomparewith" in said


def test_validate_repeats_the_verdict(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.json"
    done = command("validate", str(finished / "bundle"), "--report", str(out), "--eval-data", "digits")

    assert done.status == 0, done.err
    assert read_report(out).accuracy.runtime == read_report(finished / "report.json").accuracy.runtime
    assert command("validate", str(finished / "bundle")).status == 0


@pytest.mark.parametrize("verb", ["validate", "compare"])
def test_scoring_takes_the_threads_that_torch_has(finished: Path, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that OMP_NUM_THREADS and the processors of a container hold; latency alone is measured on one."""
    asked, runner = set[int](), OnnxRuntime.runner

    def counted(self: OnnxRuntime, model: Serialised, *, threads: int) -> AbstractContextManager[Runner]:
        asked.add(threads)
        return runner(self, model, threads=threads)

    monkeypatch.setattr(OnnxRuntime, "runner", counted)
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    assert main([verb, str(finished / "bundle"), "--quiet"]) == 0
    assert asked == ({1, 3} if verb == "validate" else {3})
