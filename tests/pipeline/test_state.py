"""The output folder: what may be replaced, what can be resumed, what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from calibration.errors import UserError
from pipeline import __version__
from pipeline.config import ExecutionConfig, OutputConfig, RunConfig, ValidationConfig
from pipeline.config.distillation import DistillationConfig
from pipeline.state import open_folder


def config(folder: Path, *, overwrite: bool = False, resume: bool = False, steps: int = 5) -> RunConfig:
    return RunConfig(
        output=OutputConfig(folder=folder, overwrite=overwrite, resume=resume),
        distillation=DistillationConfig(steps=steps),
    )


def test_a_new_folder_is_made(tmp_path: Path) -> None:
    folder = open_folder(config(tmp_path / "deep" / "run"))

    assert folder.settings.is_file()


def test_a_finished_run_is_not_replaced_by_accident(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()

    with pytest.raises(UserError, match="bundle exists already: add --overwrite"):
        open_folder(config(tmp_path))
    open_folder(config(tmp_path, overwrite=True))
    assert (tmp_path / "bundle").is_dir(), "only a new bundle may take the old one's place"


def test_a_mistake_found_at_start_leaves_nothing_that_asks_for_overwrite(tmp_path: Path) -> None:
    open_folder(config(tmp_path))
    assert not open_folder(config(tmp_path)).holds_work()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no such file system here")
def test_a_folder_that_cannot_be_made_is_one_line() -> None:
    with pytest.raises(UserError, match="cannot make the folder /proc/nowhere: choose another place with --output"):
        open_folder(config(Path("/proc/nowhere")))


def test_an_interrupted_run_is_not_lost_by_accident(tmp_path: Path) -> None:
    folder = open_folder(config(tmp_path))
    folder.checkpoint.write_bytes(b"hours of work")

    with pytest.raises(UserError, match="interrupted run: add --resume"):
        open_folder(config(tmp_path))
    assert folder.checkpoint.read_bytes() == b"hours of work"
    open_folder(config(tmp_path, resume=True))
    assert folder.checkpoint.exists()
    open_folder(config(tmp_path, overwrite=True))
    assert not folder.checkpoint.exists()


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to go on with"):
        open_folder(config(tmp_path, resume=True))


def test_other_settings_cannot_be_resumed(tmp_path: Path) -> None:
    open_folder(config(tmp_path))

    with pytest.raises(UserError, match=r"--steps was 5 and is 6 now"):
        open_folder(config(tmp_path, resume=True, steps=6))


def test_another_version_does_not_end_what_this_one_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_folder(config(tmp_path))
    used = {"faqd": __version__, "torch": "9.9.9"}
    monkeypatch.setattr("pipeline.state.versions", lambda: used)

    with pytest.raises(UserError, match=rf"was begun with faqd {__version__} and torch \d.*, this is .* torch 9\.9\.9"):
        open_folder(config(tmp_path, resume=True))
    (tmp_path / "bundle").mkdir()
    open_folder(config(tmp_path, resume=True))  # nothing is left to do


def test_settings_that_change_no_result_may_change(tmp_path: Path) -> None:
    open_folder(config(tmp_path))
    changed = RunConfig(
        output=OutputConfig(folder=tmp_path, resume=True),
        distillation=DistillationConfig(steps=5),
        validation=ValidationConfig(threads=2, max_drop=3.0),
        execution=ExecutionConfig(device="cpu"),
    )

    open_folder(changed)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    with pytest.raises(UserError, match="cannot write"):
        open_folder(config(tmp_path / "run"))


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")

    with pytest.raises(UserError, match="cannot write"):
        open_folder(config(tmp_path / "run"))
