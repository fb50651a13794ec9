"""The check that a deployment image runs on a bundle."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from backends.device.bundle_check.errors import DeviceError
from backends.device.bundle_check.images import ScoredFiles, open_images, scored
from backends.device.bundle_check.manifest import Needed, OutputEntry
from backends.device.bundle_check.runtimes import refuse_old
from pipeline.bundle.device_files import check_files
from pipeline.images.preprocessing import Preprocessing
from tests.vouched import manifest_with, vouch


def make_model(folder: Path, batch: str | int = "batch") -> None:
    """A network with two outputs: its input doubled, and its input."""
    nodes = [helper.make_node("Add", ["x", "x"], ["twice"]), helper.make_node("Identity", ["x"], ["same"])]
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 4]) for name in ("x", "twice", "same")]
    model = helper.make_model(
        helper.make_graph(nodes, "double", shapes[:1], shapes[1:]), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    onnx.save(model, folder / "model.onnx")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose network answers right."""
    make_model(tmp_path)
    inputs = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    save(tmp_path, inputs, {"twice": 2 * inputs, "same": inputs})
    return tmp_path


def save(bundle: Path, inputs: np.ndarray, outputs: dict[str, np.ndarray], **changes: Any) -> None:
    """Write golden arrays and a manifest; `changes` of the manifest, `holds` of the second output."""
    arrays: Any = {f"outputs.{name}": value for name, value in outputs.items()}
    np.savez(bundle / "golden.npz", inputs=inputs, **arrays)
    same = {"name": "same", "holds": changes.pop("holds", "values")}
    twice = {"name": "twice", "holds": "classes", "class_axis": 1}
    (bundle / "manifest.json").unlink(missing_ok=True)
    vouch(bundle, **{"least_parity": 1.0, "outputs": [twice, same]} | changes)


def check(
    bundle: Path, *arguments: str, without: tuple[str, ...] = (), vouched: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run the bundle's own check.py, where neither the project nor torch can be imported."""
    backend = json.loads((bundle / "manifest.json").read_text())["backend"] if not without else "onnxruntime"
    for name, content in check_files(backend).items():
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_bytes(content)
    if vouched:
        vouch(bundle)
    hidden = ("torch", "onnx", "backends", "calibration", "pipeline", *without)
    before = bundle.with_name(f"{bundle.name}-before")  # beside it: what check.py leaves in its folder is looked at
    before.mkdir(exist_ok=True)
    (before / "sitecustomize.py").write_text(f"import sys\nfor name in {hidden}:\n    sys.modules[name] = None\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPATH"] = str(before)
    line = [sys.executable, str(bundle / "check.py"), *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=environment, cwd=bundle)


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def golden(bundle: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    with np.load(bundle / "golden.npz") as arrays:
        return arrays["inputs"], {name: arrays[f"outputs.{name}"] for name in ("twice", "same")}


def test_a_good_bundle_passes_with_a_line_per_output(bundle: Path) -> None:
    done = check(bundle, "--report", "../out.json", "--batch", "3", "--threads", "2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("device             ") and "ONNX Runtime" in lines[0]
    assert lines[1:3] == [
        "runtime vs oracle  twice: same argmax 5 of 5, equal to the bit 100.00 %, largest difference 0",
        "runtime vs oracle  same: values alike, R2 100 %, equal to the bit 100.00 %, largest difference 0",
    ]
    assert lines[3].startswith("latency            ") and lines[3].endswith("batch 3, threads 2")
    assert lines[4] == "status             as it should be"
    report = json.loads((bundle.parent / "out.json").read_text())
    assert (
        report["passed"] is True and report["latency"]["median_ms"] > 0 and set(report["golden"]) == {"twice", "same"}
    )
    assert not list(bundle.rglob("__pycache__")), "a bundle stays as its manifest says"
    shown = check(bundle, "--help")
    assert shown.returncode == 0 and "--images" in shown.stdout and "Exit status: 0" in " ".join(shown.stdout.split())


@pytest.mark.parametrize("batch", ["batch", 3])
def test_a_bundle_for_openvino_runs_on_openvino(bundle: Path, batch: str | int) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'faqd[openvino]'")
    make_model(bundle, batch=batch)
    inputs, outputs = golden(bundle)
    save(bundle, inputs, outputs, backend="openvino")
    done = check(bundle)
    assert done.returncode == 0, done.stderr
    assert "OpenVINO" in done.stdout and "same argmax 5 of 5" in done.stdout
    assert (f"batch {batch}, threads" in done.stdout) == (batch == 3)


def test_a_batch_size_that_the_graph_fixed_is_filled_up(bundle: Path) -> None:
    make_model(bundle, batch=2)
    inputs, outputs = golden(bundle)
    save(bundle, inputs, outputs, holds="labels")
    done = check(bundle)
    assert done.returncode == 0, done.stderr
    assert "same: same yes or no 20 of 20" in done.stdout


@pytest.mark.parametrize("wrong", ["twice", "same"])
def test_any_other_output_fails(bundle: Path, wrong: str) -> None:
    inputs, outputs = golden(bundle)
    save(bundle, inputs, outputs | {wrong: -outputs[wrong]})
    done = check(bundle)
    assert done.returncode == 1 and "FAIL, at least 100 % must be" in done.stdout


def test_the_limit_is_the_one_of_the_runs_own_gate(bundle: Path) -> None:
    """What `faqd validate` passes passes here: values that explain 99.9 % where floats may round, and not else."""
    inputs, outputs = golden(bundle)
    outputs["same"] = outputs["same"] + np.float32(0.02) * np.random.default_rng(1).normal(size=(5, 4)).astype(
        np.float32
    )
    save(bundle, inputs, outputs, least_parity=0.99)
    assert check(bundle).returncode == 0
    save(bundle, inputs, outputs, least_parity=1.0)
    assert check(bundle).returncode == 1


def test_a_damaged_or_edited_bundle_is_not_run(bundle: Path) -> None:
    inputs, outputs = golden(bundle)
    check(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["preprocessing"]["mean"] = [0.0]
    (bundle / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    assert "manifest.json was changed after it was written" in refused(check(bundle, vouched=False))
    save(bundle, inputs, outputs, backend="tensorrt")
    assert "is a bundle for 'tensorrt': make one with --backend onnxruntime" in refused(check(bundle, without=("x",)))
    save(bundle, inputs, outputs)
    (bundle / "model.onnx").write_bytes(b"")
    assert "model.onnx is not what was written: it has 0 bytes" in refused(check(bundle, vouched=False))
    (bundle / "manifest.json").unlink()
    assert "manifest.json is missing" in refused(check(bundle, without=("x",), vouched=False))


def test_what_the_runtime_lacks_is_one_line(bundle: Path) -> None:
    inputs, outputs = golden(bundle)
    assert "check.py needs NumPy (" in refused(check(bundle, without=("numpy",)))
    assert "the package onnxruntime is not installed here" in refused(check(bundle, without=("onnxruntime",)))
    needed = {"name": "onnxruntime", "least": "99.1", "why": "its opset is 77", "way_out": "a lower --opset"}
    save(bundle, inputs, outputs, runtime=needed)
    line = refused(check(bundle))
    assert "is too old for this bundle's model, which needs 99.1 or newer (its opset is 77)" in line
    (bundle / "model.onnx").write_bytes(b"no model")
    save(bundle, inputs, outputs)
    assert "cannot load" in refused(check(bundle))


def test_the_manifests_session_options_are_set(bundle: Path) -> None:
    inputs, outputs = golden(bundle)
    save(bundle, inputs, outputs, session_options={"session.load_model_format": "ONNX"})
    assert check(bundle).returncode == 0
    save(bundle, inputs, outputs, session_options={"session.load_model_format": "ORT"})
    assert "cannot load" in refused(check(bundle)), "an ONNX file is none of ORT's own format"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch", "0"), "--batch 0: must be 1 or more"),
        (("--images", "absent"), "--images absent: is no folder of images and no FILE.npz#IMAGES"),
        (("--images", "absent.npz#x"), "--images absent.npz#x: cannot be read"),
        (("--images", "."), "has no preprocess.py to prepare images by"),
        (("--outputs", "../a.npz"), "--outputs ../a.npz needs --images"),
        (("--report", "out.json"), "--report out.json lies in the bundle, whose files are those of its manifest alone"),
        (("--images", "a#b", "--outputs", "a.npz"), "--outputs a.npz lies in the bundle"),
        (("--report", "/dev/null/a.json"), "cannot write /dev/null/a.json: "),
    ],
)
def test_mistakes_are_one_line(bundle: Path, arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(check(bundle, *arguments))


class Answers:
    """Manifests and runs of three kinds of networks, as `scored` gets them."""

    CLASSES: ClassVar = OutputEntry(name="y", holds="classes", class_names=("cat", "dog", "cow"))
    VALUES: ClassVar = OutputEntry(name="y", holds="values")

    @staticmethod
    def of(entry: OutputEntry, values: np.ndarray, labels: np.ndarray | None = None) -> tuple[dict[str, Any], str]:
        said: list[str] = []
        names = [f"{index}.jpg" for index in range(len(values))]
        images = ScoredFiles(names=names, labels=labels, batches=iter([np.zeros((len(values), 1, 2, 2), np.float32)]))
        return scored(images, lambda batch: {"y": values}, [entry], said.append), "\n".join(said)


def test_images_are_scored_or_named_whatever_the_network_says() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]]
    answers, said = Answers.of(Answers.CLASSES, logits, np.array([0, 1, 2, 0]))
    assert answers["top1"] == 0.75 and said == "accuracy           75.00 % of 4 images"
    _, said = Answers.of(Answers.CLASSES, logits)
    assert [line.split(": ")[1] for line in said.splitlines()] == ["cat", "dog", "cow", "cow"]
    # A segmentation of 2 x 2 pixels: three of four right, 255 is no class; IoU by hand: cat 1/2, dog 1/2.
    maps = np.eye(3, dtype=np.float32)[np.array([[[0, 1], [1, 1]]])].transpose(0, 3, 1, 2)
    answers, said = Answers.of(Answers.CLASSES, maps, np.array([[[0, 0], [1, 255]]]))
    assert (
        answers["scored"] == 3 and answers["top1"] == pytest.approx(2 / 3) and answers["mean_iou"] == pytest.approx(0.5)
    )
    _, said = Answers.of(Answers.CLASSES, maps)
    assert said.endswith("0.jpg: dog 75.0 %, cat 25.0 %")
    _, said = Answers.of(Answers.VALUES, np.array([[-1.5, 2.0]], np.float32))
    assert said.endswith("values -1.5 to 2")
    labels = replace(Answers.CLASSES, holds="labels", threshold=0.5)
    _, said = Answers.of(labels, np.array([[0.4, 0.9, 0.6]], np.float32))
    assert said.endswith("2 of 3 yes: dog, cow")
    with pytest.raises(DeviceError, match="no output of this network holds classes"):
        Answers.of(Answers.VALUES, logits, np.zeros(4, np.int64))
    with pytest.raises(DeviceError, match="labels 0 to 3, but there are 3 classes"):
        Answers.of(Answers.CLASSES, logits, np.array([0, 1, 2, 3]))
    with pytest.raises(DeviceError, match=r"labels \[4\] for the decisions \[1, 2, 2\]"):
        Answers.of(Answers.CLASSES, maps, np.zeros(4, np.int64))


def test_arrays_of_bytes_are_prepared_as_the_manifest_says(tmp_path: Path) -> None:
    preprocessing = {"channels": 3, "height": 4, "width": 5, "channel_order": "RGB"}
    preprocessing |= {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.25, 0.2], "divisor": 255.0}
    manifest = manifest_with(preprocessing=preprocessing)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 3, 4, 5), np.uint8)
    np.savez(tmp_path / "a.npz", first=pixels, last=pixels.transpose(0, 2, 3, 1), y=np.arange(70), short=np.arange(3))
    expected = (pixels / 255 - np.reshape([0.1, 0.2, 0.3], (3, 1, 1))) / np.reshape([0.5, 0.25, 0.2], (3, 1, 1))
    for keys in ("first", "last", "first,y"):
        images = open_images(f"{tmp_path / 'a.npz'}#{keys}", tmp_path, manifest)
        np.testing.assert_allclose(np.concatenate(list(images.batches)), expected, atol=1e-5)
        assert (images.labels is not None) == ("y" in keys) and len(images.names) == 70
    for keys, message in (("y", "images int64"), ("first,short", "70 images with 3 labels"), ("absent", "cannot be")):
        with pytest.raises(DeviceError, match=message):
            open_images(f"{tmp_path / 'a.npz'}#{keys}", tmp_path, manifest)


def test_a_folder_of_images_is_prepared_by_the_bundles_own_file(
    bundle: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders named as classes are labels; others are not, and what cannot be decoded or is missing is one line."""
    shutil.copy(repository / "pipeline" / "images" / "device_preprocess.py", bundle / "preprocess.py")
    preprocessing = Preprocessing(
        channels=1,
        height=2,
        width=2,
        resize=None,
        interpolation="bilinear",
        mean=(0.5,),
        std=(0.25,),
        channel_order="L",
    ).to_json()
    outputs = [{"name": "y", "holds": "classes", "class_names": ["cat", "dog"]}]
    vouch(bundle, preprocessing=preprocessing, outputs=outputs)
    manifest = manifest_with(**json.loads((bundle / "manifest.json").read_bytes()))
    photos = bundle / "photos"
    for name, grey in (("cat/1.png", 0), ("dog/2.png", 255), ("dog/10.png", 51)):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 4), grey).save(photos / name)
    images = open_images(str(photos), bundle, manifest)
    assert images.names == ["cat/1.png", "dog/2.png", "dog/10.png"]
    assert images.labels is not None and images.labels.tolist() == [0, 1, 1]
    (batch,) = images.batches
    assert batch.shape == (3, 1, 2, 2)
    np.testing.assert_allclose(batch[:, 0, 0, 0], [-2, 2, (0.2 - 0.5) / 0.25], atol=1e-6)
    (photos / "cat" / "b\nroken.png").write_bytes(b"no image")
    images = open_images(str(photos), bundle, manifest)
    said: list[str] = []
    result = scored(
        images, lambda batch: {"y": np.eye(2)[(batch[:, 0, 0, 0] > -2).astype(int)]}, manifest.outputs, said.append
    )
    assert result["images"] == result["scored"] == 3 and result["top1"] == 1.0
    assert said[0] == "left out           1 that cannot be decoded: cat/b\N{REPLACEMENT CHARACTER}roken.png"
    assert result["unreadable"] == ["cat/b\nroken.png"]
    (photos / "broken.png").write_bytes(b"no image")
    assert open_images(str(photos), bundle, manifest).labels is None
    shutil.rmtree(photos / "cat")
    shutil.rmtree(photos / "dog")
    with pytest.raises(DeviceError, match=r"none can be decoded: .*broken\.png"):
        scored(open_images(str(photos), bundle, manifest), lambda batch: {}, manifest.outputs, said.append)
    (bundle / "empty").mkdir()
    with pytest.raises(DeviceError, match="empty: holds no images"):
        open_images(str(bundle / "empty"), bundle, manifest)
    original = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "PIL" else original(name, *more)
    )
    with pytest.raises(DeviceError, match="needs Pillow to decode images: pip install pillow"):
        open_images(str(photos), bundle, manifest)


@pytest.mark.parametrize(
    ("inputs", "outputs", "line"),
    [
        ((0, 4), {"twice": (0, 4), "same": (0, 4)}, "holds no images with their outputs (inputs [0, 4]"),
        ((5, 4), {"twice": (4, 4), "same": (5, 4)}, "holds no images with their outputs (inputs [5, 4]"),
        ((5, 4), {"twice": (5, 4)}, "golden.npz has no array 'outputs.same'"),
        ((5, 3), {"twice": (5, 3), "same": (5, 3)}, "golden inputs are float32 [5, 3], model.onnx takes images of"),
        ((5, 4), {"twice": (5, 4), "same": (5, 2)}, "model.onnx gives same as [5, 4], golden.npz has [5, 2]"),
    ],
)
def test_whoever_vouches_for_it_a_bundle_that_cannot_be_compared_is_one_line(
    bundle: Path, inputs: tuple[int, ...], outputs: dict[str, tuple[int, ...]], line: str
) -> None:
    save(bundle, np.ones(inputs, np.float32), {name: np.ones(shape, np.float32) for name, shape in outputs.items()})
    assert line in refused(check(bundle))


def test_a_manifest_that_does_not_say_what_outputs_hold_is_one_line(bundle: Path) -> None:
    said = json.loads((bundle / "manifest.json").read_bytes())["outputs"]
    vouch(bundle, outputs=[said[0], {"name": "same"}])
    assert "manifest.json: outputs[1] lacks the key 'holds'" in refused(check(bundle))
    vouch(bundle, outputs=[said[0], said[1] | {"holds": None}])
    assert "manifest.json: outputs[1].holds is None: must be classes, labels or values" in refused(check(bundle))


def test_versions_are_compared_by_numbers() -> None:
    needed = Needed(name="onnxruntime", least="1.17", why="its opset is 20", way_out="--opset 17")
    for version, old in (("1.9.1", True), ("1.16.3", True), ("1.17.0", False), ("1.31.1", False), ("2.0.0rc1", False)):
        if old:
            with pytest.raises(DeviceError, match=r"needs 1\.17 or newer"):
                refuse_old("onnxruntime", version, needed)
        else:
            refuse_old("onnxruntime", version, needed)
    refuse_old("openvino", "1.0", needed)
    refuse_old("onnxruntime", "1.0", None)
