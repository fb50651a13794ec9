"""What a run says before it begins: how images become the input, and that they will be too few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import faqd
from pipeline.artifacts import Network
from pipeline.cli import main
from pipeline.validation.evaluation import Scored
from pipeline.validation.opening import opening

NET = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    return nn.Sequential(*body)
"""


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "opening_net.py").write_text(NET)
    (tmp_path / "photos").mkdir()
    for index in range(40):
        pixels = np.random.default_rng(index).integers(0, 255, (24, 24, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    return tmp_path


def said_of(config: faqd.RunConfig, teacher: Network, scored: Scored) -> tuple[str, ...]:
    return opening(config.distillation, config.validation, teacher, scored)


RUN = "run --teacher python:opening_net:build --data images:photos --steps 0 --mean 0.5 --std 0.25 --threads 1"


@pytest.mark.parametrize(
    ("settings", "size", "fit", "few"),
    [
        ({}, 20, "--fit stretch: stretched to 20x20 px", "only 4 images are scored and a limit of 1 point needs 299"),
        ({"max-drop": 60.0}, 96, "--fit crop: shorter side to 110 px and a crop of 96x96 px", ""),
        ({"max-drop": 20.0}, (24, 20), "--fit stretch: stretched to 24x20 px", "--held-out-images 14, --eval-data"),
        ({"output-max-drop": ["output=none"]}, 20, "--fit stretch", ""),
        ({"max-drop": 10.0, "output-max-drop": ["output=60"]}, 20, "--fit stretch", ""),
    ],
)
def test_what_is_said(settings: dict[str, Any], size: Any, fit: str, few: str, photos: Path) -> None:
    teacher = faqd.load_network("python:opening_net:build", image_size=size, mean=(0.5,), std=(0.25,))
    scored = Scored.held_out(faqd.open_images("photos", teacher).split)
    lines = said_of(faqd.RunConfig.from_json(settings), teacher, scored)
    assert fit in lines[0] and len(lines) == (2 if few else 1)
    assert few in lines[-1] and ("this run will end undecided" in lines[-1]) is bool(few)


def test_a_temperature_that_softens_nothing_is_told(photos: Path) -> None:
    config = faqd.RunConfig.from_json({"temperature": 2.0, "max-drop": 90.0})
    told = "--temperature 2.0 changes nothing: python:opening_net:build has no output of classes or labels"
    for kinds, lines in (("values", 1), ("labels", 0), ("classes", 0)):
        teacher = faqd.load_network("python:opening_net:build", image_size=20, output_kinds=[f"output={kinds}"])
        scored = Scored.held_out(faqd.open_images("photos", teacher).split)
        assert said_of(config, teacher, scored).count(told) == lines
        assert told not in said_of(faqd.RunConfig(), teacher, scored)


def test_what_cannot_be_held_out_is_not_offered(photos: Path) -> None:
    teacher = faqd.load_network("python:opening_net:build", image_size=20, mean=(0.5,), std=(0.25,))
    scored = Scored.held_out(faqd.open_images("photos", teacher, held_out_images=39).split)
    (_, few) = said_of(faqd.RunConfig(validation=faqd.ValidationConfig(max_drop=2)), teacher, scored)
    assert "ways out: --eval-data with as many (labels are not needed) or --max-drop 8" in few


def test_a_file_that_is_not_there_is_told_before_a_folder_that_is(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "out").mkdir()
    (photos / "out" / "mine").write_text("dear")
    for flags, words in (("--weights nope", "weights nope: there is no such file"), ("--classes nope", "nope")):
        assert main([*RUN.split(), *flags.split(), "--output", "out"]) == 2
        assert words in (error := capsys.readouterr().err) and "out" not in error.replace("without", "")


def test_a_bundle_is_validated_with_no_flag_that_means_nothing(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*RUN.split(), "--image-size", "20", "--output", "out"])
    printed, said = capsys.readouterr()
    before = said[: said.index("\nobserve")]
    assert "--fit stretch: stretched to 20x20 px" in before and "this run will end undecided" in before
    assert "simulated" in printed
    (photos / "names.txt").write_text("a\nb\nc\nd\n")
    refused = {
        "--classes names.txt": "--classes names.txt has no meaning without --eval-data",
        "--threads 2 --emulate arm64": "--threads 2 has no meaning with --emulate arm64, whose times are not measured",
        "--batch 2 --emulate arm64": "--batch 2 has no meaning with --emulate",
        "--min-speedup 2 --emulate arm64": "--min-speedup 2.0 has no meaning with --emulate",
    }
    for flags, words in refused.items():
        assert main(["validate", "out/bundle", *flags.split()]) == 2
        assert words in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert main(["validate", "out/bundle", "--threads", "2"]) == 4
    assert "simulated" not in capsys.readouterr().out  # a bundle has no simulation that could be "not run here"


def test_class_names_of_an_artifacts_validation_are_read(photos: Path) -> None:
    network = faqd.load_network("python:opening_net:build", image_size=20, mean=(0.5,), std=(0.25,))
    artifact = faqd.convert(faqd.prepare(network, faqd.open_images("photos", network)))
    for index, file in enumerate(sorted((photos / "photos").iterdir())):
        (photos / "held" / "abcd"[index % 4]).mkdir(parents=True, exist_ok=True)
        file.rename(photos / "held" / "abcd"[index % 4] / file.name)
    names = photos / "names.txt"
    limits = faqd.ValidationConfig(classes=names)
    for held, words in (
        ("a b d", "names.txt has 3 names, and no output has as many"),
        ("d c b e", "class folders a are not among"),
    ):
        names.write_text(held.replace(" ", "\n"))
        with pytest.raises(faqd.UserError, match=words):
            faqd.validate(artifact, "images:held", limits)
