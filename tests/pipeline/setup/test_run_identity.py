"""What is finished, and what belongs to which run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from calibration.errors import UserError
from pipeline import __version__
from pipeline.config import (
    DataConfig,
    QuantisationConfig,
    RunConfig,
    TeacherConfig,
    ValidationConfig,
)
from pipeline.distillation.training.learner import Place
from pipeline.setup.left_in_folder import holds_its_bundle
from pipeline.setup.state import open_run_folder
from pipeline.tools.kept import Kept
from tests.begun_runs import begun, config, finish, left_at


def test_a_bundle_that_is_to_be_replaced_is_not_the_end_of_the_run_that_replaces_it(tmp_path: Path) -> None:
    folder = begun(config(tmp_path))
    folder.trained.write_bytes(b"")
    finish(folder)
    assert holds_its_bundle(folder)

    begun(config(tmp_path, overwrite=True, steps=6))
    assert not holds_its_bundle(folder)
    begun(config(tmp_path, resume=True, steps=6))
    assert not holds_its_bundle(folder)
    finish(folder)
    assert holds_its_bundle(folder)


def test_a_finished_run_is_trained_otherwise_where_asked_for(tmp_path: Path) -> None:
    folder = begun(config(tmp_path))
    left_at(folder.trained, 5)
    folder.prepared.write_bytes(b"hours of work")
    finish(folder)
    with pytest.raises(UserError, match=r"--steps was 5 and is 6 now, .* finished: train it otherwise with --restart"):
        open_run_folder(config(tmp_path, resume=True, steps=6))

    begun(config(tmp_path, resume=True, restart=True, steps=6))
    assert not holds_its_bundle(folder) and folder.bundle.exists(), "the first bundle stays until the next is there"
    assert folder.prepared.exists() and not folder.trained.exists()
    begun(config(tmp_path, resume=True, steps=6))
    assert not holds_its_bundle(folder)


def test_a_finished_run_takes_no_other_setting(tmp_path: Path) -> None:
    folder = begun(config(tmp_path))
    finish(folder)

    open_run_folder(config(tmp_path, resume=True, data=DataConfig(workers=3)))
    with pytest.raises(UserError, match=r"--eval-data was not given .* is finished: score it otherwise with faqd"):
        open_run_folder(config(tmp_path, resume=True, validation=ValidationConfig(eval_data="images:b")))
    with pytest.raises(UserError, match=r"--bits was 8 and is 4 now, .* is finished: make another beside it with --ou"):
        open_run_folder(config(tmp_path, resume=True, quantisation=QuantisationConfig(bits=4)))


@pytest.mark.parametrize("whole", [2 << 30, 0], ids=["whole files", "pieces of images"])
def test_a_finished_run_knows_its_files_at_other_paths(
    whole: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.setup.identity._WHOLE", whole)
    monkeypatch.chdir(tmp_path)
    for name, content in (("cls.pth", b"weights"), ("copy.pth", b"weights"), ("other.pth", b"others!")):
        (tmp_path / name).write_bytes(content)
    for name, content in (("photos", b"1"), ("mirror", b"1"), ("others", b"2")):
        (tmp_path / name / "cats").mkdir(parents=True)
        (tmp_path / name / "cats" / "1.png").write_bytes(content)

    def named(weights: str, data: str, *, resume: bool = True) -> RunConfig:
        teacher = TeacherConfig(sources=("python:a:b",), files=(weights,))
        return config(tmp_path / "out", resume=resume, teacher=teacher, data=DataConfig(source=data))

    folder = begun(named("cls.pth", "images:photos", resume=False))
    finish(folder)
    for weights in ("./cls.pth", str(tmp_path / "cls.pth"), "copy.pth", "cls.pth"):
        open_run_folder(named(weights, f"images:{tmp_path}/photos"))
    open_run_folder(named("cls.pth", "images:mirror"))
    for weights, data, flag in (
        ("other.pth", "images:photos", "weights"),
        ("cls.pth#ema", "images:photos", "weights"),
        ("absent.pth", "images:photos", "weights"),
        ("cls.pth", "images:others", "data"),
    ):
        with pytest.raises(UserError, match=f"--resume: --{flag} was .* and is .* is finished"):
            open_run_folder(named(weights, data))
    (tmp_path / "cls.pth").unlink()
    open_run_folder(named("copy.pth", "images:photos"))  # known by what the other one held
    with pytest.raises(UserError, match=r"--weights was cls\.pth and is other\.pth now.*is finished"):
        open_run_folder(named("other.pth", "images:photos"))
    (tmp_path / "photos" / "cats" / "1.png").rename(tmp_path / "photos" / "1.png")
    with pytest.raises(UserError, match=r"--data was .* is finished"):  # a copy no longer
        open_run_folder(named("copy.pth", "images:mirror"))
    shutil.rmtree(tmp_path / "photos")
    open_run_folder(named("copy.pth", "images:mirror"))
    with pytest.raises(UserError, match=r"--data was .* is finished"):
        open_run_folder(named("copy.pth", "images:others"))


def test_another_version_does_not_end_what_this_one_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = begun(config(tmp_path))
    used = {"faqd": __version__, "torch": "9.9.9"}
    monkeypatch.setattr("pipeline.setup.state.versions", lambda: used)

    with pytest.raises(UserError, match=rf"was begun with faqd {__version__} and torch \d.*, this is .* torch 9\.9\.9"):
        open_run_folder(config(tmp_path, resume=True))
    finish(folder)
    open_run_folder(config(tmp_path, resume=True))  # nothing is left to do


def test_what_another_run_has_kept_is_not_gone_on_with(tmp_path: Path) -> None:
    """The identity of a part hangs on what decides it, and on nothing else."""
    first, second = (begun(config(tmp_path / name, steps=steps)) for name, steps in (("first", 5), ("second", 6)))
    assert first.identity().run != second.identity().run
    assert first.of("calibration") == Kept(first.prepared, second.identity().parts["calibration"])
    assert first.training(1).checkpoint.run != second.training(1).checkpoint.run
    first.training(1).students[0].save({}, {})
    shutil.copy(first.trained, second.trained)
    with pytest.raises(UserError, match=r"second/state/trained\.safetensors is of another run"):
        second.training(1).students[0].load(Place)


def test_what_is_kept_belongs_to_the_run_that_goes_on_with_it(tmp_path: Path) -> None:
    """A setting that decides nothing that is finished is another run's, and what is finished stays its own."""
    folder = begun(config(tmp_path))
    folder.of("calibration").save_json({})
    before = folder.identity()
    begun(config(tmp_path, resume=True, steps=6))
    assert folder.identity().run != before.run
    assert folder.of("calibration").load_tree() == {}
    assert folder.training(1).checkpoint.run != before.parts["training"]
