"""Bundles and state of which anything was changed: each reader refuses in one line, and executes nothing of them."""

from __future__ import annotations

import importlib.util
import json
import marshal
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import faqd
from backends.device.bundle_check import __main__ as device
from calibration.errors import UserError
from pipeline.artifacts import PreparedStudent
from pipeline.bundle.bundle import read_bundle
from pipeline.report.schema import Distillation
from pipeline.setup.run_folder import RunFolder
from pipeline.tools.kept import Kept
from tests.command_line import QUICK, command
from tests.stored_changes import Change, changes_of_file, changes_of_folder, changes_of_json, linked_copy
from tests.stored_reading import Reading, read_by, same_files
from tests.vouched import seal, vouch

pytestmark = pytest.mark.usefixtures("all_digits_narrow")

#: Of the corpus: `tests/benchmarks/test_stored_files.py` reads all of it, by whole commands.
CUTS, FLIPS, FEW = 2, 3, 80


def few(changes: Iterable[Change]) -> list[Change]:
    """Some of the changes, the same each time."""
    return random.Random(0).sample(list(changes), FEW)


def copy_of(folder: Path, target: Path) -> Path:
    """A copy to write into."""
    return shutil.copytree(folder, target)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("changed")


def reseal(file: str) -> Callable[[Path], None]:
    def sealing(folder: Path) -> None:
        tree = json.loads((folder / file).read_bytes())
        if isinstance(tree, dict):
            seal(folder / file, tree)

    return sealing


def checked(bundle: Path) -> Reading:
    return read_by(lambda: device.main([], bundle))


def opened(bundle: Path) -> Reading:
    """As `faqd validate` and `faqd compare` begin."""

    def opening() -> int:
        try:
            read_bundle(bundle)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0

    return read_by(opening)


def not_refused(
    source: Path, target: Path, changes: Iterable[Change], read: Callable[[Path], Reading]
) -> Iterator[tuple[str, int | str, str]]:
    """The changes that are not refused in one line, with what became of them."""
    for change in changes:
        copy = linked_copy(source, target)
        change.make(copy)
        reading = read(copy)
        if not reading.refused and not same_files(source, copy):
            yield change.name, reading.ended, reading.err


@pytest.mark.parametrize("read", [checked, opened])
@pytest.mark.parametrize("file", ["manifest.json", "model.onnx", "golden.npz", "faqd_device/bundle_check/golden.py"])
def test_every_damage_to_a_file_of_a_bundle_is_refused(
    file: str, read: Callable[[Path], Reading], finished: Path, desk: Path
) -> None:
    source, draw = finished / "bundle", random.Random(file)
    changes = changes_of_file(file, (source / file).stat().st_size, cuts=CUTS, flips=FLIPS, draw=draw)
    assert list(not_refused(source, desk / "bundle", changes, read)) == []


@pytest.mark.parametrize("read", [checked, opened])
def test_every_edit_of_a_manifest_is_refused(read: Callable[[Path], Reading], finished: Path, desk: Path) -> None:
    source = finished / "bundle"
    tree = json.loads((source / "manifest.json").read_bytes())
    changes = few(changes_of_json("manifest.json", tree, reseal=None, most=FEW, draw=random.Random(0)))
    assert list(not_refused(source, desk / "bundle", changes, read)) == []


@pytest.mark.parametrize("read", [checked, opened])
def test_whatever_a_manifest_that_vouches_for_itself_says_is_read_or_refused(
    read: Callable[[Path], Reading], finished: Path, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no more than another name or number may be read; nothing is a traceback, and nothing hangs."""
    monkeypatch.setattr(device, "load", refuses)
    source = finished / "bundle"
    tree = json.loads((source / "manifest.json").read_bytes())
    del tree["sizes"], tree["files"], tree["versions"]  # which are named by themselves below, or nothing reads
    changes = few(
        changes_of_json("manifest.json", tree, reseal=reseal("manifest.json"), most=FEW, draw=random.Random(1))
    )
    ended = list(not_refused(source, desk / "bundle", changes, read))
    assert [one for one in ended if one[1] not in (0, "SystemExit 0")] == []


def refuses(*_: object) -> None:
    """In place of the runtime: a bundle that came as far is read."""
    raise SystemExit(0)


@pytest.mark.parametrize("read", [checked, opened])
def test_files_beside_those_of_a_bundle_and_lists_that_lead_elsewhere_are_refused(
    read: Callable[[Path], Reading], finished: Path, desk: Path
) -> None:
    source = finished / "bundle"
    listed = json.loads((source / "manifest.json").read_bytes())["files"]
    few = {name: listed[name] for name in ("model.onnx", "golden.npz")}
    changes = changes_of_folder(few, reseal=reseal("manifest.json"))
    assert list(not_refused(source, desk / "bundle", changes, read)) == []


def test_what_lies_in_a_bundle_is_not_executed_before_it_is_refused(finished: Path, tmp_path: Path) -> None:
    """Modules of Python's and of ours, planted as source and as bytecode; by the real program in a real process."""
    bundle = copy_of(finished / "bundle", tmp_path / "bundle")
    names = ("numpy", "json", "hashlib", "runpy", "importlib", "onnxruntime", "argparse", "faqd_device")
    for name in names:
        (bundle / f"{name}.py").write_text("print('EXECUTED')\n")
    cache = bundle / "faqd_device" / "bundle_check" / "__pycache__"
    cache.mkdir()
    tag = sys.implementation.cache_tag
    (cache / f"manifest.{tag}.pyc").write_bytes(planted_bytecode(bundle / "faqd_device/bundle_check/manifest.py"))
    for place, arguments in ((tmp_path, [str(bundle / "check.py")]), (bundle, ["check.py"])):
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, cwd=place)
        assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1, done
        assert "which manifest.json does not list" in done.stderr
    (bundle / "photo.png").write_bytes(b"no picture")
    made = [sys.executable, "preprocess.py", "photo.png", "--output", str(tmp_path / "inputs.npz")]
    done = subprocess.run(made, capture_output=True, text=True, check=False, cwd=bundle)
    assert (done.returncode, done.stdout) == (2, "") and "none of 1 images can be read" in done.stderr
    (bundle / "faqd_device" / "bundle_check" / "errors.py").write_text("print('EXECUTED')\n")
    done = subprocess.run([sys.executable, str(bundle / "check.py")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "") and "errors.py is not what manifest.json says" in done.stderr


def test_check_py_runs_no_code_of_its_own_that_nobody_vouches_for(finished: Path, tmp_path: Path) -> None:
    bundle = copy_of(finished / "bundle", tmp_path / "bundle")
    tree = json.loads((bundle / "manifest.json").read_bytes())
    del tree["files"]["faqd_device/bundle_check/stored.py"], tree["sizes"]["faqd_device/bundle_check/stored.py"]
    (bundle / "manifest.json").write_text(json.dumps(tree, indent=1) + "\n")
    program = [sys.executable, str(bundle / "check.py")]
    for line in ("its own SHA-256 differs", "vouches for no module faqd_device.bundle_check.stored"):
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and line in done.stderr, done
        seal(bundle / "manifest.json", tree)


def planted_bytecode(source: Path) -> bytes:
    """Bytecode that Python takes for that of a source (PEP 552), and that says so when it is executed."""
    status = source.stat()
    code = marshal.dumps(compile("print('EXECUTED')", str(source), "exec"))
    return importlib.util.MAGIC_NUMBER + struct.pack("<III", 0, int(status.st_mtime), status.st_size) + code


def test_a_changed_weight_is_found_by_the_golden_outputs_whoever_vouches_for_it(finished: Path, tmp_path: Path) -> None:
    """One weight of a step of its grid: no class changes by it, and every hash fits."""
    bundle = copy_of(finished / "bundle", tmp_path / "bundle")
    model = onnx.load(bundle / "model.onnx")
    weight = next(
        tensor
        for tensor in model.graph.initializer
        if len(tensor.dims) == 4 and tensor.data_type == onnx.TensorProto.INT8
    )
    values = numpy_helper.to_array(weight).copy()
    values.reshape(-1)[values.size // 2] += 1 if values.reshape(-1)[values.size // 2] < 60 else -1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    vouch(bundle)
    assert read_by(lambda: device.main([], bundle)).ended == 1
    for verb in ("validate", "compare"):
        assert "model.onnx does not give the outputs of golden.npz" in command(verb, str(bundle)).refusal
    weight.dims[0] -= 1  # and one that nobody can compute
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    vouch(bundle)
    for verb in ("validate", "compare"):
        assert "does not give the outputs of golden.npz" in command(verb, str(bundle)).refusal
    # Golden outputs off by their last bit are no more those of the run than a weight is.
    shutil.copy(finished / "bundle" / "model.onnx", bundle / "model.onnx")
    with np.load(bundle / "golden.npz") as kept:
        arrays = dict(kept)
    arrays["outputs.output"] = np.nextafter(arrays["outputs.output"], np.float32(np.inf))
    np.savez(bundle / "golden.npz", allow_pickle=False, **arrays)
    vouch(bundle)
    assert read_by(lambda: device.main([], bundle)).ended == 1
    assert "does not give the outputs of golden.npz" in command("validate", str(bundle)).refusal


def test_a_signed_bundle_is_read_by_its_key_alone(finished: Path, tmp_path: Path) -> None:
    bundle, key, other = copy_of(finished / "bundle", tmp_path / "bundle"), tmp_path / "key", tmp_path / "other"
    key.write_bytes(os.urandom(32))
    other.write_bytes(os.urandom(32))
    unsigned = copy_of(bundle, tmp_path / "unsigned")
    assert command("sign", str(bundle), "--key", str(key)).status == 0
    keys = {"": (), "key": ("--key", str(key)), "other": ("--key", str(other)), "short": ("--key", os.devnull)}
    lines = {
        "": "is signed: give the file of its key",
        "other": "is not signed by this key",
        "short": "no regular file",
    }
    for name, more in keys.items():
        program = [sys.executable, str(bundle / "check.py"), *more]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        ended = [command(verb, str(bundle), *more) for verb in ("validate", "compare")]
        if name == "key":
            assert [done.returncode, *(one.status for one in ended)] == [0, 0, 0], done.stderr
        else:
            assert all(lines[name] in said for said in (done.stderr, *(one.refusal for one in ended)))
    assert "is not signed, and a key is given" in command("validate", str(unsigned), "--key", str(key)).refusal
    sign = ("sign", str(bundle), "--key", str(other))
    assert "not signed by this key: give the key that signed it" in (said := command(*sign).refusal)
    assert "where another is to take its place, with --old-key" in said
    assert "is not signed by this key" in command(*sign, "--old-key", str(other)).refusal
    assert f"--old-key {os.devnull} is no regular file" in command(*sign, "--old-key", os.devnull).refusal
    of_none = command("sign", str(unsigned), "--key", str(key), "--old-key", str(other))
    assert "is not signed, so that no old key is needed" in of_none.refusal
    before = (bundle / "manifest.json").read_bytes()
    assert command(*sign, "--old-key", str(key)).status == 0
    assert "is not signed by this key" in command("compare", str(bundle), "--key", str(key)).refusal
    assert command("sign", str(bundle), "--key", str(key), "--old-key", str(other)).status == 0
    assert (bundle / "manifest.json").read_bytes() == before
    # A forger makes every hash anew, and has no key.
    vouch(bundle, seed=7)
    assert "is not signed by this key" in command("validate", str(bundle), "--key", str(key)).refusal
    tree = json.loads((bundle / "manifest.json").read_bytes())
    del tree["hmac_sha256"]
    (bundle / "manifest.json").write_text(json.dumps(tree, indent=1) + "\n")
    assert "its own SHA-256 differs" in command("validate", str(bundle)).refusal, "also without a key"
    assert faqd.read_bundle(unsigned).manifest.hmac_sha256 is None
    with pytest.raises(faqd.UserError, match="is not signed"):
        faqd.read_bundle(unsigned, key=key)


def state_reader(file: str) -> Callable[[Path], object]:
    """What reads a file of a run's state, given the folder of the run."""
    readers: dict[str, Callable[[Path], object]] = {
        "settings.json": lambda root: RunFolder(root=root).recorded(),
        "prepared.json": lambda root: Kept(root / "state" / "prepared.json").load_tree(),
        "trained.safetensors": lambda root: Kept(root / "state" / "trained.safetensors").load(Distillation),
    }
    return readers[file]


def state_read(read: Callable[[Path], object]) -> Callable[[Path], Reading]:
    def reading(root: Path) -> Reading:
        def call() -> int:
            try:
                read(root)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            return 0

        return read_by(call)

    return reading


@pytest.fixture(scope="module")
def run_alone(finished: Path, desk: Path) -> Path:
    """The state of a finished run without its bundle."""
    shutil.copytree(finished / "state", desk / "alone" / "state")
    return desk / "alone"


@pytest.mark.parametrize("file", ["settings.json", "prepared.json", "trained.safetensors"])
def test_every_damage_to_the_state_of_a_run_is_refused(file: str, run_alone: Path, desk: Path) -> None:
    path, draw = f"state/{file}", random.Random(file)
    changes = [*changes_of_file(path, (run_alone / path).stat().st_size, cuts=CUTS, flips=4 * FLIPS, draw=draw)]
    if file.endswith(".json"):
        tree = json.loads((run_alone / path).read_bytes())
        changes += few(changes_of_json(path, tree, reseal=None, most=FEW, draw=draw))
    read = state_read(state_reader(file))
    assert list(not_refused(run_alone, desk / "run", changes, read)) == []


def test_whatever_state_that_vouches_for_itself_says_is_read_or_refused(run_alone: Path, desk: Path) -> None:
    network = faqd.load_network("digits")
    images = faqd.open_images("digits", network, calibration_images=64)
    prepared = faqd.prepare(network, images).prepared
    prepared.save(Kept(run_alone / "state" / "prepared.json"))

    def load(root: Path) -> object:
        return PreparedStudent.load(Kept(root / "state" / "prepared.json"), prepared.student, prepared.quantisation)

    assert state_read(load)(run_alone).ended == 0
    for file, read in (("prepared.json", load), ("settings.json", state_reader("settings.json"))):
        path, draw = f"state/{file}", random.Random(file)
        tree = json.loads((run_alone / path).read_bytes())
        changes = few(changes_of_json(path, tree, reseal=reseal(path), most=FEW, draw=draw))
        ended = list(not_refused(run_alone, desk / "run", changes, state_read(read)))
        assert [one for one in ended if one[1] != 0] == []


def test_a_finished_run_whose_bundle_was_changed_is_not_called_finished(finished: Path, tmp_path: Path) -> None:
    folder = copy_of(finished, tmp_path / "run")
    report = folder / "bundle" / "report.json"
    report.write_text(report.read_text().replace('"status": "validated"', '"status": "undecided"'))
    shutil.copy(report, folder / "report.json")
    line = command("run", *QUICK, "--output", str(folder), "--resume").refusal
    assert "report.json is not what" in line and "--overwrite makes it anew" in line
