"""The bundle of a chain of calls is that of a run; nothing else on the disk is touched."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import faqd

pytestmark = pytest.mark.usefixtures("all_digits_narrow")

LEARNING: dict[str, Any] = {"steps": 2, "batch_size": 16, "learning_rate": 1e-4}
#: What holds times, which are new each time, and their hashes.
TIMED = {"manifest.json", "report.json", "report.html"}


@pytest.fixture(scope="module")
def artifact() -> faqd.Artifact:
    teacher = faqd.load_network("digits")
    images = faqd.open_images("digits", teacher, calibration_images=64)
    return faqd.convert(faqd.distil(faqd.prepare(teacher, images), teacher, images, **LEARNING))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_bundle_of_a_chain_is_that_of_a_run(artifact: faqd.Artifact, tmp_path: Path) -> None:
    report = faqd.run(
        faqd.RunConfig(
            data=faqd.DataConfig(calibration_images=64),
            distillation=faqd.DistillationConfig(**LEARNING),
            output=faqd.OutputConfig(folder=tmp_path / "run"),
        )
    )
    bundle = faqd.write_bundle(artifact, tmp_path / "mine" / "bundle", "digits")

    there, here = files(tmp_path / "run" / "bundle"), files(bundle.folder)
    assert here.keys() == there.keys() > {"model.onnx", "golden.npz", "check.py", "preprocess.py", *TIMED}
    assert {name for name in here if here[name] != there[name]} <= TIMED
    assert (tmp_path / "mine" / "float.onnx").read_bytes() == (tmp_path / "run" / "float.onnx").read_bytes()
    said, told = (json.loads(each["manifest.json"]) for each in (here, there))
    assert told.pop("run") and "run" not in said  # a chain is no run, which could be gone on with
    for manifest in (said, told):
        del manifest["sha256"]
        for name in ("report.json", "report.html"):
            del manifest["files"][name], manifest["sizes"][name]
    assert said == told
    assert bundle.report is not None
    assert (bundle.report.status, bundle.report.accuracy) == (report.status, report.accuracy)
    assert faqd.read_bundle(bundle.folder).manifest == bundle.manifest

    assert faqd.validate(bundle).status == "validated" and faqd.compare(bundle).exit_status == 0
    again = faqd.validate(bundle, "digits").accuracy
    assert (again.teacher, again.runtime) == (report.accuracy.teacher, report.accuracy.runtime)  # by float.onnx
    checked = subprocess.run([sys.executable, "check.py"], cwd=bundle.folder, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_images_and_limits_are_those_of_validate(artifact: faqd.Artifact, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), np.uint8)
    (tmp_path / "bundle").mkdir()  # an empty folder is a place
    limits = faqd.ValidationConfig(max_drop=7.0)
    bundle = faqd.write_bundle(artifact, str(tmp_path / "bundle"), pixels, limits)
    assert bundle.report is not None and bundle.report.accuracy.images == len(bundle.golden.inputs) == 3
    assert bundle.report.gates[0].limit == 7.0
    preprocessed = (torch.from_numpy(pixels).float() / 255 - bundle.preprocessing.mean[0]) / bundle.preprocessing.std[0]
    assert np.allclose(bundle.golden.inputs, preprocessed.numpy(), atol=1e-5)


def test_a_place_that_is_taken_is_left_as_it_is(artifact: faqd.Artifact, tmp_path: Path) -> None:
    folder, wrong = tmp_path / "photos", list[tuple[str, dict[str, Any]]]()
    folder.mkdir()
    (folder / "mine.txt").write_text("dear")
    wrong.append(("photos exists already: overwrite=True replaces it", {}))
    wrong.append(("is no bundle .* and is not replaced", {"overwrite": True}))
    for words, more in wrong:
        with pytest.raises(faqd.UserError, match=words):
            faqd.write_bundle(artifact, folder, **more)
    with pytest.raises(faqd.UserError, match=r"mine\.txt is no folder"):
        faqd.write_bundle(artifact, folder / "mine.txt")
    (tmp_path / "float.onnx").write_text("another network's")
    with pytest.raises(faqd.UserError, match=r"float\.onnx is another file than the float network"):
        faqd.write_bundle(artifact, tmp_path / "bundle")
    assert files(tmp_path) == {"photos/mine.txt": b"dear", "float.onnx": b"another network's"}

    with pytest.raises(faqd.UserError, match=r"write_bundle takes an artifact of faqd\.convert, first, not a Student"):
        faqd.write_bundle(artifact.student, tmp_path / "bundle")  # type: ignore[arg-type]  # that is the point
    with pytest.raises(faqd.UserError, match="no configuration of this command"):
        faqd.write_bundle(artifact, tmp_path / "bundle", None, {"max_drop": 3})  # type: ignore[arg-type]  # the same


def test_an_earlier_bundle_is_replaced_where_that_is_asked_for(artifact: faqd.Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    (folder / "left").write_text("of an earlier one")
    (tmp_path / "float.onnx").write_text("an earlier one's")
    bundle = faqd.write_bundle(artifact, folder, overwrite=True)
    assert not (folder / "left").exists() and (tmp_path / "float.onnx").read_bytes() == artifact.float_model
    assert bundle.model == artifact.model
