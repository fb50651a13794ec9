"""No flag of a run is ignored without a word: each has a row, and each row refuses and admits what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from calibration.errors import UserError
from pipeline.cli import app, main
from pipeline.config import RunConfig
from pipeline.config.flag_meaning import ALWAYS, NEEDS, check_meanings, lacking, may_learn_in_float, meaningful
from pipeline.config.flags import flags
from pipeline.config.run import default_settings

UNTRAINED = {"steps": 0}
FLOAT = {"student": "cifar:resnet20"}
TENSORRT = {"backend": "tensorrt"}
ELSEWHERE = {"data": "images:photos"}

#: Flag, a value, beside what it means nothing, beside what it means something, words of the refusal.
ROWS: list[tuple[str, Any, dict[str, Any], dict[str, Any], str]] = [
    ("workers", 2, {"data": "none"}, ELSEWHERE, "are not decoded"),
    ("augmentation", "crop", {**UNTRAINED, "targets": "image"}, UNTRAINED, "with --steps 0"),
    ("generator-steps", 9, ELSEWHERE, {"data": "none"}, "with --data none alone"),
    ("generated-images", 9, {}, {"data": "none"}, "with --data digits"),
    ("strategy", "auto", {"quantiser": "nncf"}, UNTRAINED, "with --quantiser nncf"),
    ("first-bits", 4, {"bits": 8}, {"bits": 4}, "with --bits 8, below which no layer goes: use --bits 4"),
    ("depthwise-bits", 2, {"bits": 4}, {"bits": 2}, "use --bits 2, or leave it out"),
    ("last-bits", 4, {}, {"bits": 3}, "with --bits 8, below which no layer goes"),
    ("range", "mse", {"quantiser": "nncf"}, UNTRAINED, "with --quantiser nncf"),
    ("rounding", "nearest", {"quantiser": "nncf"}, UNTRAINED, "with --quantiser nncf"),
    ("learned-scales", "weights", UNTRAINED, {}, "with --steps 0"),
    ("weight-grids", "faqd", {**UNTRAINED, "bits": 4}, {"bits": 4}, "with --steps 0"),
    ("activation-grids", "pact", UNTRAINED, {}, "with --steps 0"),
    ("steps", 9, {"quantiser": "nncf"}, {}, "with --quantiser nncf, which does not train"),
    ("patience", 3, {"bits": 2}, {"bits": 2, "batch-norm": "folded"}, "where layers are normalised in training"),
    ("minutes", 5.0, UNTRAINED, {}, "with --steps 0"),
    ("float-steps", 9, {}, FLOAT, "without --student"),
    ("float-learning-rate", 0.1, {**FLOAT, "float-steps": 0}, FLOAT, "where no student learns in float"),
    ("batch-norm", "kept", UNTRAINED, {}, "with --steps 0"),
    ("batch-size", 16, UNTRAINED, {**UNTRAINED, **FLOAT}, "with --steps 0"),
    ("learning-rate", 0.1, {**UNTRAINED, **FLOAT}, {}, "with --steps 0"),
    ("optimiser", "sgd", UNTRAINED, {}, "with --steps 0"),
    ("weight-decay", 0.1, UNTRAINED, {}, "with --steps 0"),
    ("scale-learning-rate", 0.1, {"learned-scales": "none"}, {"learned-scales": "weights"}, "no scale is learned"),
    ("targets", "image", {"quantiser": "nncf"}, UNTRAINED, "which does not train"),
    ("logit-loss", "mse", UNTRAINED, {}, "with --steps 0"),
    ("temperature", 2.0, {"logit-loss": "mse"}, {"logit-loss": "mse", "speq-weight": 1.0}, "softens nothing"),
    ("logit-weight", 2.0, UNTRAINED, {}, "with --steps 0"),
    ("class-weight", 2.0, UNTRAINED, {}, "with --steps 0"),
    ("label-weight", 2.0, UNTRAINED, {}, "with --steps 0"),
    ("affinity", "sp", UNTRAINED, {**UNTRAINED, **FLOAT}, "with --steps 0"),
    ("affinity-order", "1", {"affinity": "sp"}, {"affinity": "ffa"}, "belongs to --affinity fa and ffa"),
    ("normalise", "rows", {"affinity": "sp"}, {"affinity": "inner"}, "leaves no choice"),
    ("distance", "l1", {"affinity": "none"}, {"affinity": "inner"}, "with --affinity none"),
    ("over", "pixels", {"affinity": "auto"}, {"affinity": "cosine"}, "leaves no choice"),
    ("affinity-weight", 2.0, {"affinity": "none"}, {"affinity": "sp"}, "compares no features"),
    ("adapters", "trained", {"affinity": "cosine"}, {"affinity": "cosine", "over": "pixels"}, "losses over pixels"),
    ("feed-weight", 2.0, UNTRAINED, {}, "with --steps 0"),
    ("sakd-weight", 2.0, UNTRAINED, {}, "with --steps 0"),
    ("speq-weight", 2.0, {**UNTRAINED, **FLOAT}, {}, "with --steps 0"),
    ("speq-bits", 3, {}, {"speq-weight": 1.0}, "without --speq-weight"),
    ("speq-probability", 0.2, {}, {"speq-weight": 1.0}, "without --speq-weight"),
    ("generations", 2, UNTRAINED, {}, "with --steps 0"),
    ("projections", 9, {"affinity": "gram"}, {"affinity": "auto"}, "projects nothing"),
    ("taps", ["layer4"], {"affinity": "none"}, {"affinity": "none", "sakd-weight": 1.0}, "no features are compared"),
    ("threads", 2, TENSORRT, {}, "run on the GPU"),
    ("runner", "onnxruntime", {}, TENSORRT, "builds no engine"),
    ("batches", [1, 2, 3], {}, TENSORRT, "builds no engine"),
    ("workspace-mib", 9, {}, TENSORRT, "builds no engine"),
    ("optimisation-level", 5, {}, TENSORRT, "builds no engine"),
    (
        "hardware-compatibility",
        "same-compute-capability",
        {**TENSORRT, "runner": "onnxruntime"},
        TENSORRT,
        "ampere-plus alone",
    ),
    ("version-compatible", True, {**TENSORRT, "runner": "onnxruntime"}, TENSORRT, "has no such engines"),
    ("timing-cache", "a", {}, TENSORRT, "builds no engine"),
    ("device", "cpu", {"quantiser": "nncf"}, UNTRAINED, "which does not train"),
    ("precision", "float32", UNTRAINED, {}, "with --steps 0"),
    ("restart-training", True, {}, {"resume": True}, "without --resume"),
]


def test_every_flag_has_a_row_and_every_row_with_a_condition_a_test() -> None:
    assert NEEDS.keys() == flags(RunConfig).keys()
    assert [row[0] for row in ROWS] == [key for key, needs in NEEDS.items() if needs != ALWAYS]


@pytest.mark.parametrize(("key", "value", "idle", "used", "words"), ROWS, ids=[row[0] for row in ROWS])
def test_a_flag_that_would_be_ignored_is_refused_by_name(
    key: str, value: Any, idle: dict[str, Any], used: dict[str, Any], words: str
) -> None:
    beside = default_settings() | idle | {key: value}
    with pytest.raises(UserError) as caught:
        check_meanings(beside, [key])
    assert str(caught.value).startswith(f"--{key}") and " has no meaning w" in str(caught.value)
    assert words in str(caught.value)
    check_meanings(beside, [])  # nothing was asked for

    check_meanings(default_settings() | used | {key: value}, [key])


def test_nothing_asked_means_nothing_to_refuse() -> None:
    assert RunConfig().to_json() == default_settings()
    RunConfig.from_json({"steps": 0})
    RunConfig.from_json({"affinity": "none", "data": "images:a", "teacher": ["python:a:b"]})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--taps layer4 --affinity none", "--taps layer4 has no meaning with --affinity none and no --sakd-weight"),
        # Typed, though it is the default.
        ("--temperature 4 --logit-loss mse", "--temperature 4.0 has no meaning with --logit-loss mse"),
        ("--runner tensorrt", "--runner tensorrt has no meaning with --backend onnxruntime"),
        ("--version-compatible", "--version-compatible has no meaning with --backend onnxruntime"),
        ("--recipe sp --projections 3", "--projections 3 has no meaning with --affinity sp"),
        ("--recipe dafl --workers 2", "--workers 2 has no meaning with --data none"),
    ],
)
def test_the_command_line_refuses_what_was_typed(
    arguments: str, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", *arguments.split()]) == 2
    assert words in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_file_is_told_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.toml"
    file.write_text('affinity = "none"\nprojections = 3\ntemperature = 4.0\n', encoding="utf-8")
    assert main(["run", "--config", str(file)]) == 2
    assert "--projections 3 has no meaning with --affinity none" in capsys.readouterr().err


def parsed(*arguments: str) -> dict[str, Any]:
    _, bound, _ = app.parse_args(["run", *arguments], exit_on_error=False, print_error=False)
    config = bound.arguments["config"]
    assert isinstance(config, RunConfig)
    return config.to_json()


@pytest.mark.parametrize(
    ("recipe", "typed", "dropped"),
    [
        ("ffa", "--affinity none", ("affinity-weight", "projections")),
        ("ffa", "--logit-loss mse", ("temperature",)),
        ("sakd", "--steps 0", ("sakd-weight",)),
        ("speq", "--steps 0", ("speq-weight", "speq-bits", "speq-probability")),
        ("faqd-paper", "--affinity sp", ("adapters", "affinity-order")),
    ],
)
def test_typed_flags_win_over_what_a_recipe_means(recipe: str, typed: str, dropped: tuple[str, ...]) -> None:
    chosen, default = parsed("--recipe", recipe, *typed.split()), default_settings()
    assert all(chosen[key] == default[key] for key in dropped)


def test_what_hangs_on_a_dropped_setting_is_dropped_with_it() -> None:
    recipe = {"speq-bits": 2, "speq-weight": 1.0, "bits": 2}
    assert meaningful(recipe, {"steps": 0}, default_settings()) == {"bits": 2}
    assert meaningful(recipe, {}, default_settings()) == recipe


@pytest.mark.parametrize(
    ("student", "steps", "weights", "learns"),
    [
        (None, None, None, False),
        ("cifar:resnet20", None, None, True),
        ("cifar:resnet20", None, "w.pth", False),
        ("cifar:resnet20", 7, "w.pth", True),
        ("cifar:resnet20", 0, None, False),
        ("torchvision:resnet18", None, None, False),
    ],
)
def test_another_student_without_weights_may_learn_in_float(
    student: str | None, steps: int | None, weights: str | None, learns: bool
) -> None:
    named = {"student": student, "float-steps": steps, "student-weights": weights}
    assert may_learn_in_float(default_settings() | named) == learns
    assert (lacking("float-learning-rate", default_settings() | named) is None) == learns
