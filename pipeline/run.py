"""The chain, read from top to bottom: teacher, quantisers, distillation, artifact, validation, bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from backends.base import Backend
from backends.placement.place import place
from calibration.errors import UserError
from pipeline.artifacts import FLOAT_MODEL, Network
from pipeline.bundle.bundle import digest_of, read_bundle, write_bundle, write_model
from pipeline.config import NO_DATA, EngineConfig, RunConfig, ValidationConfig, check_engine
from pipeline.config.compare import CompareConfig
from pipeline.distillation.build import build_objective
from pipeline.images.probe_images import probe_images
from pipeline.images.unlabelled import UnlabelledImages
from pipeline.networks.outputs.class_order import named_outputs
from pipeline.networks.outputs.meaning import Output
from pipeline.report.comparison import ComparisonReport
from pipeline.report.files import write_report
from pipeline.report.schema import Report, read_report
from pipeline.setup.chosen_backend import chosen_backends, emulated_backend, stored_backend
from pipeline.setup.folder_lock import locked
from pipeline.setup.learning import objective_config, taught_in_float, widths
from pipeline.setup.networks import co_teachers_of, networks_of
from pipeline.setup.run_images import images_of, imagined, mirrored_targets
from pipeline.setup.settled import float_steps, settled_by_inputs
from pipeline.setup.stage_seconds import StageSeconds
from pipeline.setup.state import RunFolder, begin, clear, is_finished, open_folder, told_to_resume
from pipeline.setup.ways import QUANTISERS, Job, Quantiser
from pipeline.stages.convert import check_convertible, float_counterpart
from pipeline.stages.first_link import check_float_file, check_on_images, some_images
from pipeline.stages.imagine import check_imaginable
from pipeline.stages.observe import suited
from pipeline.stages.teacher import other_size
from pipeline.tools.progress import Progress
from pipeline.validation.advice import advice, advice_on_bundle
from pipeline.validation.evaluation import Scored
from pipeline.validation.gates import check_output_names, least_parity
from pipeline.validation.layer_by_layer import compare_bundle
from pipeline.validation.other_size import check_other_size
from pipeline.validation.preflight import check_inputs, check_machine, identities
from pipeline.validation.teacher_check import check_teacher
from pipeline.validation.validate import validate_network, validate_stored


def run(config: RunConfig, progress: Progress) -> Report:
    """Do the whole job of a configuration; the report, whose files and bundle are in `config.folder` then.

    Raises UserError for the user's mistakes; nothing half-written is left behind by one.
    """
    quantiser = QUANTISERS[config.quantisation.quantiser]
    quantiser.require()
    candidates = chosen_backends(config, progress)
    if is_finished(config):
        folder = open_folder(config)
        report = read_report(folder.bundle / "report.json")
        if not (folder.root / "report.json").exists():  # it was killed just then
            write_report(report, folder.root)
        return report
    check_machine(config)
    with locked(config.folder, progress.say):
        clear(folder := RunFolder(root=config.folder))
        with told_to_resume(folder, overwrite=config.output.overwrite):
            return _run(config, quantiser, candidates, open_folder(config), progress)


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
        teacher, student = networks_of(config)
        co_teachers = co_teachers_of(config, teacher)
        check_output_names(config.validation, [output.name for output in teacher.outputs], source=teacher.source)
        for network in {id(network): network for network in (teacher, student)}.values():
            check_convertible(
                network.folded,
                candidates[0],
                opset=config.quantisation.opset,
                most=config.quantisation.external_data_above,
            )
            if network.other is not None:
                size = other_size(network.preprocessing)
                example = probe_images(network.other, size, "free size", source=network.source)
                check_other_size(network.folded, network.other, example)
        objective = None
        if quantiser.trains:
            # Both for their errors: what the network or a method lacks is said before anything takes time.
            place(student.folded, candidates[0].profile, widths(config))
            objective = build_objective(
                objective_config(config),
                student.folded,
                [teacher.folded, *(network.folded for network in co_teachers)],
                teacher.outputs,
                taps=config.distillation.taps,
                seed=config.execution.seed,
            )
        images = None if config.data.source == NO_DATA else images_of(config, teacher)
        if images is None:
            check_imaginable(teacher)
        scored = check_inputs(config, folder.root, teacher, student, images)
        if images is not None:
            shown = _checked_on_images(config, (teacher, student, *co_teachers), images)
        warnings = check_teacher(
            teacher,
            images,
            None if scored is None else scored[0],
            data=config.data.source,
            eval_data=config.evaluation_source,
        )
        learns = quantiser.trains or float_steps(config) > 0
        mirror, reason = False, tuple[str, ...]()
        settled: dict[str, Any] = {}
        if images is not None:
            mirror, reason = mirrored_targets(config, teacher, images) if learns else (mirror, reason)
            settled = settled_by_inputs(config, teacher, images, objective, mirror=mirror)
        # Nothing that was there has been touched until here.
        for line in begin(folder, config, identities(config, [teacher, *co_teachers], student, images), settled):
            progress.say(line)
        times.keep_in(folder.seconds, resumed=config.output.resume)
    if images is None:
        with progress.stage("imagine"):
            images = imagined(config, folder, teacher, progress)
            mirror, reason = mirrored_targets(config, teacher, images) if learns else (mirror, reason)
            shown = _checked_on_images(config, (teacher, student, *co_teachers), images)
    student_notes = student.notes if config.student.source is not None else ()
    notes = (*warnings, *teacher.notes, *student_notes, *images.source.notes, *reason)
    for note in notes:
        progress.say(note)
    if steps := float_steps(config):
        with progress.stage("float"):
            student, remark = taught_in_float(config, folder, student, teacher, images, progress, mirror, steps)
            notes = (*notes, remark)
            # With what it has learned: at the start it was held against its module with its first weights.
            check_on_images(student, shown)
            _check_own_float_file(config, student, shown)
    student = suited(student, candidates[0].profile, widths(config), check=shown)
    job = Job(
        config=config,
        folder=folder,
        candidates=candidates,
        teacher=teacher,
        student=student,
        co_teachers=co_teachers,
        images=images,
        mirror=mirror,
        progress=progress,
    )
    quantised = quantiser.quantise(job)
    if quantised.prepared is not None:
        notes = (*notes, *quantised.prepared.notes)
    if quantised.trained is not None:
        notes = (*notes, *quantised.trained.distillation.remarks)
    check_float_file(quantised.compiled.float_model, teacher, shown, batch=config.quantisation.static_batch)
    write_model(folder.float_model, quantised.compiled.float_model)
    with progress.stage("validate"):
        validated = validate_network(
            config,
            teacher,
            quantised,
            images,
            progress,
            mirror=mirror,
            notes=notes,
            co_teachers=co_teachers,
            scored=scored,
        )
    report = replace(
        validated.report,
        seconds={name: round(value, 3) for name, value in times.seconds().items()},
        notes=(*validated.report.notes, *advice(config, validated.report)),
    )
    # Where the bundle is, the run is finished; its report stands beside none that is absent or another.
    write_bundle(
        folder.bundle,
        model=quantised.compiled.model,
        golden=validated.golden,
        plan=quantised.plan,
        preprocessing=teacher.preprocessing,
        outputs=_with_folders_names(student.outputs, scored),
        report=report,
        device_files=validated.device_files,
        session_options=quantised.backend.profile.session_options,
        least_parity=least_parity(quantised.plan, quantised.backend),
        float_digest=digest_of(quantised.compiled.float_model, FLOAT_MODEL),
        overwrite=config.output.overwrite or config.output.resume,
    )
    write_report(report, folder.root)
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
        if emulate is not None:
            if config.min_speedup is not None:
                raise UserError(
                    f"--min-speedup {config.min_speedup:g}: times mean nothing under --emulate; leave it out"
                )
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


def _checked_on_images(config: RunConfig, networks: tuple[Network, ...], images: UnlabelledImages) -> Tensor:
    """Some of the images, on which all graphs, and the teacher's float file, compute what their modules do."""
    teacher = networks[0]
    shown = some_images(images, teacher.preprocessing, seed=config.execution.seed)
    for network in {id(network): network for network in networks}.values():
        check_on_images(network, shown)
    # Before training as well as at the end: a mistake of the file must not cost the user an hour first.
    _check_own_float_file(config, teacher, shown)
    return shown


def _check_own_float_file(config: RunConfig, network: Network, shown: Tensor) -> None:
    """Raise UserError unless the float file of a network gives for some images what its module does."""
    bits = config.quantisation
    model = float_counterpart(network.folded, opset=bits.opset, batch=bits.static_batch, most=bits.external_data_above)
    check_float_file(model, network, shown, batch=bits.static_batch)


def _with_folders_names(outputs: tuple[Output, ...], scored: Scored | None) -> tuple[Output, ...]:
    """The outputs, with the class folders' names where nobody else has named the classes."""
    folders = None if scored is None or scored[0].labels is None else scored[0].folders
    return outputs if folders is None or any(output.names for output in outputs) else named_outputs(outputs, folders)
