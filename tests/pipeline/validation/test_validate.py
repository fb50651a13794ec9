"""The validation alone: of a quantised student that no run has made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from backends import backends_for
from calibration.errors import UserError
from pipeline.artifacts import Network, QuantisedStudent
from pipeline.bundle.golden import MOST_IMAGES
from pipeline.config import EngineConfig, QuantisationConfig, ValidationConfig
from pipeline.config.flag_meaning import check_bundle_meanings
from pipeline.images.data import open_evaluation, open_images
from pipeline.images.split_images import SplitImages
from pipeline.report.schema import Report, Sample
from pipeline.stages.convert import compile_model
from pipeline.stages.observe import prepare, suited
from pipeline.stages.teacher import load_network
from pipeline.validation.evaluation import Scored, drawn_for_parity
from pipeline.validation.validate import validate_student

pytestmark = pytest.mark.usefixtures("all_digits_narrow")


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
    assert report.sample is not None and report.sample.simulated is not None, "what was never trained is simulated too"
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


def test_simulation_and_oracle_are_held_to_the_runtime_on_a_sample(made: tuple[QuantisedStudent, Network]) -> None:
    quantised, teacher = made
    evaluation = open_evaluation("digits", teacher.preprocessing)
    scored = Scored(evaluation=evaluation, indices=np.arange(40))
    whole = validate_student(quantised, teacher, scored).report
    assert whole.sample is None and "sample" not in whole.to_json()

    report = validate_student(quantised, teacher, scored, ValidationConfig(parity_images=10)).report
    drawn = drawn_for_parity(scored.indices, count=10, seed=0)
    assert drawn is not None
    alone = validate_student(quantised, teacher, Scored(evaluation=evaluation, indices=drawn)).report
    assert report.accuracy == replace(whole.accuracy, simulated=None, oracle=None), "the rest is of all images"
    columns = {name: getattr(alone.accuracy, name) for name in ("images", "teacher", "simulated", "oracle", "runtime")}
    assert report.sample == Sample(calibrated=None, **columns), "every column of the sample is what it gives alone"
    assert report.parity == alone.parity and report.parity.exact_fraction == 1.0
    (output,), (of_all,), (of_sample,) = report.outputs, whole.outputs, alone.outputs
    assert (output.teacher, output.runtime, output.mean_iou) == (of_all.teacher, of_all.runtime, of_all.mean_iou)
    assert output.oracle is output.simulated is None
    for name in ("oracle_vs_simulated", "runtime_vs_oracle", "exact_fraction", "max_difference"):
        assert getattr(output, name) == getattr(of_sample, name)
    gates = [{gate.name: (gate.value, gate.passed) for gate in judged.gates} for judged in (report, whole)]
    assert gates[0] == gates[1]
    assert any("scored on all 40 images" in note and "on 10 of them" in note for note in report.notes)
    assert Report.from_json(report.to_json()) == report
    lines = str(report).splitlines()
    heading = next(index for index, line in enumerate(lines) if line.startswith("40 images"))
    assert lines[heading + 1].count("%") == 2 and lines[heading + 2].startswith("10 of these"), lines
    assert lines[heading + 2].count("%") == 4 and "oracle, 10 images" in report._repr_html_()


def test_a_difference_on_an_image_of_the_sample_fails_its_gate(made: tuple[QuantisedStudent, Network]) -> None:
    quantised, teacher = made
    assert quantised.prepared is not None
    other = quantised.prepared.network().eval()
    other.register_forward_hook(lambda module, images, outputs: [1.01 * value for value in outputs])
    scored = Scored(evaluation=open_evaluation("digits", teacher.preprocessing), indices=np.arange(20))
    limits = ValidationConfig(parity_images=3)
    report = validate_student(replace(quantised, simulated=other), teacher, scored, limits).report
    assert [gate.name for gate in report.gates if gate.passed is False] == ["simulation"]


def test_how_many_images_are_compared_is_checked() -> None:
    assert ValidationConfig(parity_images="all").parity_images == "all"
    with pytest.raises(UserError, match="--parity-images 0: must be at least 1, or all"):
        ValidationConfig(parity_images=0)
    with pytest.raises(UserError, match="--parity-images 5 has no meaning without --eval-data: the bundle's golden"):
        check_bundle_meanings(ValidationConfig(parity_images=5), EngineConfig(), backend="onnxruntime")
    named = ValidationConfig(parity_images=5, eval_data="digits")
    check_bundle_meanings(named, EngineConfig(), backend="onnxruntime")


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
