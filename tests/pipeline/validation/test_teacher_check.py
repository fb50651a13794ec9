"""The float teacher is asked about some images before anything is trained: its order of classes, its worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import faqd
from calibration.errors import UserError
from pipeline.artifacts import Network
from pipeline.cli import main
from pipeline.images.data import open_evaluation
from pipeline.images.embedded import digits_images
from pipeline.images.sources.arrays import ArraySource
from pipeline.images.split_images import SplitImages
from pipeline.networks.outputs.meaning import Output
from pipeline.stages.teacher import load_network
from pipeline.validation.evaluation import usable_labels
from pipeline.validation.teacher_check import check_teacher

pytestmark = pytest.mark.usefixtures("all_digits_narrow")

NAMES = ("six", "four", "nine", "one", "eight", "three", "zero", "seven", "two", "five")  # of the digits 0 to 9


@pytest.fixture(scope="module")
def teacher() -> Network:
    return load_network("digits")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out digits in folders whose alphabet is not the order of the classes."""
    root = tmp_path_factory.mktemp("digits")
    _, images, labels = digits_images()
    for index, (image, label) in enumerate(zip(images[:200], labels[:200], strict=True)):
        (root / NAMES[label]).mkdir(exist_ok=True)
        Image.fromarray(image[0]).save(root / NAMES[label] / f"{index}.png")
    return root


def judged(teacher: Network, folders: Path) -> tuple[str, ...]:
    source = f"images:{folders}"
    evaluation, remarks = usable_labels(open_evaluation(source, teacher.preprocessing), teacher.outputs, source)
    return (*remarks, *check_teacher(teacher, None, evaluation, data="", eval_data=source))


def test_folders_in_another_order_end_the_run_before_it_begins_and_a_file_of_names_mends_it(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unnamed = replace(load_network("digits"), outputs=(Output(name="output", holds="classes", axis=1, shape=(10,)),))
    with pytest.raises(UserError) as caught:
        judged(unnamed, folders)
    line = str(caught.value)
    assert "in another order it would be on 9" in line or "in another order it would be on 100" in line
    assert "sorted order for the network's classes, 0 = eight, 1 = five" in line and "--classes FILE" in line
    arguments = ["run", "--steps", "0", "--eval-data", f"images:{folders}", "--output", str(tmp_path / "o")]
    assert main(arguments) == 2
    assert "in another order" in capsys.readouterr().err and not (tmp_path / "o" / "bundle").exists()
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    remarks = judged(faqd.load_network("digits", classes=tmp_path / "classes.txt"), folders)
    assert remarks == (f"--eval-data images:{folders}: class folders are matched by name",)
    (tmp_path / "classes.txt").write_text("\n".join(("cow", *NAMES[1:])))
    with pytest.raises(UserError, match="class folders six are not among the 10 class names"):
        judged(faqd.load_network("digits", classes=tmp_path / "classes.txt"), folders)


@pytest.mark.parametrize("alone", [False, True], ids=["beside its float file", "alone"])
def test_a_bundle_is_not_scored_by_labels_in_another_order(
    folders: Path, alone: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "o" / "bundle"
    assert main(["run", "--steps", "0", "--output", str(tmp_path / "o")]) == 0
    if alone:
        (tmp_path / "o" / "float.onnx").unlink()
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    scored = ["validate", str(bundle), "--eval-data", f"images:{folders}"]
    capsys.readouterr()
    assert main(scored) == 2
    refused = capsys.readouterr().err
    assert f"error: {'the bundle' if alone else 'the float teacher'}" in refused and "in another order" in refused
    assert main([*scored, "--classes", str(tmp_path / "classes.txt")]) == 4, "too few images to decide, not too bad"
    assert "class folders are matched by name" in " ".join(capsys.readouterr().out.split())


def test_a_teacher_that_guesses_is_refused_and_a_poor_one_is_warned_of(teacher: Network) -> None:
    evaluation = open_evaluation("digits", teacher.preprocessing)
    labels = evaluation.labels
    assert labels is not None

    def told(share: float) -> tuple[str, ...]:
        """With so many of the labels as they are, and the others drawn."""
        generator = np.random.default_rng(1)
        mixed = np.where(generator.random(len(labels)) < share, labels, generator.integers(0, 10, len(labels)))
        spoiled = replace(evaluation, labels=mixed, order="its labels are indices")
        return check_teacher(teacher, None, spoiled, data="", eval_data="x")

    with pytest.raises(UserError, match=r"guessing is on \d+\.\d %: its labels are indices; give the order"):
        told(0.0)
    (warning,) = told(0.15)
    assert warning.startswith("WARNING: the float teacher is right on 2") and "--classes FILE" in warning
    assert told(0.6) == told(1.0) == ()


def images() -> SplitImages:
    unlabelled, _, _ = digits_images()
    source = ArraySource("digits", unlabelled)
    places = np.arange(len(unlabelled))
    return SplitImages(source=source, training=places[100:], held_out=places[:100], workers=0, augmentation="none")


def with_end(teacher: Network, function: object, **said: object) -> Network:
    """The digits' network with something behind it that its graph does not show."""

    class Ended(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [function(teacher.folded(x)[0])]  # type: ignore[operator]

    outputs = (replace(teacher.outputs[0], **said),)  # type: ignore[arg-type]
    return replace(teacher, folded=Ended(), outputs=outputs)  # type: ignore[arg-type]


def test_values_within_0_and_1_are_no_logits(teacher: Network) -> None:
    def check(network: Network) -> tuple[str, ...]:
        return check_teacher(network, images(), None, data="digits", eval_data=None)

    assert check(teacher) == ()
    with pytest.raises(UserError, match="all would be yes: --output-kinds output=label-probabilities"):
        check(with_end(teacher, torch.sigmoid, holds="labels"))
    with pytest.raises(UserError, match="sum to 1, where classes are logits: --output-kinds output=probabilities"):
        check(with_end(teacher, lambda z: z.softmax(1)))
    assert check(with_end(teacher, lambda z: z.softmax(1), activation="softmax")) == ()
    with pytest.raises(UserError, match=r"was said to hold probabilities, and on 64 .* --output-kinds output=classes"):
        check(with_end(teacher, lambda z: z, activation="softmax"))
    (warning,) = check(with_end(teacher, lambda z: z + 100 * torch.eye(10)[3]))
    assert "decides output alike everywhere on 64 held-out images (class 3, 3)" in warning
