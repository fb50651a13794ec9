"""The chain, read from top to bottom: teacher, quantisers, distillation, artifact, validation, bundle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from backends.base import Backend
from calibration.errors import require_package
from calibration.simulation.correction import Corrections
from pipeline.artifacts import Lesson, Network, PreparedStudent, QuantisedStudent
from pipeline.bundle.bundle import read_bundle, vouched_report, write_model
from pipeline.config import EngineConfig, RunConfig, ValidationConfig, check_engine
from pipeline.config.compare import CompareConfig
from pipeline.config.flag_meaning import check_bundle_meanings
from pipeline.report.comparison import ComparisonReport
from pipeline.report.course import StepName
from pipeline.report.schema import Report
from pipeline.setup.calibration import calibrated
from pipeline.setup.chosen_backend import chosen_backends, emulated_backend, prepared_for, stored_backend
from pipeline.setup.folder_lock import locked
from pipeline.setup.left_in_folder import how_it_came_about, is_whole, make_whole
from pipeline.setup.networks import declared_by, networks_of
from pipeline.setup.run_folder import RunFolder
from pipeline.setup.run_images import generated_split, images_named
from pipeline.setup.settled import float_steps, settled_by_inputs
from pipeline.setup.stage_seconds import StageSeconds
from pipeline.setup.state import begin, clear, is_finished, open_run_folder
from pipeline.setup.told_to_resume import told_to_resume
from pipeline.stages.convert import convert, convert_untrained
from pipeline.stages.distill import distil
from pipeline.stages.first_link import check_float_file
from pipeline.stages.float_student import teach_float, what_was_learned, with_weights
from pipeline.stages.imagine import imagine
from pipeline.stages.observe import suited
from pipeline.stages.post_training import quantise_after_training
from pipeline.stages.reconstruct import reconstruct
from pipeline.tools.kept import Kept
from pipeline.tools.progress import Progress
from pipeline.tools.threads import compute_in, own_threads
from pipeline.validation.advice import advice_on_bundle
from pipeline.validation.bundle_of_result import write_result
from pipeline.validation.cheapest import Candidate, cheapest, check_goal, goal_words
from pipeline.validation.evaluation import Scored
from pipeline.validation.gates import check_output_names
from pipeline.validation.inputs import Inputs, Material
from pipeline.validation.layer_by_layer import compare_bundle
from pipeline.validation.network_check import check_networks, check_taught, checked_on_images, objective_of
from pipeline.validation.opening import opening
from pipeline.validation.preflight import check_learnable, check_machine, check_room, identities, scored_on
from pipeline.validation.subject import Asked
from pipeline.validation.teacher_check import check_teacher
from pipeline.validation.validate import Validated, validate_network, validate_stored


def run(config: RunConfig, progress: Progress) -> Report:
    """Do the whole job of a configuration; the report, whose files and bundle are in `config.folder` then.

    Raises UserError for the user's mistakes; nothing half-written is left behind by one.
    """
    if config.quantisation.quantiser == "nncf":
        require_package("nncf", extra="nncf", needed_for="--quantiser nncf")
    limits, engine = config.validation, config.engine
    candidates = chosen_backends(config.quantisation, engine, batch=limits.batch, progress=progress)
    if is_finished(config) and is_whole(folder := open_run_folder(config)):
        return vouched_report(folder.bundle)
    check_machine((*config.teacher.weights, config.student.weights), limits, engine, config.execution)
    with locked(config.folder, progress.say):
        clear(folder := RunFolder(root=config.folder))
        open_run_folder(config)
        with told_to_resume(folder, overwrite=config.output.overwrite):
            if not is_finished(config):
                with own_threads():  # `_run` takes those of the run
                    return _run(config, candidates, folder, progress)
            make_whole(folder)  # an earlier run was killed just before
            return vouched_report(folder.bundle)


def _run(config: RunConfig, candidates: tuple[Backend, ...], folder: RunFolder, progress: Progress) -> Report:
    """The stages of a run in a folder that no other run works in.

    What lies in the folder once `begin` has been through it is this run's own, finished before it was interrupted.
    """
    asked, learning, execution = config.grids, config.learning, config.execution
    seed, steps = execution.seed, float_steps(config.student, learning)
    progress = times = StageSeconds(progress)

    with progress.stage("teacher"):
        inputs = _read(config, candidates[0], folder.root)
        # Nothing that was there has been touched until here.
        _say(progress, begin(folder, config, inputs.identities, inputs.settled))
        compute_in(folder.recorded().threads)
        times.keep_in(folder.seconds, resumed=config.output.resume)
    networks, material, scored = inputs.networks, inputs.material, inputs.scored
    teacher, student = networks.teacher, networks.student

    if material is None:
        with progress.stage("imagine"):
            place = folder.of("generated images")
            generated = imagine(teacher, config.data, seed=seed, place=place, progress=progress)
            images = generated_split(generated, config.data, seed=seed)
            shown = checked_on_images(networks, images, asked, seed=seed)
            material = Material.of(images, shown, networks, learning if asked.trains or steps else None)
    lesson, shown, images = material.lesson, material.shown, material.lesson.images
    scored = scored or Scored.held_out(images)
    notes = (*inputs.notes, *how_it_came_about(folder), *material.notes)
    _say(progress, (*opening(learning, config.validation, teacher, scored), *notes))
    if config.strategy.stops_early:
        progress.say(goal_words(config.validation, teacher.outputs, scored))

    if steps:
        with progress.stage("float"):
            files = folder.training_of_float()
            weights = teach_float(student, lesson, learning, execution, steps=steps, files=files, progress=progress)
            notes = (*notes, remark := what_was_learned(student, teacher, weights.agreement, steps=steps))
            progress.say(remark)
            student = with_weights(student, weights.tensors)
            del weights  # of which the student has copies
            check_taught(student, shown, asked)
    student = suited(student, candidates[0].profile, asked.widths, check=shown)

    def judged(quantised: QuantisedStudent) -> Validated:
        check_float_file(quantised.compiled.float_model, teacher, shown, batch=asked.static_batch)
        write_model(folder.float_of_next_bundle, quantised.compiled.float_model)
        said = (*notes, *quantised.notes)
        with times.stage("validate"):
            return validate_network(
                student, lesson, quantised, scored, _asked(config, folder.bundle), times, notes=said
            )

    if not asked.trains:
        with progress.stage("quantise"):  # short enough to be done again by a resumed run
            quantised = quantise_after_training(student, teacher, candidates[0], images, asked, progress=progress)
        validated = judged(quantised)
    else:
        students = _students(config, student, lesson, candidates, folder, times)
        if config.strategy.stops_early:
            place, run = Kept(folder.measured), folder.identity().run
            quantised, validated = cheapest(students, judged, place=place, run=run, progress=progress)
        else:
            (only,) = students
            quantised, validated = only.quantised, judged(only.quantised)
    validated = validated.of_run(folder.identity().run, seconds=times.seconds())
    # Where the bundle is, the run is finished; what belongs beside it follows.
    replaced = config.output.overwrite or config.output.resume
    write_result(folder.bundle, quantised, validated, teacher, student, scored, overwrite=replaced)
    make_whole(folder)
    return validated.report


def _students(
    config: RunConfig,
    student: Network,
    lesson: Lesson,
    candidates: tuple[Backend, ...],
    folder: RunFolder,
    progress: StageSeconds,
) -> Iterator[Candidate]:
    """The quantised forms of a float student, from the cheapest on, each made when it is asked for.

    The last alone where the run is not to stop at its goal.
    """
    asked, learning, execution = config.grids, config.learning, config.execution
    teacher, images, early = lesson.teacher, lesson.images, config.strategy.stops_early

    def untrained(name: StepName, prepared: PreparedStudent, *, stage: str | None) -> Candidate:
        seconds = None if stage is None else progress.seconds()[stage]
        with progress.stage("convert"):
            return Candidate(name=name, quantised=convert_untrained(prepared, teacher, backend), seconds=seconds)

    with progress.stage("observe"):
        place = folder.of("calibration")
        prepared = calibrated(student, candidates, teacher, images, asked, place=place, progress=progress)
        backend = prepared_for(candidates, prepared.plan)
    if early:
        yield untrained("calibrated", replace(prepared, corrections=Corrections()), stage="observe")
        yield untrained("corrected", prepared, stage=None)
    if asked.resolved_rounding != "nearest":
        with progress.stage("reconstruct"):
            place = folder.of("reconstruction")
            prepared = reconstruct(prepared, images, seed=execution.seed, place=place, progress=progress)
        if early:
            yield untrained("reconstructed", prepared, stage="reconstruct")
    if early and learning.steps == 0:
        return
    with progress.stage("distil"):
        files = folder.training(learning.generations)
        trained = distil(prepared, lesson, learning, execution, files=files, progress=progress)
    seconds = progress.seconds()["distil"]
    with progress.stage("convert"):
        quantised = convert(prepared, trained.network, teacher, backend, distillation=trained.distillation)
    yield Candidate(name="distilled", quantised=quantised, seconds=seconds)


def _read(config: RunConfig, backend: Backend, root: Path) -> Inputs:
    """All that a run is made from, read and checked: networks and images, the disk and what is asked of both.

    `backend`: the fastest that is exact on the run's target; `root`: folder of its results. Nothing is written.

    Raises UserError for whatever is wrong with them.
    """
    asked, learning, limits, seed = config.grids, config.learning, config.validation, config.execution.seed
    steps, to_score = float_steps(config.student, learning), config.evaluation_source
    declared = declared_by(config.teacher, asked, limits.classes)
    networks = networks_of(config.teacher, config.student, config.preprocessing, declared)
    teacher = networks.teacher
    check_output_names(limits, [output.name for output in teacher.outputs], source=teacher.source)
    if config.strategy.stops_early:
        check_goal(limits, teacher.outputs)
    check_networks(networks, backend, asked)
    objective = objective_of(networks, learning, seed=seed) if asked.trains else None
    images = images_named(config.data, teacher, labelled=learning.label_weight is not None, seed=seed)
    if images is not None:
        check_learnable(images, teacher)
    scored = scored_on(to_score, images, teacher)
    check_room(root, networks, asked, learning, in_float=steps > 0)
    shown = None if images is None else checked_on_images(networks, images, asked, seed=seed)
    evaluation = None if scored is None else scored.evaluation
    warnings = check_teacher(teacher, images, evaluation, data=config.data.source, eval_data=to_score)
    material, settled = None, dict[str, Any]()
    if images is not None and shown is not None:
        material = Material.of(images, shown, networks, learning if asked.trains or steps else None)
        graph = networks.student.folded
        settled = settled_by_inputs(config.data, learning, asked, config.execution, material.lesson, graph, objective)
    return Inputs(
        networks=networks,
        material=material,
        scored=scored,
        identities=identities(networks, images),
        settled=settled,
        notes=(*warnings, *networks.notes),
    )


def _asked(config: RunConfig, bundle: Path) -> Asked:
    """What the result of a run is judged by."""
    return Asked(
        quantisation=config.grids,
        learning=config.learning,
        limits=config.validation,
        seed=config.execution.seed,
        student=config.student.source,
        bundle=bundle,
    )


def _say(progress: Progress, lines: Sequence[str]) -> None:
    for line in lines:
        progress.say(line)


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
        how: tuple[str, ...] = ()
        if emulate is None:
            backend = stored_backend(bundle, engine, batch=config.batch, progress=progress)
        else:
            backend = emulated_backend(bundle, emulate)
            how = (f"the runtime ran on an emulated {emulate}: its integers are the device's, its times are not",)
        report = validate_stored(bundle, config, backend, progress)
        return replace(report, notes=(*report.notes, *how, *advice_on_bundle(path, report, bundle.report)))


def compare(path: Path, config: CompareConfig, progress: Progress, *, key: Path | None = None) -> ComparisonReport:
    """Compare a finished bundle's oracle with its runtime, or with another model, tensor by tensor."""
    with progress.stage("compare"):
        return compare_bundle(read_bundle(path, key=key), config, progress)
