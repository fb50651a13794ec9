"""What no run has written is neither removed nor replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calibration.errors import UserError
from pipeline.setup.own_files import OF_A_RUN, check_of_a_run, check_replaceable
from tests.command_line import command


def of_a_run(root: Path) -> Path:
    """A folder as a run leaves it, nearly empty files and all."""
    for name, content in (
        ("state/settings.json", {"data": "digits"}),
        ("state/prepared.json", {}),
        ("state/trained.safetensors", {}),
        ("state/generation0.safetensors", {}),
        ("bundle/manifest.json", {"files": {"model.onnx": "", "report.json": ""}}),
        ("bundle/model.onnx", {}),
        ("bundle/report.json", {}),
        ("float.onnx", {}),
        ("report.json", {"gates": []}),
        ("report.html", {}),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(content))
    return root


def test_what_a_run_has_written_may_go(tmp_path: Path) -> None:
    check_replaceable(tmp_path / "absent")
    check_replaceable(tmp_path)
    check_replaceable(of_a_run(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} <= set(OF_A_RUN)


@pytest.mark.parametrize("name", [".gitignore", "lost+found/", "bundle/__pycache__/check.pyc", "bundle/net.engine"])
def test_what_others_leave_in_every_folder_is_nobodys_work(name: str, tmp_path: Path) -> None:
    place = of_a_run(tmp_path) / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.mkdir() if name.endswith("/") else place.touch()
    check_replaceable(tmp_path)


@pytest.mark.parametrize("name", ["thesis.txt", "float.onnx", "report.json", "state/thesis.txt", "bundle/model.onnx"])
def test_a_folder_of_others_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    (tmp_path / "zebra.txt").touch()
    for check in (check_of_a_run, check_replaceable):
        with pytest.raises(UserError, match=rf"is no folder of a run and holds {Path(name).parts[0]} and 1 more"):
            check(tmp_path)


@pytest.mark.parametrize("name", ["state/thesis.txt", "state/trained/a.txt", "bundle/notes.md", "bundle/sub/notes.md"])
def test_a_file_of_others_is_not_removed_with_a_runs(name: str, tmp_path: Path) -> None:
    place = of_a_run(tmp_path) / name
    place.parent.mkdir(exist_ok=True)
    place.touch()
    check_of_a_run(tmp_path)
    with pytest.raises(UserError, match="was not written by a run, and a new one would remove it"):
        check_replaceable(tmp_path)


@pytest.mark.parametrize("name", ["state", "bundle"])
def test_a_file_is_no_folder_of_a_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"gates": []}')
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"{name} was not written by a run"):
        check_replaceable(tmp_path)


def test_files_beside_a_runs_are_left_alone(tmp_path: Path) -> None:
    (of_a_run(tmp_path) / "thesis.txt").touch()
    check_replaceable(tmp_path)


@pytest.mark.parametrize("flag", [(), ("--overwrite",)])
def test_a_run_touches_no_folder_of_others(flag: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    for name in ("state/thesis.txt", "float.onnx"):
        (tmp_path / name).write_text("years of work")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    refused = command("run", "--quiet", "--output", str(tmp_path), *flag).refusal
    assert f"{tmp_path} is no folder of a run and holds float.onnx and 1 more" in refused
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
