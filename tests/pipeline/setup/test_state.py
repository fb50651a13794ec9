"""The output folder: what may be replaced, what can be resumed, what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from backends.facts.cpu import host_cpu
from calibration.errors import UserError
from pipeline.config import (
    DataConfig,
    ExecutionConfig,
    PreprocessingConfig,
    QuantisationConfig,
    RunConfig,
    StudentConfig,
    TeacherConfig,
    ValidationConfig,
)
from pipeline.config.distillation import DistillationConfig
from pipeline.setup.decisive import BUNDLE, DECIDES, FREE, IDENTIFIED, PARTS
from pipeline.setup.folder_lock import locked
from pipeline.setup.left_in_folder import holds_work
from pipeline.setup.settings_of_run import settled_by_configuration
from pipeline.setup.settled import BY_INPUTS
from pipeline.setup.state import begin, clear, open_run_folder
from pipeline.tools.kept import Kept
from tests.begun_runs import INPUTS, begun, config, finish, left_at
from tests.vouched import seal


def test_a_new_folder_is_made(tmp_path: Path) -> None:
    assert begun(config(tmp_path / "deep" / "run")).settings.is_file()
    assert [path.name for path in (tmp_path / "deep" / "run").iterdir()] == ["state"]


def test_a_finished_run_is_not_replaced_by_accident(tmp_path: Path) -> None:
    finish(begun(config(tmp_path)))

    with pytest.raises(UserError, match="bundle exists already: add --overwrite"):
        open_run_folder(config(tmp_path))
    begun(config(tmp_path, overwrite=True))
    assert (tmp_path / "bundle").is_dir(), "only a new bundle may take the old one's place"


def test_nothing_goes_before_the_inputs_are_known_to_be_right(tmp_path: Path) -> None:
    folder = begun(config(tmp_path))
    folder.trained.write_bytes(b"hours of work")

    open_run_folder(config(tmp_path, overwrite=True, steps=6))
    assert folder.trained.read_bytes() == b"hours of work"
    begun(config(tmp_path, overwrite=True, steps=6))
    assert not folder.trained.exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no such file system here")
def test_a_folder_that_cannot_be_made_is_one_line() -> None:
    line = "cannot make the folder /proc/nowhere: choose another place with --output"
    with pytest.raises(UserError, match=line), locked(Path("/proc/nowhere"), print):
        pass


def test_an_interrupted_run_is_not_lost_by_accident(tmp_path: Path) -> None:
    folder = begun(config(tmp_path))
    left_at(folder.checkpoint, 3)
    work = folder.checkpoint.read_bytes()

    with pytest.raises(UserError, match="interrupted run: add --resume"):
        open_run_folder(config(tmp_path))
    begun(config(tmp_path, resume=True))
    assert folder.checkpoint.read_bytes() == work


def test_flags_that_are_left_out_are_named_together_as_they_are_typed(tmp_path: Path) -> None:
    source = ("python:my nets:build", "digits")
    typed: dict[str, Any] = {
        "teacher": TeacherConfig(sources=source),
        "quantisation": QuantisationConfig(bits=4),
        "preprocessing": PreprocessingConfig(mean=(0.5,), std=(0.25,)),
    }
    folder = begun(config(tmp_path, **typed))
    left_at(folder.checkpoint, 3)
    flags = "add --teacher 'python:my nets:build' --teacher digits --mean 0.5 --std 0.25 --bits 4 --steps 5"
    for _ in range(2):
        with pytest.raises(UserError, match="--resume goes on with the flags that the run was started with") as told:
            open_run_folder(config(tmp_path, resume=True, steps=None))
        assert str(told.value).endswith(flags)
        folder.bundle.mkdir(exist_ok=True)  # the second time it is finished


def test_nothing_to_resume_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run to go on with"):
        open_run_folder(config(tmp_path, resume=True))


def test_what_was_being_written_when_a_run_was_killed_goes_and_what_was_moved_aside_comes_back(tmp_path: Path) -> None:
    folder = begun(config(tmp_path))
    (folder.state / ".trained.safetensors.abcd_123.part").write_bytes(b"half")
    (tmp_path / ".bundle.old.abcd_123.part" / "bundle").mkdir(parents=True)
    (tmp_path / ".bundle.abcd_123.part" / "deep").mkdir(parents=True)
    (tmp_path / ".notes.of.mine").touch()

    assert holds_work(folder)
    clear(folder)
    assert not holds_work(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".notes.of.mine", "bundle", "state"]


@pytest.mark.parametrize(
    ("kept", "change", "flag"),
    [
        ("checkpoint", {"distillation": DistillationConfig(steps=6)}, "steps"),
        ("prepared", {"distillation": DistillationConfig(steps=6)}, None),
        ("prepared", {"distillation": DistillationConfig(steps=5, batch_size=7)}, None),
        ("float_student", {"distillation": DistillationConfig(steps=5, batch_size=7)}, "batch-size"),
        ("float_student", {"distillation": DistillationConfig(steps=5, generations=2)}, None),
        ("generated", {"data": DataConfig(calibration_images=7)}, None),
        ("prepared", {"data": DataConfig(calibration_images=7)}, "calibration-images"),
        ("generated", {"data": DataConfig(source="none", generated_images=7)}, "generated-images"),
        ("trained", {"data": DataConfig(workers=0), "execution": ExecutionConfig(device="cpu")}, None),
        ("trained", {"validation": ValidationConfig(eval_data="images:b", threads=2, max_drop=3.0)}, None),
        ("trained", {"execution": ExecutionConfig(seed=1)}, "seed"),
    ],
)
def test_a_setting_may_change_until_what_it_decides_is_there(
    kept: str, change: dict[str, Any], flag: str | None, tmp_path: Path
) -> None:
    folder = begun(config(tmp_path))
    left_at(getattr(folder, kept), 3)
    changed = config(tmp_path, resume=True, **change)

    if flag is None:
        begun(changed)
        begun(changed)  # what it goes on with is what it has been begun with now
    else:
        with pytest.raises(UserError, match=rf"--resume: --{flag} was .* and is .* now, and .* made with the former"):
            begun(changed)


def test_training_begins_anew_where_asked_for_and_costs_nothing_else(tmp_path: Path) -> None:
    folder = begun(config(tmp_path))
    left_at(folder.checkpoint, 3)
    for kept in (folder.prepared, folder.float_student, folder.measured):
        kept.write_bytes(b"hours of work")
    other: dict[str, Any] = {"distillation": DistillationConfig(steps=5, learning_rate=0.25)}

    with pytest.raises(
        UserError,
        match=r"--learning-rate was not given and is 0\.25 now, and 3 steps of training in .* were made with the former"
        r": give that again, or add --restart-training, which trains anew from the first step on and keeps the rest",
    ):
        begun(config(tmp_path, resume=True, **other))
    with locked(tmp_path, print):
        resumed = config(tmp_path, resume=True, restart=True, **other)
        lines = begin(open_run_folder(resumed), resumed, INPUTS, {})
    assert lines == (f"3 steps of training in {tmp_path} are dropped",)
    assert not folder.checkpoint.exists() and folder.prepared.exists() and folder.float_student.exists()
    assert not folder.measured.exists(), "what is trained anew is measured anew"
    begun(config(tmp_path, resume=True, **other))

    # Of the float student it does not say yes to other settings than made it, once it is finished.
    smaller: dict[str, Any] = {"distillation": DistillationConfig(steps=5, batch_size=7, learning_rate=0.25)}
    with pytest.raises(
        UserError, match=r"--batch-size was not given and is 7 now, and the float student .* --overwrite"
    ):
        begun(config(tmp_path, resume=True, restart=True, **smaller))
    folder.float_student.unlink()
    left_at(folder.float_checkpoint, 1)
    left_at(folder.trained, 3)
    left_at(folder.training(2).students[0].path, 3)
    with pytest.raises(UserError, match=r"and 1 step of the float student's training in .* --restart-training"):
        begun(config(tmp_path, resume=True, **smaller))
    begun(config(tmp_path, resume=True, restart=True, **smaller))
    assert sorted(path.name for path in folder.state.iterdir()) == ["prepared.json", "settings.json"]


SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"batch-norm": "folded", "precision": "float32", "weight-only": "none"}),
    ({"bits": 2}, {"bits": 2, "batch-norm": "kept", "learning-rate": 0.001}),
    ({"optimiser": "sgd"}, {"optimiser": "sgd", "learning-rate": 0.01}),
    ({}, {"temperature": "linear:4:4", "logit-weight": "step:1:1", "affinity-weight": 0.1}),
    ({"temperature": "cosine:4:1"}, {"temperature": "cosine:4.0:1.0"}),
    ({"affinity": "sp"}, {"affinity": "sp", "affinity-weight": 3000}),
    ({"affinity": "inner"}, {"affinity": "inner", "normalise": "none", "distance": "squared", "over": "samples"}),
    ({"speq-weight": 1.0}, {"speq-weight": 1.0, "speq-bits": 4}),
    ({"student": "cifar:resnet20"}, {"student": "cifar:resnet20", "float-steps": 2000}),
    ({}, {"eval-data": "digits", "max-drop": 1.0, "target": host_cpu()}),
    ({"backend": "tensorrt"}, {"backend": "tensorrt", "batches": [1, 1, 1]}),
    ({"output-max-drop": ["a=1", "b=none"]}, {"output-max-drop": ["b=none", "a=1.0"]}),
]


@pytest.mark.parametrize(("left_out", "typed"), SAME)
def test_a_default_and_the_same_value_typed_are_one(
    left_out: dict[str, Any], typed: dict[str, Any], tmp_path: Path
) -> None:
    teacher = {"teacher": ["python:a:b"], "device": "cpu"}
    for number, (first, second) in enumerate(((left_out, typed), (typed, left_out))):
        place = {"output": str(tmp_path / str(number))}
        folder = begun(RunConfig.from_json(teacher | place | first))
        for kept in (folder.checkpoint, folder.float_student, folder.prepared):
            left_at(kept, 3)
        begun(RunConfig.from_json(teacher | place | second | {"resume": True}))
        finish(folder)
        open_run_folder(RunConfig.from_json(teacher | place | first | {"resume": True}))


def test_values_that_the_images_settle_are_compared_when_they_are_known(tmp_path: Path) -> None:
    values = {"held-out-images": 45, "targets": "mirror", "taps": [["layer1"]]}
    folder = begun(config(tmp_path), settled=values)
    left_at(folder.checkpoint, 3)
    typed = config(
        tmp_path,
        resume=True,
        data=DataConfig(held_out_images=45),
        distillation=DistillationConfig(steps=5, targets="mirror", taps=("layer1",)),
    )
    begun(typed, settled=values)
    begun(config(tmp_path, resume=True), settled=values)
    with pytest.raises(UserError, match=r"--held-out-images was not given and is 45 now, and 3 steps of training"):
        begun(typed, settled=values | {"held-out-images": 44})


def test_every_default_that_hangs_on_something_is_settled() -> None:
    """So that none is forgotten: what is None or auto where nobody types it stands for a value, or for nothing."""
    nothing = {
        # No such term, limit, part or file; numbers of other meaning than any that may be typed; see
        # pipeline.setup.settled.
        *("label-weight", "class-weight", "feed-weight", "sakd-weight", "speq-weight", "min-speedup", "submodule"),
        *("learning-rate", "range", "affinity", "opset", "static-batch", "dynamic-size", "minutes"),
        *("workspace-mib", "optimisation-level", "version-compatible", "timing-cache"),
    }
    hanging = {key for key, value in RunConfig().to_json().items() if value in (None, "auto", []) or value is False}
    settled = settled_by_configuration(RunConfig()).keys() | BY_INPUTS | IDENTIFIED | FREE
    assert hanging - settled == nothing - settled


def test_every_setting_is_in_the_tables() -> None:
    from pipeline.config.flags import flags

    assert DECIDES.keys() == set(flags(RunConfig))
    assert {made for several in DECIDES.values() for made in several} == {*PARTS, BUNDLE}
    # All that is made ends in the bundle.
    assert all(BUNDLE in made for key, made in DECIDES.items() if key not in FREE)


def test_the_same_inputs_may_come_from_elsewhere_and_others_may_not(tmp_path: Path) -> None:
    def named(data: str, teacher: str = "python:a:b", *, resume: bool = True) -> RunConfig:
        sources: dict[str, Any] = {"teacher": TeacherConfig(sources=(teacher,)), "data": DataConfig(source=data)}
        return config(tmp_path, resume=resume, **sources)

    folder = begun(named("images:here", resume=False))
    folder.prepared.write_bytes(b"")

    begun(named("images:there", "python:c:d"))
    with pytest.raises(
        UserError, match=r"--data images:there does not hold the images that the calibration .* was made from"
    ):
        begun(named("images:there"), {"teacher": "a network", "data": "others"})
    with pytest.raises(UserError, match="--teacher python:a:b is not the network"):
        begun(named("images:here"), {"teacher": "another", "data": "some images"})
    with pytest.raises(UserError, match="--student python:e:f is not the network"):
        student: dict[str, Any] = {"student": StudentConfig(source="python:e:f"), "data": DataConfig(source="images:a")}
        begun(config(tmp_path, resume=True, **student), INPUTS | {"student": "another"})
    folder.prepared.unlink()
    begun(named("images:there"), {"teacher": "a network", "data": "others"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    with pytest.raises(UserError, match="cannot write"), locked(tmp_path / "run", print):
        pass


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")

    with pytest.raises(UserError, match="cannot write"), locked(tmp_path / "run", print):
        pass


@pytest.mark.parametrize("threads", ["x", 0, -1, 2.5, True, None, 10**30, 2**31, []])
def test_threads_that_are_none_are_refused_where_they_are_kept(threads: Any, tmp_path: Path) -> None:
    folder = begun(config(tmp_path))
    tree = Kept(folder.settings).load_tree()
    tree["settled"]["training-threads"] = threads
    seal(folder.settings, tree)
    with pytest.raises(UserError, match=r"settings.json: settled: training-threads.*: start anew with --overwrite$"):
        begun(config(tmp_path, resume=True))


def test_more_threads_than_there_are_anywhere_are_refused() -> None:
    with pytest.raises(UserError, match="--training-threads 1025: must be 1 to 1024"):
        ExecutionConfig(training_threads=1025)
    assert ExecutionConfig(training_threads=1024).training_threads == 1024
