"""The chain, read from top to bottom: teacher, quantisers, distillation, artifact, validation, bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from backends.base import Backend
from pipeline.artifacts import QuantisedStudent
from pipeline.bundle.bundle import REPORT, read_bundle, write_model
from pipeline.config import EngineConfig, RunConfig, ValidationConfig, check_engine
from pipeline.config.compare import CompareConfig
from pipeline.config.meaning import check_bundle_meanings
from pipeline.report.comparison import ComparisonReport
from pipeline.report.schema import Report, read_report
from pipeline.setup.chosen_backend import chosen_backends, emulated_backend, stored_backend
from pipeline.setup.folder_lock import locked
from pipeline.setup.job import Job
from pipeline.setup.learning import taught_in_float
from pipeline.setup.run_folder import RunFolder
from pipeline.setup.run_images import imagined
from pipeline.setup.settled import float_steps
from pipeline.setup.stage_seconds import StageSeconds
from pipeline.setup.state import begin, clear, is_finished, open_run_folder, told_to_resume
from pipeline.setup.ways import QUANTISERS, Quantiser
from pipeline.stages.first_link import check_float_file
from pipeline.stages.observe import suited
from pipeline.tools.progress import Progress
from pipeline.validation.advice import advice, advice_on_bundle
from pipeline.validation.bundle_of_result import write_result
from pipeline.validation.evaluation import Scored, evaluation_of
from pipeline.validation.inputs import generated_material, read_inputs
from pipeline.validation.layer_by_layer import compare_bundle
from pipeline.validation.network_check import check_taught
from pipeline.validation.opening import opening
from pipeline.validation.preflight import check_machine
from pipeline.validation.validate import Validated, validate_network, validate_stored


def run(config: RunConfig, progress: Progress) -> Report:
    """Do the whole job of a configuration; the report, whose files and bundle are in `config.folder` then.

    Raises UserError for the user's mistakes; nothing half-written is left behind by one.
    """
    quantiser = QUANTISERS[config.quantisation.quantiser]
    quantiser.require()
    candidates = chosen_backends(config, progress)
    if is_finished(config) and (folder := open_run_folder(config)).is_whole():
        return read_report(folder.bundle / REPORT)
    check_machine(config)
    with locked(config.folder, progress.say):
        clear(folder := RunFolder(root=config.folder))
        open_run_folder(config)
        with told_to_resume(folder, overwrite=config.output.overwrite):
            if not is_finished(config):
                return _run(config, quantiser, candidates, folder, progress)
            folder.make_whole()  # an earlier run was killed just before
            return read_report(folder.bundle / REPORT)


def _run(
    config: RunConfig,
    quantiser: Quantiser,
    candidates: tuple[Backend, ...],
    folder: RunFolder,
    progress: Progress,
) -> Report:
    """The stages of a run in a folder that no other run works in."""
    progress = times = StageSeconds(progress)
    with progress.stage("teacher"):
        inputs = read_inputs(config, folder.root, candidates[0], trains=quantiser.trains)
        networks, material = inputs.networks, inputs.material
        # Nothing that was there has been touched until here.
        for line in begin(folder, config, inputs.identities, inputs.settled):
            progress.say(line)
        times.keep_in(folder.seconds, resumed=config.output.resume)
    if material is None:
        with progress.stage("imagine"):
            images = imagined(config, folder, networks.teacher, progress)
            material = generated_material(config, networks, images, trains=quantiser.trains)
    notes = (*inputs.notes, *material.notes)
    lesson, shown, student = material.lesson, material.shown, networks.student
    scored = inputs.scored or evaluation_of(config, lesson.images, networks.teacher)
    for line in (*opening(config, networks.teacher, scored), *notes):
        progress.say(line)
    job = Job(config=config, folder=folder, candidates=candidates, student=student, lesson=lesson, progress=progress)
    if steps := float_steps(config):
        with progress.stage("float"):
            student, remark = taught_in_float(job, steps)
            check_taught(config, student, shown)
            notes = (*notes, remark)
    student = suited(student, candidates[0].profile, config.quantisation.widths, check=shown)
    job = replace(job, student=student)
    quantised = quantiser.quantise(job)
    float_model = quantised.compiled.float_model
    check_float_file(float_model, networks.teacher, shown, batch=config.quantisation.static_batch)
    write_model(folder.float_of_next_bundle, float_model)
    with progress.stage("validate"):
        notes = (*notes, *quantised.notes)
        validated = validate_network(config, student, lesson, quantised, scored, progress, notes=notes)
    return _write_results(job, quantised, validated, scored, times.seconds())


def _write_results(
    job: Job, quantised: QuantisedStudent, validated: Validated, scored: Scored, seconds: Mapping[str, float]
) -> Report:
    """Write bundle and report, which has the stages' times and advice now."""
    config, folder = job.config, job.folder
    report = replace(
        validated.report,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        notes=(
            *validated.report.notes,
            *advice(config, validated.report, bundle=folder.bundle, variant=quantised.plan.variant),
        ),
        run=folder.identity().run,
    )
    # Where the bundle is, the run is finished; what belongs beside it follows.
    write_result(
        folder.bundle,
        quantised=quantised,
        validated=validated,
        report=report,
        teacher=job.lesson.teacher,
        student=job.student,
        scored=scored,
        overwrite=config.output.overwrite or config.output.resume,
    )
    folder.make_whole()
    return report


def validate_bundle(
    path: Path, config: ValidationConfig, engine: EngineConfig, progress: Progress, *, emulate: str | None = None
) -> Report:
    """Validate a finished bundle on this machine's runtime, or on an emulated processor.

    Nothing is written but the kernel timings of an engine.
    """
    with progress.stage("validate"):
        bundle = read_bundle(path)
        check_engine(engine, backend=bundle.backend, batch=config.batch)
        check_bundle_meanings(config, engine, backend=bundle.backend, emulated=emulate)
        if emulate is not None:
            report = validate_stored(bundle, config, emulated_backend(bundle, emulate), progress)
            how = f"the runtime ran on an emulated {emulate}: its integers are the device's, its times are not"
            return replace(report, notes=(*report.notes, how, *advice_on_bundle(path, report, bundle.report)))
        backend = stored_backend(bundle, engine, batch=config.batch, progress=progress)
        report = validate_stored(bundle, config, backend, progress)
        return replace(report, notes=(*report.notes, *advice_on_bundle(path, report, bundle.report)))


def compare(path: Path, config: CompareConfig, progress: Progress) -> ComparisonReport:
    """Compare a finished bundle's oracle with its runtime, or with another model, tensor by tensor."""
    with progress.stage("compare"):
        return compare_bundle(read_bundle(path), config, progress)
