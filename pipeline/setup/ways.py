"""The ways from a float student and its lesson to an artifact: our own, and other tools'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backends.base import Backend
from calibration.errors import require_package
from pipeline.artifacts import Network, PreparedStudent, QuantisedStudent
from pipeline.config import QuantisationConfig
from pipeline.images.split_images import SplitImages
from pipeline.setup.chosen_backend import prepared_for
from pipeline.setup.job import Job
from pipeline.setup.learning import distilled
from pipeline.stages.choose import choose_profile
from pipeline.stages.convert import check_loads, check_opset, compile_model
from pipeline.stages.observe import corrected, prepare
from pipeline.stages.post_training import quantise_after_training
from pipeline.tools.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Quantiser:
    """One way from float networks and images to an artifact; `package` is what it needs beside ours, and its extra."""

    quantise: Callable[[Job], QuantisedStudent]
    trains: bool
    package: str | None = None

    def require(self) -> None:
        """Raise MissingExtra where the package is missing."""
        if self.package is not None:
            require_package(self.package, extra=self.package, needed_for=f"--quantiser {self.package}")


def _by_distillation(job: Job) -> QuantisedStudent:
    """Our own way: calibrated ranges, then the student learns from the float network what rounding took away."""
    with job.progress.stage("observe"):
        prepared, backend = _calibrated(job)
    with job.progress.stage("distil"):
        trained = distilled(job, prepared)
    with job.progress.stage("convert"):
        compiled = compile_model(prepared, trained.network, job.lesson.teacher, backend)
    return QuantisedStudent(
        backend=backend,
        compiled=compiled,
        plan=prepared.plan,
        prepared=prepared,
        simulated=trained.network,
        distillation=trained.distillation,
    )


def _calibrated(job: Job) -> tuple[PreparedStudent, Backend]:
    """The student prepared for the profile that suits it, or as an interrupted run had, and the backend of that."""
    kept, asked, lesson = job.folder.prepared, job.config.quantisation, job.lesson
    if job.config.output.resume and kept.exists():
        prepared = PreparedStudent.load(kept, job.student, asked)
        check_opset(prepared.plan, asked.opset)
        return prepared, prepared_for(job.candidates, prepared.plan)
    prepared, backend = calibrated(
        job.student, lesson.teacher, lesson.images, job.candidates, asked, progress=job.progress
    )
    prepared.save(kept)
    return prepared, backend


def calibrated(
    student: Network,
    teacher: Network,
    images: SplitImages,
    candidates: Sequence[Backend],
    asked: QuantisationConfig,
    *,
    progress: Progress,
) -> tuple[PreparedStudent, Backend]:
    """The student calibrated and corrected for that of the candidates which suits it, and which that is.

    Raises UserError where nothing can be quantised, or the runtime that is here refuses the file.
    """
    prepared = prepare(student, candidates[0], images, asked, progress=progress)
    prepared = choose_profile(
        prepared, candidates, teacher, images, corrected=lambda student: corrected(student, images)
    )
    check_opset(prepared.plan, asked.opset)
    backend = prepared_for(candidates, prepared.plan)
    check_loads(prepared, teacher, backend)
    return prepared, backend


def _by_nncf(job: Job) -> QuantisedStudent:
    """NNCF's post-training quantisation of the float file; short enough to be done again by a resumed run."""
    with job.progress.stage("quantise"):
        return quantise_after_training(
            job.student,
            job.lesson.teacher,
            job.candidates[0],
            job.lesson.images,
            job.config.quantisation,
            progress=job.progress,
        )


#: Name on the command line -> how the integers are found; all end in the same validation, report and bundle.
QUANTISERS = {
    "faqd": Quantiser(quantise=_by_distillation, trains=True),
    "nncf": Quantiser(quantise=_by_nncf, trains=False, package="nncf"),
}
