"""The stages in which a run's students learn, and what an interrupted run had finished of them."""

from __future__ import annotations

from pathlib import Path

from backends.device.bundle_check.records import from_json, to_json
from pipeline.artifacts import Network, PreparedStudent, TrainedStudent, load_tensors, save_tensors
from pipeline.report.schema import Distillation
from pipeline.setup.job import Job
from pipeline.stages.distill import distil
from pipeline.stages.float_student import teach_float, what_was_learned, with_weights
from pipeline.tools.atomic import remove
from pipeline.tools.memory import freed_memory_kept


def taught_in_float(job: Job, steps: int) -> tuple[Network, str]:
    """The student after float distillation, or what an interrupted run had finished of it, and what came out."""
    config, folder, student = job.config, job.folder, job.student
    if config.output.resume and folder.float_student.exists():
        weights, record = load_tensors(folder.float_student)
        agreement = float(record["agreement"])
    else:
        with freed_memory_kept():
            weights, agreement = teach_float(
                student,
                job.lesson,
                config.distillation,
                config.execution,
                steps=steps,
                checkpoint=folder.float_checkpoint,
                progress=job.progress,
            )
        save_tensors(folder.float_student, weights, {"agreement": agreement})
        remove(folder.float_checkpoint)
    remark = what_was_learned(student, job.lesson.teacher, agreement, steps=steps)
    job.progress.say(remark)
    return with_weights(student, weights), remark


def distilled(job: Job, prepared: PreparedStudent) -> TrainedStudent:
    """Distil, generation after generation, or take what an interrupted run had finished."""
    trained: TrainedStudent | None = None
    generations = job.config.distillation.generations
    for generation in range(generations):
        last = generation == generations - 1
        kept = job.folder.trained if last else job.folder.generation(generation)
        if job.config.output.resume and kept.exists():
            trained = _kept(kept, prepared)
            continue
        if generations > 1:
            job.progress.say(f"student {generation + 1} of {generations}")
        with freed_memory_kept():
            trained = distil(
                prepared,
                job.lesson,
                job.config.distillation,
                job.config.execution,
                predecessor=None if trained is None else trained.network,
                checkpoint=job.folder.checkpoint,
                progress=job.progress,
            )
        save_tensors(kept, trained.network.state_dict(), to_json(trained.distillation))
        remove(job.folder.checkpoint)
    assert trained is not None
    return trained


def _kept(file: Path, prepared: PreparedStudent) -> TrainedStudent:
    tensors, record = load_tensors(file)
    network = prepared.network(trainable=True)
    network.load_state_dict(tensors)
    return TrainedStudent(network=network.eval(), distillation=from_json(Distillation, record, where=str(file)))
