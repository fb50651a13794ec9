"""The validation alone: of a quantised student that no run has made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from backends import backends_for
from pipeline.artifacts import Network, QuantisedStudent
from pipeline.bundle.golden import MOST_IMAGES
from pipeline.config import QuantisationConfig, ValidationConfig
from pipeline.images.data import open_evaluation, open_images
from pipeline.images.split_images import SplitImages
from pipeline.stages.convert import compile_model
from pipeline.stages.observe import prepare, suited
from pipeline.stages.teacher import load_network
from pipeline.validation.evaluation import Scored
from pipeline.validation.validate import validate_student


@pytest.fixture(scope="module")
def made() -> tuple[QuantisedStudent, Network]:
    """The embedded digits, calibrated and converted without a run."""
    teacher, backend = load_network("digits"), backends_for("onnxruntime", None)[0]
    asked = QuantisationConfig(range_method="mse")
    source = open_images("digits", teacher.preprocessing)
    images = SplitImages(source=source, training=np.arange(64), held_out=np.arange(64, 96))
    prepared = prepare(suited(teacher, backend.profile, asked.widths), backend, images, asked)
    compiled = compile_model(prepared, prepared.network(), teacher, backend)
    return QuantisedStudent(backend=backend, compiled=compiled, plan=prepared.plan, prepared=prepared), teacher


def test_student_teacher_and_images_suffice(made: tuple[QuantisedStudent, Network]) -> None:
    quantised, teacher = made
    validated = validate_student(quantised, teacher, Scored.whole(open_evaluation("digits", teacher.preprocessing)))
    report = validated.report
    assert report.accuracy.metric == "top1" and report.accuracy.runtime is not None and report.accuracy.runtime > 0.9
    assert report.accuracy.simulated is not None, "what was never trained is simulated all the same"
    assert report.parity.exact_fraction == 1.0 and report.kernels.integer == len(report.layers)
    assert all(layer.sqnr_db is not None and layer.sqnr_db > 10 for layer in report.layers)
    assert (report.teacher, report.student, report.bits.weights, report.quantiser) == ("digits", "digits", 8, "faqd")
    assert report.latency.quantised_ms is not None and report.distillation is None and report.data is None
    assert len(validated.golden.inputs) == MOST_IMAGES and "check.py" in validated.device_files


def test_limits_and_a_part_of_the_images(made: tuple[QuantisedStudent, Network]) -> None:
    quantised, teacher = made
    scored = Scored(evaluation=open_evaluation("digits", teacher.preprocessing), indices=np.arange(20))
    report = validate_student(quantised, teacher, scored, ValidationConfig(min_speedup=1000.0)).report
    assert report.accuracy.images == 20 and report.exit_status == 1
    assert [gate.name for gate in report.gates if gate.passed is False] == ["min-speedup"]


def test_numbers_that_the_simulation_does_not_give_fail_their_gate_though_every_answer_is_alike(
    made: tuple[QuantisedStudent, Network],
) -> None:
    quantised, teacher = made
    assert quantised.prepared is not None
    scored = Scored(evaluation=open_evaluation("digits", teacher.preprocessing), indices=np.arange(20))
    report = validate_student(quantised, teacher, scored).report
    (gate,) = [gate for gate in report.gates if gate.name == "simulation"]
    assert report.outputs[0].simulated_difference == gate.value == 0.0 and gate.passed

    other = quantised.prepared.network().eval()
    other.register_forward_hook(lambda module, images, outputs: [1.01 * value for value in outputs])
    report = validate_student(replace(quantised, simulated=other), teacher, scored).report
    assert report.outputs[0].oracle_vs_simulated == 1.0, "no decision is another"
    assert report.outputs[0].simulated_difference == pytest.approx(0.01, rel=1e-3)
    (gate,) = [gate for gate in report.gates if gate.passed is False]
    assert (gate.name, gate.value) == ("simulation", report.outputs[0].simulated_difference)
    assert report.exit_status == 1
