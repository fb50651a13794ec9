"""Stored files of which anything was changed, by whole commands: no traceback, no hang, no status but the right one.

python3 -m pytest -m benchmark tests/benchmarks/test_stored_files.py -s

FAQD_STORED_FILES: changes that each reader is shown, 300 by default, drawn from the whole corpus; 0: all of it. Damaged
files must be refused. Forged ones, whose hashes fit again, may be read where what they say can be true.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pipeline.run
from backends.device.bundle_check import __main__ as device
from backends.device.tensorrt_device import check as tensorrt
from pipeline.cli import main
from tests.stored_changes import Change, changes_of_file, changes_of_folder, changes_of_json, linked_copy
from tests.stored_reading import PATIENCE, Reading, read_by, same_files
from tests.vouched import seal

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Columns, Results

pytestmark = pytest.mark.benchmark

COUNT = int(os.environ.get("FAQD_STORED_FILES", "300"))
RUN = ("--quiet", "--steps", "2", "--calibration-images", "16", "--batch-size", "8", "--max-drop", "100")
# What is read goes on to its end: seconds, on a machine that does other things as well.
_A_RUN = 120
STATE = ("settings.json", "prepared.json", "seconds.json", "trained.safetensors")
COLUMNS: Columns = {
    "read by": lambda row: row["key"]["reader"],
    "changed so that hashes": lambda row: "fit again" if row["key"]["forged"] else "differ",
    "changes": lambda row: row["changes"],
    "refused, status 2": lambda row: row["refused"],
    "read": lambda row: row["read"],
    "a comparison failed, status 1": lambda row: row["failed"],
    "tracebacks": lambda row: row["tracebacks"],
    "hangs": lambda row: row["hangs"],
    "slowest, s": lambda row: row["slowest"],
}


def resealing(file: str) -> Callable[[Path], None]:
    def made(folder: Path) -> None:
        tree = json.loads((folder / file).read_bytes())
        if isinstance(tree, dict):
            seal(folder / file, tree)

    return made


def of_bundle(bundle: Path, draw: random.Random) -> list[Change]:
    """Every change of a bundle."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    changes = list(changes_of_folder(manifest["files"], reseal=resealing("manifest.json")))
    for file in (*manifest["files"], "manifest.json"):
        changes += changes_of_file(file, (bundle / file).stat().st_size, cuts=20, flips=40, draw=draw)
    for reseal in (None, resealing("manifest.json")):
        changes += changes_of_json("manifest.json", manifest, reseal=reseal, most=10_000, draw=draw)
    return changes


def of_state(root: Path, draw: random.Random) -> list[Change]:
    """Every change of a run's state."""
    changes = list[Change]()
    for name in STATE:
        file = f"state/{name}"
        changes += changes_of_file(file, (root / file).stat().st_size, cuts=20, flips=40, draw=draw)
        if name.endswith(".json"):
            tree = json.loads((root / file).read_bytes())
            for reseal in (None, resealing(file)):
                changes += changes_of_json(file, tree, reseal=reseal, most=10_000, draw=draw)
    return changes


def survey(
    reader: str,
    source: Path,
    target: Path,
    changes: Sequence[Change],
    read: Callable[[Path], int],
    results: Results,
    *,
    harmless: str = "$^",
    patience: int = PATIENCE,
) -> None:
    """Show a reader the changes, and hold what it does against what it must.

    `harmless`: changes that may be read; `patience`: seconds after which it hangs.
    """
    shown = changes if COUNT == 0 else random.Random(0).sample(changes, min(COUNT, len(changes)))
    endings: dict[bool, list[tuple[Change, Reading]]] = {False: [], True: []}
    for change in shown:
        copy = linked_copy(source, target)
        change.make(copy)
        if same_files(source, copy):
            continue
        endings[change.forged].append((change, read_by(lambda copy=copy: read(copy), patience=patience)))  # type: ignore[misc]  # mypy
    wrong = list[Any]()
    for forged, readings in endings.items():
        kinds = {"refused": 0, "read": 0, "failed": 0, "tracebacks": 0, "hangs": 0}
        for change, reading in readings:
            may_be_read = forged or re.search(harmless, change.name) is not None
            kind = "refused" if reading.refused else "hangs" if reading.ended == "hang" else "tracebacks"
            if reading.ended in (0, 3, 4, "SystemExit 0"):
                kind = "read"
            elif reading.ended == 1:
                kind = "failed"
            kinds[kind] += 1
            if kind in ("tracebacks", "hangs") or (kind == "read" and not may_be_read):
                wrong.append((change.name, reading.ended, reading.err[-300:]))
        slowest = round(max((reading.seconds for _, reading in readings), default=0.0), 2)
        results.add({"reader": reader, "forged": forged}, changes=len(readings), slowest=slowest, **kinds)
    results.publish("Stored files that were changed", COLUMNS, results.newest())
    assert wrong == []


def came_through(*_: object, **__: object) -> None:
    """In place of the runtime, which a bundle reaches that was read."""
    raise SystemExit(0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a finished run for a backend."""
    root = tmp_path_factory.mktemp("stored")

    def run(backend: str) -> Path:
        folder = root / backend
        if not folder.exists():
            assert main(["run", *RUN, "--backend", backend, "--output", str(folder)]) in (0, 3)
        return folder

    return run


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tensorrt"])
def test_check_py(backend: str, made: Any, tmp_path: Path, results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'faqd[openvino]'")
    monkeypatch.setattr(device, "load", came_through)
    monkeypatch.setattr(tensorrt, "load_sdk", came_through)
    source, check = made(backend) / "bundle", tensorrt.main if backend == "tensorrt" else device.main
    changes = of_bundle(source, random.Random(backend))
    survey(f"check.py, {backend}", source, tmp_path / "bundle", changes, lambda copy: check([], copy), results)


def test_check_py_itself(made: Any, tmp_path: Path, results: Results) -> None:
    """As its user starts it, in a process of its own: a tenth as many."""
    source = made("onnxruntime") / "bundle"
    changes = of_bundle(source, random.Random("alone"))

    def read(copy: Path) -> int:
        line = [sys.executable, str(copy / "check.py")]
        done = subprocess.run(line, capture_output=True, text=True, errors="replace", check=False)
        print(done.stderr, file=sys.stderr, end="")
        return done.returncode if "Traceback" not in done.stderr else -1

    tenth = random.Random(1).sample(changes, min(len(changes), max(20, COUNT // 10)))
    of_itself = r"^check\.py: "  # its own text is what is executed: it can but refuse what is no Python
    survey("check.py, a process", source, tmp_path / "bundle", tenth, read, results, harmless=of_itself)


@pytest.mark.parametrize("verb", ["validate", "compare"])
def test_commands(verb: str, made: Any, tmp_path: Path, results: Results) -> None:
    source = made("onnxruntime") / "bundle"
    changes = of_bundle(source, random.Random(verb))
    read = lambda copy: main([verb, str(copy), "--quiet"])  # noqa: E731  # a command
    survey(f"faqd {verb}", source, tmp_path / "bundle", changes, read, results)


#: What is made anew where it lacks, and times, which are left out where their file was changed: both aloud.
HARMLESS_STATE = r"state/(seconds\.json|(trained\.safetensors|prepared\.json): missing)"


@pytest.fixture
def killed(made: Any, tmp_path: Path) -> Path:
    """The folder of a run that was killed after training."""
    alone = tmp_path / "alone"
    shutil.copytree(made("onnxruntime") / "state", alone / "state")
    return alone


def gone_on_with(copy: Path) -> int:
    sys.stdout.flush()
    return main(["run", *RUN, "--backend", "onnxruntime", "--output", str(copy), "--resume"])


def test_resume(killed: Path, tmp_path: Path, results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that reads all of the state and stops where it would write the artifact.

    Networks and images, which lie elsewhere, are read once. Training that lacks is done again, which takes its time.
    """
    read, inputs = pipeline.run._read, list[Any]()

    def once(*asked: Any) -> Any:
        if not inputs:
            inputs.append(read(*asked))
        return inputs[0]

    monkeypatch.setattr(pipeline.run, "_read", once)
    monkeypatch.setattr(pipeline.run, "convert", came_through)
    assert read_by(lambda: gone_on_with(linked_copy(killed, tmp_path / "run")), patience=_A_RUN).ended == "SystemExit 0"
    changes = of_state(killed, random.Random("resume"))
    survey(
        "faqd run --resume",
        killed,
        tmp_path / "run",
        changes,
        gone_on_with,
        results,
        harmless=HARMLESS_STATE,
        patience=_A_RUN,
    )


def test_resume_to_the_end(killed: Path, tmp_path: Path, results: Results) -> None:
    """Whole commands: a tenth as many."""
    changes = of_state(killed, random.Random("to the end"))
    tenth, reader = random.Random(1).sample(changes, max(20, COUNT // 10)), "faqd run --resume, to its end"
    survey(reader, killed, tmp_path / "run", tenth, gone_on_with, results, harmless=HARMLESS_STATE, patience=_A_RUN)
