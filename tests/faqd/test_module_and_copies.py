"""A student's module takes what it was prepared for; images are sliced; results are copied, and not pickled by half."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import faqd
from tests.faqd.conftest import pixels, small


@pytest.mark.parametrize(
    "wrong",
    [
        torch.zeros(3, 16, 16),
        torch.zeros(1, 3, 20, 20),
        torch.zeros(1, 4, 16, 16),
        torch.zeros(1, 3, 16, 16, dtype=torch.uint8),
        torch.zeros(1, 3, 16, 16, dtype=torch.float64),
        pixels(1),
        None,
    ],
    ids=["3-D", "size", "channels", "uint8", "float64", "numpy", "None"],
)
def test_the_module_takes_images_as_it_was_prepared_for(student: faqd.Student, wrong: Any) -> None:
    with pytest.raises(faqd.UserError, match=r"^student\.module\(.*float32 \[batch, 3, 16, 16\]"):
        student.module(wrong)


def test_a_free_size_is_free_in_the_module_as_well() -> None:
    network = faqd.capture(small(), image_size=16, mean=(0.5,), std=(0.25,), dynamic_size=True)
    module = faqd.prepare(network, faqd.open_images(pixels(), network)).module
    assert module(torch.zeros(1, 3, 20, 24)).shape == (1, 4)
    with pytest.raises(faqd.UserError, match=r"\[batch, 3, height, width\]"):
        module(torch.zeros(1, 4, 16, 16))


@pytest.mark.parametrize("kind", [torch.float64, torch.float16])
def test_a_module_of_other_numbers_is_no_file(
    network: faqd.Network, images: faqd.Images, student: faqd.Student, kind: torch.dtype
) -> None:
    other = copy.deepcopy(student)
    other.module.to(kind)
    with pytest.raises(faqd.UserError, match=r"holds float\d\d .*student\.module\.float\(\) first"):
        faqd.convert(other)
    other.module.float()
    assert (faqd.convert(other).model == _file(student)) == (kind == torch.float64)  # of which no number was rounded


def _file(student: faqd.Student) -> Any:
    return faqd.convert(student).model


def test_images_are_sliced_and_counted(images: faqd.Images) -> None:
    held_out = images.held_out
    assert torch.equal(held_out[:2], torch.stack([held_out[0], held_out[1]]))
    assert torch.equal(held_out[-1:][0], held_out[-1]) and held_out[:0].shape == (0, 3, 16, 16)
    assert len([*DataLoader(held_out)]) == len(held_out)
    for wrong in ("a", 0.5, [0, 1]):
        with pytest.raises(faqd.UserError, match="must be a whole number or a slice"):
            held_out[wrong]  # type: ignore[index]


def test_what_is_copied_computes_the_same_and_learns_apart(student: faqd.Student, images: faqd.Images) -> None:
    shown, artifact = images.held_out[:2], faqd.convert(student)
    for copied in (copy.deepcopy(student), copy.copy(student)):
        assert torch.equal(copied.module(shown), student.module(shown))
    apart = copy.deepcopy(artifact)
    assert apart.model == artifact.model and _file(apart.student) == artifact.model
    with torch.no_grad():
        apart.student.module.weight_parameters()[0].mul_(2)
    assert _file(student) == artifact.model


def test_what_cannot_be_pickled_says_what_to_keep(student: faqd.Student, images: faqd.Images, tmp_path: Path) -> None:
    for result in (student, student.module, student.network, faqd.convert(student)):
        with pytest.raises(faqd.UserError, match=r"cannot be pickled.*state_dict\(\).*artifact\.save"):
            pickle.dumps(result)
    assert torch.equal(pickle.loads(pickle.dumps(images)).held_out[0], images.held_out[0])
    torch.save(student.module.state_dict(), tmp_path / "weights.pt")
    copied = copy.deepcopy(student)
    copied.module.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert _file(copied) == _file(student)


def test_paths_and_threads_of_another_kind_are_one_line(student: faqd.Student, images: faqd.Images) -> None:
    artifact = faqd.convert(student)
    for wrong in (None, 3, b"model.onnx"):
        with pytest.raises(faqd.UserError, match=r"^Artifact\.save takes the path of a file, not a"):
            artifact.save(wrong)  # type: ignore[arg-type]
    for threads in ("2", 1.5, True, 0):
        with pytest.raises(faqd.UserError, match="must be a whole number, at least 1"):
            artifact.run(images.held_out[:1], threads=threads)  # type: ignore[arg-type]
