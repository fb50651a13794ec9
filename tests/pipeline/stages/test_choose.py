"""The choice among profiles: the fastest, unless it is worse beyond chance."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from backends import BACKENDS
from backends.facts.onnxruntime_rules import X64, X64_PRECISE, X64_WITHOUT_VNNI
from backends.onnxruntime.backend import OnnxRuntime
from backends.placement.place import place
from pipeline.artifacts import PreparedStudent
from pipeline.config import QuantisationConfig
from pipeline.images.split_images import SplitImages
from pipeline.stages.choose import choose_profile
from pipeline.tools.kept import Kept

EIGHT_BITS = QuantisationConfig(bits=8)


def choose(example: SimpleNamespace, *profiles: Any, **changes: Any) -> PreparedStudent:
    """The student chosen for profiles in that order, of which the first one was prepared."""
    asked = changes.pop("asked", EIGHT_BITS)
    plan = place(example.prepared.folded, profiles[0], asked.widths)
    prepared = replace(example.prepared, plan=plan, quantisation=asked)
    backend = changes.pop("backend", OnnxRuntime)
    candidates = [backend(profile) for profile in profiles]
    teacher = replace(example.teacher, outputs=changes.pop("outputs", example.teacher.outputs))
    corrected = changes.pop("corrected", lambda student, images: student)
    images = replace(example.images, **changes)
    return choose_profile(prepared, candidates, teacher, images, corrected)


def test_an_equal_slower_profile_is_not_taken(example: SimpleNamespace) -> None:
    chosen = choose(example, X64_WITHOUT_VNNI, X64_PRECISE)

    assert chosen.plan.variant == "x86-avx2-limited"
    assert {placement.grid.limit for placement in chosen.plan.weights} == {63}
    assert (
        "x86-avx2-limited is taken" in chosen.notes[0]
        and f"on {len(example.images.held_out)} held-out images: x86-avx2-limited" in chosen.notes[0]
    )


def test_what_was_measured_before_weights_are_rounded_is_called_so(example: SimpleNamespace) -> None:
    (note,) = choose(example, X64_WITHOUT_VNNI, X64_PRECISE).notes
    assert note.startswith("calibrated only, decisions like the teacher's on ")
    (note,) = choose(example, X64_WITHOUT_VNNI, X64_PRECISE, asked=QuantisationConfig(bits=4)).notes
    assert note.startswith("calibrated, weights rounded to the nearest integers, decisions like the teacher's on ")
    nearest = QuantisationConfig(bits=4, rounding="nearest")
    assert choose(example, X64_WITHOUT_VNNI, X64_PRECISE, asked=nearest).notes[0].startswith("calibrated only, ")


def test_the_oracle_is_not_said_to_be_fast(example: SimpleNamespace) -> None:
    chosen = choose(example, X64_WITHOUT_VNNI, X64_PRECISE, backend=BACKENDS["reference"].make)
    assert chosen.notes[0].endswith("x86-avx2-limited is taken: the first, as none is better beyond chance")
    ruined = replace(X64_WITHOUT_VNNI, weight_limit=1)
    chosen = choose(example, ruined, X64_PRECISE, backend=BACKENDS["reference"].make)
    assert chosen.notes[0].endswith("x86-avx2-precise is taken: better beyond chance")


def test_a_profile_that_ruins_the_weights_is_left(example: SimpleNamespace, tmp_path: Path) -> None:
    chosen = choose(example, replace(X64_WITHOUT_VNNI, weight_limit=1), X64_PRECISE)

    assert chosen.plan.variant == "x86-avx2-precise"
    assert {placement.grid.limit for placement in chosen.plan.weights} == {None}
    assert "x86-avx2-precise is taken: better beyond chance" in chosen.notes[0]
    assert chosen.ranges == example.prepared.ranges
    chosen.save(Kept(tmp_path / "prepared.json"))
    assert PreparedStudent.load(Kept(tmp_path / "prepared.json"), chosen.student, EIGHT_BITS).notes == chosen.notes


def test_a_difference_of_a_few_images_is_chance(example: SimpleNamespace) -> None:
    ruined = replace(X64_WITHOUT_VNNI, weight_limit=1)
    few = example.images.held_out[:1]
    chosen = choose(example, ruined, X64_PRECISE, held_out=np.array(few))
    assert chosen.plan.variant == "x86-avx2-limited"
    assert "on 1 held-out image: x86-avx2-limited" in chosen.notes[0]


def test_outputs_of_values_are_judged_by_their_squares(example: SimpleNamespace) -> None:
    values = (replace(example.teacher.outputs[0], holds="values"),)
    ruined = replace(X64_WITHOUT_VNNI, weight_limit=1)
    chosen = choose(example, ruined, X64_PRECISE, outputs=values)
    assert chosen.plan.variant == "x86-avx2-precise" and "mean squared difference" in chosen.notes[0]


def test_an_output_of_one_number_per_image_is_judged_by_its_squares(example: SimpleNamespace) -> None:
    graph = copy.deepcopy(example.prepared.folded)
    end = graph.graph.output_node()
    (logits,) = end.args[0]
    with graph.graph.inserting_before(end):
        first = graph.graph.call_function(torch.ops.aten.select.int, (logits, 1, 0))
    first.meta["val"], end.args = logits.meta["val"][:, 0], ((first,),)
    graph.recompile()
    teacher = replace(example.teacher, folded=graph, outputs=(replace(example.teacher.outputs[0], holds="values"),))
    one = SimpleNamespace(teacher=teacher, images=example.images, prepared=replace(example.prepared, student=teacher))

    chosen = choose(one, replace(X64_WITHOUT_VNNI, weight_limit=1), X64_PRECISE)
    assert chosen.plan.variant == "x86-avx2-precise" and "mean squared difference" in chosen.notes[0]


def test_one_profile_is_no_choice(example: SimpleNamespace) -> None:
    chosen = choose(example, X64)
    assert chosen.notes == () and chosen.plan.variant == "x86-vnni"


def test_candidates_are_judged_as_training_would_begin_with_them(example: SimpleNamespace) -> None:
    def corrected(student: PreparedStudent, images: SplitImages) -> PreparedStudent:
        """What ruins the student of one profile alone."""
        assert len(images.training) == len(example.images.training)
        if student.plan.variant != "x86-avx2-limited":
            return student
        scales = {name: replace(chosen, scale=chosen.scale * 100) for name, chosen in student.ranges.items()}
        return replace(student, ranges=scales)

    chosen = choose(example, X64_WITHOUT_VNNI, X64_PRECISE, corrected=corrected)
    assert chosen.plan.variant == "x86-avx2-precise"
    alone = choose(example, X64_WITHOUT_VNNI, corrected=corrected)
    assert alone.ranges != example.prepared.ranges
