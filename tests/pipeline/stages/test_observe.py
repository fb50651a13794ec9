"""Calibration of a whole student: its statistics put right on some of the images that calibrated it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.facts import openvino_rules, tensorrt_rules
from backends.facts.onnxruntime_rules import X64
from backends.facts.profile import Profile
from backends.facts.widths import Widths
from backends.placement.place import place
from calibration.rewrites.rewrite import names_of
from calibration.rewrites.wide_branches import WIDE_BRANCHES
from calibration.simulation.correction import Corrections
from pipeline.artifacts import PreparedStudent
from pipeline.images.calibration_images import calibration_indices, drawn_to_calibrate
from pipeline.images.data import ordered_batches
from pipeline.images.preprocessing import normalise
from pipeline.images.sources.image_source import ImageSource
from pipeline.images.split_images import SplitImages
from pipeline.stages.observe import corrected, suited
from pipeline.tools.kept import Kept
from tests.recorded_rows import recording


def correct(example: SimpleNamespace, student: PreparedStudent, *, count: int = 256) -> PreparedStudent:
    return corrected(student, calibrated_on(example, count))


def calibrated_on(example: SimpleNamespace, count: int) -> SplitImages:
    images: SplitImages = example.images
    return replace(images, calibration=drawn_to_calibrate(images.training, count=count, seed=0))


def two_bits(example: SimpleNamespace) -> PreparedStudent:
    plan = place(example.prepared.folded, example.backend.profile, Widths(weights=2))
    student: PreparedStudent = replace(example.prepared, plan=plan)
    return student


def agreement(example: SimpleNamespace, student: PreparedStudent) -> float:
    """How often student and teacher decide alike on held-out images."""
    network, same = student.network().eval(), []
    with torch.no_grad():
        for batch in ordered_batches(
            example.images.source, example.images.held_out, example.teacher.preprocessing, batch_size=64
        ):
            inputs = normalise(batch.images, example.teacher.preprocessing)
            same.append(network(inputs)[0].argmax(1) == example.teacher.folded(inputs)[0].argmax(1))
    return float(torch.cat(same).double().mean())


def test_three_levels_decide_like_the_teacher_without_training(example: SimpleNamespace) -> None:
    student = two_bits(example)
    corrected = correct(example, student)
    assert agreement(example, student) < 0.9
    assert agreement(example, corrected) > agreement(example, student) + 0.05
    assert corrected.ranges == student.ranges and corrected.plan == student.plan


def test_it_is_kept_with_the_student(example: SimpleNamespace, tmp_path: Path) -> None:
    corrected = correct(example, example.prepared)
    corrected.save(Kept(tmp_path / "prepared.json"))
    again = PreparedStudent.load(Kept(tmp_path / "prepared.json"), corrected.student, corrected.quantisation)
    weights, loaded = corrected.network().state_dict(), again.network().state_dict()
    assert all(torch.equal(weights[name], loaded[name]) for name in weights)
    plain = replace(corrected, corrections=Corrections()).network().state_dict()
    assert any(not torch.equal(weights[name], plain[name]) for name in weights)


@pytest.mark.parametrize(("count", "read"), [(256, 64), (200, 50), (60, 60)])
def test_it_reads_some_of_the_calibration_images_from_all_over_the_source(
    count: int, read: int, example: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def watch(source: ImageSource, indices: NDArray[np.int64], *arguments: object, **settings: object) -> object:
        seen.extend(indices)
        return ordered_batches(source, indices, *arguments, **settings)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr("pipeline.images.calibration_images.ordered_batches", watch)
    correct(example, example.prepared, count=count)
    chosen = calibration_indices(calibrated_on(example, count))
    assert len(chosen) == count and set(chosen) <= set(example.images.training)
    assert len(seen) == read and set(seen) <= set(chosen.tolist())
    assert max(seen) > 0.9 * chosen.max() and min(seen) == chosen.min()


@pytest.mark.parametrize(
    "profile", [X64, openvino_rules.PROFILE, tensorrt_rules.PROFILE], ids=lambda profile: profile.name
)
def test_a_run_applies_the_shipped_rows_in_order(
    profile: Profile, example: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[str] = []
    monitored = recording(profile, applied, monkeypatch)
    suited(example.teacher, monitored, Widths())
    assert tuple(applied) == names_of(profile.rewrites)
    applied.clear()
    suited(example.teacher, monitored, Widths(activations=4))
    assert tuple(applied) == (*names_of(profile.rewrites), WIDE_BRANCHES.name)


def test_first_scales_are_searched_once_for_all_that_is_made_of_a_student(
    example: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: PreparedStudent = replace(example.prepared, _first_scales={})
    first = prepared.network(corrected=False)
    searched = sum(map(len, prepared._first_scales.values()))
    assert searched == len(prepared.plan.weights)
    two = replace(prepared, plan=two_bits(example).plan)
    assert two.network().state_dict().keys() == first.state_dict().keys()
    assert sum(map(len, prepared._first_scales.values())) > searched, "another grid has scales of its own"
    other = copy.deepcopy(example.teacher.folded)
    for parameter in other.parameters():
        parameter.data.mul_(2)

    def refuse(*arguments: object) -> Tensor:
        raise AssertionError("searched again")

    monkeypatch.setattr("calibration.simulation.insert.weight_scale", refuse)
    for again in (prepared, replace(correct(example, prepared), notes=("chosen",)), replace(prepared, plan=two.plan)):
        for name, value in again.network(corrected=False).weight_grids().items():
            expected = (two if again.plan is two.plan else prepared).network(corrected=False).weight_grids()[name]
            assert torch.equal(value.scale(), expected.scale())
    with pytest.raises(AssertionError, match="searched again"):
        replace(prepared, student=replace(example.teacher, folded=other)).network()
