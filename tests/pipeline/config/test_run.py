"""The configuration: valid at birth, the same as flags, JSON and TOML."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from backends.device.bundle_check import records
from calibration.errors import UserError
from pipeline.cli import main
from pipeline.config import (
    DataConfig,
    EngineConfig,
    ExecutionConfig,
    OutputConfig,
    PreprocessingConfig,
    QuantisationConfig,
    RunConfig,
    StudentConfig,
    TeacherConfig,
    ValidationConfig,
)
from pipeline.config.distillation import DistillationConfig
from pipeline.config.file import read_toml, to_toml
from pipeline.config.flags import flags

UNUSUAL = RunConfig(
    teacher=TeacherConfig(
        sources=("python:my.nets:build", "digits"),
        files=('a "b"\\,c.pth', "own"),
    ),
    preprocessing=PreprocessingConfig(
        image_size="96x64", fit="letterbox", fill=(0, 114, 255), mean=(0.5,), std=(0.25,)
    ),
    student=StudentConfig(source="cifar:resnet20", weights=Path("s.safetensors")),
    data=DataConfig(source="npz:é中\x7f.npz#images", workers=0, augmentation="crop", calibration_images=7),
    quantisation=QuantisationConfig(backend="reference", bits=4, first_bits=4, range_method="mse", opset=21),
    distillation=DistillationConfig(steps=9, learning_rate=3e-5, affinity="ffa", affinity_order="1", taps=("a.b", "c")),
    validation=ValidationConfig(eval_data="npz:x#a,b", min_speedup=1.5, max_drop=0),
    execution=ExecutionConfig(device="cuda:1", seed=2**63 - 1),
    output=OutputConfig(folder=Path("out"), overwrite=True),
)


@pytest.mark.parametrize("config", [RunConfig(), UNUSUAL])
def test_json_and_toml_give_the_same_configuration_back(config: RunConfig, tmp_path: Path) -> None:
    assert RunConfig.from_json(config.to_json()) == config
    file = tmp_path / "settings.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    assert RunConfig.from_json(read_toml(file)) == config


def test_toml_holds_each_help_and_comments_what_is_unset() -> None:
    text = to_toml(RunConfig())
    assert "# weights =" in text
    assert all(flag.help in text for flag in flags(RunConfig).values())
    assert tomllib.loads(text)["bits"] == 8


def test_every_field_is_a_flag_with_help_and_no_two_share_a_name() -> None:
    groups = [records.plain_hint(hint) for hint in records.hints(RunConfig).values()]
    assert len(flags(RunConfig)) == sum(len(dataclasses.fields(group)) for group in groups)
    for flag in flags(RunConfig).values():
        assert flag.help.endswith("."), flag


@pytest.mark.parametrize(
    ("group", "fields", "words"),
    [
        (QuantisationConfig, {"bits": 5}, "--bits 5: must be 8, 4, 3, 2 or 1"),
        (QuantisationConfig, {"bits": True}, "--bits True: must be 8, 4, 3, 2 or 1"),
        (
            QuantisationConfig,
            {"backend": "coreml"},
            "--backend coreml: must be onnxruntime, tensorrt, openvino or reference",
        ),
        (QuantisationConfig, {"opset": 12}, "--opset 12: must be 17 to 23"),
        (QuantisationConfig, {"opset": 17, "bits": 4}, "--opset 17 has no 4-bit tensors"),
        (TeacherConfig, {"sources": (":resnet18",)}, "--teacher ':resnet18': must be KIND:REST"),
        (TeacherConfig, {"sources": ("timm:",)}, "--teacher 'timm:': must be KIND:REST"),
        (PreprocessingConfig, {"image_size": 0}, "--image-size 0: must be 1 or more"),
        (
            PreprocessingConfig,
            {"image_size": "640"},
            "--image-size '640': must be pixels, such as 224, or WIDTHxHEIGHT",
        ),
        (PreprocessingConfig, {"image_size": "640x0"}, "--image-size '640x0': must be pixels, such as 224, or"),
        (PreprocessingConfig, {"image_size": "640x384x3"}, "--image-size '640x384x3': must be pixels"),
        (PreprocessingConfig, {"resize": 0}, "--resize 0: must be 1 or more"),
        (PreprocessingConfig, {"fit": "pad"}, "--fit pad: must be crop, stretch or letterbox"),
        (PreprocessingConfig, {"resize": 256, "crop_ratio": 0.9}, "--resize and --crop-ratio say the same thing"),
        (PreprocessingConfig, {"crop_ratio": 1.5}, "--crop-ratio 1.5: must be at most 1"),
        (PreprocessingConfig, {"resize": 256, "fit": "stretch"}, "--resize comes before a crop: it needs --fit crop"),
        (PreprocessingConfig, {"crop_ratio": 0.9, "fit": "letterbox"}, "--crop-ratio comes before a crop"),
        (PreprocessingConfig, {"fill": (114,), "fit": "crop"}, "--fill is of the frame around a letterboxed image"),
        (PreprocessingConfig, {"fill": (300,)}, "--fill 300: must be whole numbers from 0 to 255"),
        (PreprocessingConfig, {"fill": (1, 2)}, "--fill 1,2: must be 1 or 3 numbers"),
        (PreprocessingConfig, {"placement": "centre", "fit": "stretch"}, "--placement is of the frame around"),
        (PreprocessingConfig, {"stored_bits": 8}, "--stored-bits 8: must be from 9 to 16"),
        (PreprocessingConfig, {"divisor": 1.0}, "--divisor 1 needs --mean and --std"),
        (PreprocessingConfig, {"divisor": 0.0, "mean": (0.5,), "std": (1.0,)}, "--divisor 0.0: must be greater than 0"),
        (PreprocessingConfig, {"mean": (0.5,)}, "--mean 0.5 needs --std"),
        (PreprocessingConfig, {"std": (0.5,)}, "--std 0.5 needs --mean"),
        (PreprocessingConfig, {"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "--mean 0.5,0.5: must be 1 or 3 numbers"),
        (PreprocessingConfig, {"mean": (0.5,), "std": (1.0, 1.0, 1.0)}, "--mean has 1 numbers and --std 3"),
        (PreprocessingConfig, {"mean": (0.5,), "std": (0.0,)}, "--std 0.0: every number must be greater than 0"),
        (PreprocessingConfig, {"mean": (float("nan"),), "std": (1.0,)}, "--mean nan: must be a list"),
        (StudentConfig, {"weights": Path("s.pth")}, "--student-weights s.pth needs --student"),
        (DataConfig, {"calibration_images": 0}, "--calibration-images 0: must be 1 or more"),
        (DataConfig, {"workers": -1}, "--workers -1: must be 0 or more"),
        (DistillationConfig, {"learning_rate": 0.0}, "--learning-rate 0.0: must be greater than 0"),
        (DistillationConfig, {"learning_rate": float("inf")}, "--learning-rate inf: must be a number"),
        (DistillationConfig, {"affinity_order": "1"}, "--affinity-order 1 has no auto form"),
        (DistillationConfig, {"taps": ()}, "--taps is empty"),
        (DistillationConfig, {"affinity": "cosine", "distance": "kl"}, "--distance kl compares probabilities"),
        (DistillationConfig, {"minutes": 0.0}, "--minutes 0"),
        (DistillationConfig, {"minutes": 2.0, "steps": 5}, "--minutes 2 and --steps 5 both say how long"),
        (DistillationConfig, {"affinity": "rkd-a", "batch_size": 2}, "--batch-size 2: --affinity rkd-a compares"),
        (DistillationConfig, {"affinity_weight": 0.0}, "--affinity-weight 0.0: must be a finite number above 0"),
        (DistillationConfig, {"temperature": "linear:1:-1"}, "--temperature linear:1:-1: every value must be"),
        (DistillationConfig, {"feed_weight": "soon"}, "--feed-weight soon: must be a number, linear:A:B"),
        (DistillationConfig, {"speq_probability": 1.5}, "--speq-probability 1.5: must be above 0 and at most 1"),
        (DistillationConfig, {"affinity": "pkt", "adapters": "trained"}, "--adapters trained belongs to losses over"),
        (QuantisationConfig, {"activation_bits": 4}, "--activation-bits 4: --backend onnxruntime multiplies 8-bit"),
        (
            QuantisationConfig,
            {"weight_grids": "faqd"},
            "--weight-grids faqd has formulas for 4, 2 and 1 bits",
        ),
        (
            QuantisationConfig,
            {"activation_grids": "pact", "learned_scales": "weights"},
            "--activation-grids pact needs --learned-scales all, not weights",
        ),
        (DistillationConfig, {"weight_decay": -1e-4}, "--weight-decay -0.0001: must be 0 or more"),
        (QuantisationConfig, {"rest": "fp16"}, "--rest fp16 is for --backend tensorrt: onnxruntime computes"),
        (
            QuantisationConfig,
            {"rest": "fp16", "backend": "tensorrt", "opset": 18},
            "--opset 18 has no float16 roundings: use --opset 19 or more",
        ),
        (EngineConfig, {"batches": (1, 2)}, "--batches 1,2: must be MIN,OPT,MAX"),
        (EngineConfig, {"batches": (4, 2, 8)}, "--batches 4,2,8: must be MIN,OPT,MAX"),
        (EngineConfig, {"workspace": 0}, "--workspace-mib 0: must be 1 or more"),
        (EngineConfig, {"optimisation_level": 6}, "--optimisation-level 6: must be 0 to 5"),
        (EngineConfig, {"hardware_compatibility": "any"}, "--hardware-compatibility any: must be none, ampere-plus"),
        (
            TeacherConfig,
            {"sources": ("digits", "digits"), "files": ("a",)},
            "--weights is given 1 times and --teac",
        ),
        (TeacherConfig, {"sources": ()}, "--teacher is empty"),
        (ValidationConfig, {"min_speedup": 0.0}, "--min-speedup 0.0: must be greater than 0"),
        (ValidationConfig, {"threads": 1.5}, "--threads 1.5: must be a whole number"),
        (ExecutionConfig, {"device": "gpu"}, "--device gpu: must be auto, cpu, cuda or cuda:N"),
        (ExecutionConfig, {"seed": -1}, "--seed -1: must be 0 to"),
        (OutputConfig, {"overwrite": True, "resume": True}, "--overwrite starts anew and --resume goes on"),
    ],
)
def test_a_wrong_value_cannot_exist(group: Any, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        group(**fields)
    assert str(caught.value).startswith(words)


def test_flags_of_an_engine_need_a_backend_that_builds_one() -> None:
    engine = EngineConfig(batches=(1, 4, 8))
    with pytest.raises(UserError, match="--batches is for --backend tensorrt: onnxruntime builds no engine"):
        RunConfig(engine=engine)
    tensorrt = QuantisationConfig(backend="tensorrt")
    with pytest.raises(UserError, match="--batch 16 lies outside of --batches 1,4,8"):
        RunConfig(quantisation=tensorrt, engine=engine, validation=ValidationConfig(batch=16))
    RunConfig(quantisation=tensorrt, engine=engine, validation=ValidationConfig(batch=4))


def test_a_teacher_of_something_else_needs_its_own_images() -> None:
    with pytest.raises(UserError, match="--teacher cifar:resnet20 needs images of its own kind"):
        RunConfig(teacher=TeacherConfig(sources=("cifar:resnet20",)))
    RunConfig(teacher=TeacherConfig(sources=("python:my.nets:build",)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bitz": 4}, "c.toml: unknown key 'bitz', did you mean bits?"),
        ({"quux-quux": 4}, "c.toml: unknown key 'quux-quux'; the keys are the flags"),
        ({"bits": "8"}, "c.toml: bits is '8': must be 8, 4, 3, 2 or 1"),
        ({"mean": [0.5, "x"], "std": [1, 1]}, r"c.toml: mean\[1\] is 'x': must be a number"),
        ({"steps": 1.5}, "c.toml: steps is 1.5: must be a whole number"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        RunConfig.from_json(settings, where="c.toml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"bits = ", "is not TOML"),
        (b"\xff\xfe", "is no UTF-8 text"),
        (b"[teacher]\nweights = 'x'\n", r"\[teacher\] is a table: .* write weights = \"x\" without"),
    ],
)
def test_unreadable_settings_are_the_users_mistake(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read_toml(file)
    assert str(file) in str(caught.value)


def test_the_folder_is_named_after_teacher_backend_and_bits() -> None:
    assert RunConfig().folder == Path("artifacts/digits-onnxruntime-w8a8")
    for_arm = RunConfig(quantisation=QuantisationConfig(target="arm64"))
    assert for_arm.folder == Path("artifacts/digits-onnxruntime-arm64-w8a8")
    config = RunConfig(
        teacher=TeacherConfig(sources=("python:a.b:c",)),
        quantisation=QuantisationConfig(bits=4, backend="tensorrt"),
    )
    assert config.folder == Path("artifacts/python-a.b-c-tensorrt-w4a8")
    assert RunConfig(output=OutputConfig(folder=Path("x"))).folder == Path("x")


def test_scoring_uses_the_embedded_labels_only_with_the_embedded_images() -> None:
    assert RunConfig().evaluation_source == "digits"
    assert RunConfig(data=DataConfig(source="images:a")).evaluation_source is None
    assert RunConfig(validation=ValidationConfig(eval_data="npz:a#b")).evaluation_source == "npz:a#b"


def test_python_may_give_paths_as_text_and_lists_as_lists(tmp_path: Path) -> None:
    output: Any = str(tmp_path / "out")
    assert OutputConfig(folder=output).folder == tmp_path / "out"
    one: Any = "torchvision:resnet18"
    several: Any = ["torchvision:resnet18", "torchvision:resnet50"]
    assert TeacherConfig(sources=one).sources == ("torchvision:resnet18",)
    assert TeacherConfig(sources=several).sources == tuple(several)
    assert TeacherConfig(sources=one) == TeacherConfig(sources=("torchvision:resnet18",))
    kinds: Any = [0.5, 0.5, 0.5]
    assert PreprocessingConfig(mean=kinds, std=kinds).mean == (0.5, 0.5, 0.5)
    for wrong in (3, ["a", 3], {"a": 1}):
        with pytest.raises(UserError, match="--teacher"):
            TeacherConfig(sources=wrong)  # type: ignore[arg-type]  # that is the point


def test_a_number_as_text_is_told_as_such() -> None:
    bits: Any = "8"
    with pytest.raises(UserError, match=r"^--bits '8' is text: must be a number, such as 8$"):
        QuantisationConfig(bits=bits)
    with pytest.raises(UserError, match=r"^--steps '300' is text: must be a number, such as 300$"):
        DistillationConfig(steps="300")  # type: ignore[arg-type]  # the same
    with pytest.raises(UserError, match=r"^--bits 5: must be 8, 4, 3, 2 or 1$"):
        QuantisationConfig(bits=5)  # type: ignore[arg-type]  # the same


def test_help_shows_defaults_as_they_are_typed(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "validate", "compare"):
        main([command, "--help"])
        shown = capsys.readouterr().out
        assert "default: (" not in shown and "default: []" not in shown and len(shown) > 1000
