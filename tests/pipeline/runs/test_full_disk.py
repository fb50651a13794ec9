"""A disk that fills up: one line, status 2, and what is finished is gone on with."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from backends.onnx_file.scratch import scratch_folder
from calibration.errors import UserError
from pipeline.bundle.bundle import write_bundle
from pipeline.cli import main
from pipeline.distillation.training.learner import Place
from pipeline.tools.kept import Kept

pytestmark = pytest.mark.usefixtures("all_digits_narrow")

RUN = ("run", "--quiet", "--steps", "2", "--calibration-images", "16", "--max-drop", "100")


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Refuse longer files to this process, as a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def file_system(place: Path, options: str) -> Iterator[Path]:
    """A file system in memory, as small as the options say; the test is skipped where none can be mounted."""
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """One of 8 MB, most of which a run leaves."""
    with file_system(tmp_path / "disk", "size=8m") as place:
        yield place


def test_tensors_that_find_no_room_are_the_users_line_and_leave_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "state" / "checkpoint.safetensors"
    Kept(file).save({"a": torch.ones(3)}, {"step": 1})
    with (
        files_of_at_most(100_000),
        pytest.raises(UserError, match=f"cannot write .*{file.name}: {os.strerror(errno.EFBIG)}: make room there"),
    ):
        Kept(file).save({"a": torch.zeros(100_000)}, {"step": 2})
    tensors, record = Kept(file).load(Place)
    assert record == Place(step=1) and tensors["a"].tolist() == [1, 1, 1]
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_run_whose_trained_weights_find_no_room_goes_on_from_its_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    state = tmp_path / "run" / "state"
    with files_of_at_most(60_000):
        assert main([*RUN, "--output", "run"]) == 2
    line = capsys.readouterr().err
    assert line == "error: cannot write run/state/trained.safetensors: File too large: make room there, then go on " + (
        "from what is finished with --resume\n"
    )
    assert {path.name for path in state.iterdir()} == {"settings.json", "prepared.json", "seconds.json"}
    calibrated = (state / "prepared.json").stat().st_mtime_ns

    assert main([*RUN, "--output", "run", "--resume"]) == 0
    assert (state / "prepared.json").stat().st_mtime_ns == calibrated


def test_a_bundle_that_finds_no_room_costs_no_training(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, others = small_disk / "run", small_disk / "other"

    def with_others(*arguments: Any, **more: Any) -> None:
        """Something else fills the disk meanwhile, but for less than a bundle needs."""
        others.write_bytes(bytes(shutil.disk_usage(small_disk).free - 100_000))
        write_bundle(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr("pipeline.validation.bundle_of_result.write_bundle", with_others)
        assert main([*RUN, "--output", str(folder), "--overwrite"]) == 2
    assert capsys.readouterr().err == (
        f"error: cannot write {folder}/bundle: No space left on device: make room there, then go on from what is "
        "finished with --resume in place of --overwrite\n"
    )
    trained = folder / "state" / "trained.safetensors"
    finished = trained.stat().st_mtime_ns
    assert sorted(path.name for path in folder.iterdir()) == ["state"], "nothing beside a bundle without it"

    others.unlink()
    assert main([*RUN, "--output", str(folder), "--resume"]) == 0
    assert trained.stat().st_mtime_ns == finished
    assert (folder / "bundle" / "manifest.json").is_file()
    report = (folder / "report.json").read_bytes()
    (folder / "report.json").unlink()
    assert main([*RUN, "--output", str(folder), "--resume"]) == 0
    assert (folder / "report.json").read_bytes() == report == (folder / "bundle" / "report.json").read_bytes()
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_a_place_for_temporary_files_without_room_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"MB free and .* MB of a model are to be written .* set TMPDIR"),
        scratch_folder("test", needed=10**15),
    ):
        pass
    with (
        pytest.raises(UserError, match="File too large; set TMPDIR to a folder with more"),
        files_of_at_most(1000),
        scratch_folder("test", needed=0) as folder,
    ):
        (folder / "model.onnx").write_bytes(bytes(2000))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: [str(tmp_path / "absent")])
    with pytest.raises(UserError, match="no place for temporary files"), scratch_folder("test", needed=0):
        pass


@pytest.mark.parametrize("inodes", [3, 8, 14])
def test_a_place_that_takes_no_more_files_is_said_and_gone_on_with(
    inodes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with file_system(tmp_path / "disk", f"size=64m,nr_inodes={inodes}") as place:
        folder = place / "run"
        assert main([*RUN, "--output", str(folder)]) == 2
        line = capsys.readouterr().err
        assert line.startswith(f"error: cannot write {folder}") and line.count("\n") == 1
        assert f"{os.strerror(errno.ENOSPC)}: make room there" in line
        subprocess.run(["mount", "-o", "remount,nr_inodes=1000", str(place)], check=True)
        begun = (folder / "state" / "settings.json").is_file()
        assert main([*RUN, "--output", str(folder), *(["--resume"] if begun else [])]) == 0
        assert [path.name for path in folder.rglob(".*") if path.name != ".lock"] == []


@pytest.mark.parametrize("place", ["full", "gone"])
def test_a_run_without_room_for_temporary_files_says_where_it_is_lacking(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = [*RUN, "--output", str(tmp_path / "run")]
    with file_system(tmp_path / "full", "size=16k"), monkeypatch.context() as patched:
        patched.setattr("tempfile.tempdir", str(tmp_path / place))
        assert main(run) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1
    assert str(tmp_path / place) in line and "set TMPDIR to a folder with" in line
    assert main(run) == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_that_finds_no_room_or_no_reader_is_no_traceback(repository: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(repository)}
    line = f"{sys.executable} -m pipeline recipes"

    def run(shell: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(shell, shell=True, env=environment, capture_output=True, text=True, check=False)

    full = run(f"{line} > /dev/full")
    assert full.returncode == 2
    assert full.stderr == "error: cannot write the output: No space left on device: make room there\n"
    assert run(f"{line} | true").stderr == ""
