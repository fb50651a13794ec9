"""The chain, read from top to bottom: teacher, quantisers, distillation, artifact, validation, bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from backends.base import Backend
from calibration.errors import require_package
from pipeline.artifacts import FloatWeights, GeneratedImages, PreparedStudent
from pipeline.bundle.bundle import read_bundle, vouched_report, write_model
from pipeline.config import EngineConfig, RunConfig, ValidationConfig, check_engine
from pipeline.config.compare import CompareConfig
from pipeline.config.flag_meaning import check_bundle_meanings
from pipeline.report.comparison import ComparisonReport
from pipeline.report.schema import Report
from pipeline.setup.chosen_backend import chosen_backends, emulated_backend, prepared_for, stored_backend
from pipeline.setup.folder_lock import locked
from pipeline.setup.run_folder import RunFolder
from pipeline.setup.run_images import generated_split
from pipeline.setup.settled import float_steps
from pipeline.setup.stage_seconds import StageSeconds
from pipeline.setup.state import begin, clear, is_finished, open_run_folder, told_to_resume
from pipeline.stages.choose import choose_profile
from pipeline.stages.convert import check_loads, check_opset, convert
from pipeline.stages.distill import distil
from pipeline.stages.first_link import check_float_file
from pipeline.stages.float_student import teach_float, what_was_learned, with_weights
from pipeline.stages.imagine import imagine
from pipeline.stages.observe import corrected, prepare, suited
from pipeline.stages.post_training import quantise_after_training
from pipeline.tools.progress import Progress
from pipeline.tools.threads import compute_in, own_threads
from pipeline.validation.advice import advice, advice_on_bundle
from pipeline.validation.bundle_of_result import write_result
from pipeline.validation.evaluation import evaluation_of
from pipeline.validation.inputs import generated_material, read_inputs
from pipeline.validation.layer_by_layer import compare_bundle
from pipeline.validation.network_check import check_taught
from pipeline.validation.opening import opening
from pipeline.validation.preflight import check_machine
from pipeline.validation.validate import validate_network, validate_stored


def run(config: RunConfig, progress: Progress) -> Report:
    """Do the whole job of a configuration; the report, whose files and bundle are in `config.folder` then.

    Raises UserError for the user's mistakes; nothing half-written is left behind by one.
    """
    if config.quantisation.quantiser == "nncf":
        require_package("nncf", extra="nncf", needed_for="--quantiser nncf")
    candidates = chosen_backends(config, progress)
    if is_finished(config) and (folder := open_run_folder(config)).is_whole():
        return vouched_report(folder.bundle)
    check_machine(config)
    with locked(config.folder, progress.say):
        clear(folder := RunFolder(root=config.folder))
        open_run_folder(config)
        with told_to_resume(folder, overwrite=config.output.overwrite):
            if not is_finished(config):
                with own_threads():  # `_run` takes those of the run
                    return _run(config, candidates, folder, progress)
            folder.make_whole()  # an earlier run was killed just before
            return vouched_report(folder.bundle)


def _run(config: RunConfig, candidates: tuple[Backend, ...], folder: RunFolder, progress: Progress) -> Report:
    """The stages of a run in a folder that no other run works in.

    What lies in the folder once `begin` has been through it is this run's own, finished before it was interrupted.
    """
    asked, learning, execution = config.quantisation, config.distillation, config.execution
    trains = asked.quantiser == "faqd"
    progress = times = StageSeconds(progress)

    with progress.stage("teacher"):
        inputs = read_inputs(config, folder.root, candidates[0], trains=trains)
        # Nothing that was there has been touched until here.
        for line in begin(folder, config, inputs.identities, inputs.settled):
            progress.say(line)
        compute_in(folder.threads())
        times.keep_in(folder.seconds, resumed=config.output.resume)
    networks, material = inputs.networks, inputs.material
    teacher, student = networks.teacher, networks.student

    if material is None:
        with progress.stage("imagine"):
            if (place := folder.of("generated images")).exists():
                generated = GeneratedImages.load(place)
            else:
                generated = imagine(teacher, config.data, seed=execution.seed, progress=progress)
                generated.save(place)
            split = generated_split(generated, config.data, seed=execution.seed)
            material = generated_material(config, networks, split, trains=trains)
    lesson, shown, images = material.lesson, material.shown, material.lesson.images
    scored = inputs.scored or evaluation_of(config, images, teacher)
    notes = (*inputs.notes, *folder.remarks(), *material.notes)
    for line in (*opening(config, teacher, scored), *notes):
        progress.say(line)

    if steps := float_steps(config):
        with progress.stage("float"):
            if (place := folder.of("float student")).exists():
                weights = FloatWeights.load(place)
            else:
                checkpoint = folder.position_of_float()
                weights = teach_float(
                    student, lesson, learning, execution, steps=steps, checkpoint=checkpoint, progress=progress
                )
                weights.save(place)
                checkpoint.remove()
            notes = (*notes, remark := what_was_learned(student, teacher, weights.agreement, steps=steps))
            progress.say(remark)
            student = with_weights(student, weights.tensors)
            del weights  # of which the student has copies
            check_taught(student, shown, asked)

    student = suited(student, candidates[0].profile, asked.widths, check=shown)
    if asked.quantiser == "nncf":
        with progress.stage("quantise"):  # short enough to be done again by a resumed run
            quantised = quantise_after_training(student, teacher, candidates[0], images, asked, progress=progress)
    else:
        with progress.stage("observe"):
            if (place := folder.of("calibration")).exists():
                prepared = PreparedStudent.load(place, student, asked)
                check_opset(prepared.plan, asked.opset)
                backend = prepared_for(candidates, prepared.plan)
            else:
                prepared = prepare(student, candidates[0], images, asked, progress=progress)
                prepared = choose_profile(prepared, candidates, teacher, images, corrected)
                backend = prepared_for(candidates, prepared.plan)
                check_loads(prepared, teacher, backend)
                prepared.save(place)
        with progress.stage("distil"):
            files = folder.training(learning.generations)
            trained = distil(prepared, lesson, learning, execution, files=files, progress=progress)
        with progress.stage("convert"):
            quantised = convert(prepared, trained.network, teacher, backend, distillation=trained.distillation)
    float_model = quantised.compiled.float_model
    check_float_file(float_model, teacher, shown, batch=asked.static_batch)
    write_model(folder.float_of_next_bundle, float_model)

    with progress.stage("validate"):
        notes = (*notes, *quantised.notes)
        validated = validate_network(config, student, lesson, quantised, scored, progress, notes=notes)
    judged = validated.report
    hints = advice(config, judged, bundle=folder.bundle, variant=quantised.plan.variant)
    seconds = {name: round(value, 3) for name, value in times.seconds().items()}
    report = replace(judged, seconds=seconds, notes=(*judged.notes, *hints), run=folder.identity().run)
    # Where the bundle is, the run is finished; what belongs beside it follows.
    write_result(
        folder.bundle,
        quantised=quantised,
        validated=replace(validated, report=report),
        teacher=teacher,
        student=student,
        scored=scored,
        overwrite=config.output.overwrite or config.output.resume,
    )
    folder.make_whole()
    return report


def validate_bundle(
    path: Path,
    config: ValidationConfig,
    engine: EngineConfig,
    progress: Progress,
    *,
    emulate: str | None = None,
    key: Path | None = None,
) -> Report:
    """Validate a finished bundle, signed by the key of a file, on this machine's runtime, or on an emulated processor.

    Nothing is written but the kernel timings of an engine.
    """
    with progress.stage("validate"):
        bundle = read_bundle(path, key=key)
        check_engine(engine, backend=bundle.backend, batch=config.batch)
        check_bundle_meanings(config, engine, backend=bundle.backend, emulated=emulate)
        if emulate is not None:
            report = validate_stored(bundle, config, emulated_backend(bundle, emulate), progress)
            how = f"the runtime ran on an emulated {emulate}: its integers are the device's, its times are not"
            return replace(report, notes=(*report.notes, how, *advice_on_bundle(path, report, bundle.report)))
        backend = stored_backend(bundle, engine, batch=config.batch, progress=progress)
        report = validate_stored(bundle, config, backend, progress)
        return replace(report, notes=(*report.notes, *advice_on_bundle(path, report, bundle.report)))


def compare(path: Path, config: CompareConfig, progress: Progress, *, key: Path | None = None) -> ComparisonReport:
    """Compare a finished bundle's oracle with its runtime, or with another model, tensor by tensor."""
    with progress.stage("compare"):
        return compare_bundle(read_bundle(path, key=key), config, progress)
