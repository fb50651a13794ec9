"""The ways from float networks and unlabelled images to an artifact: our own, and other tools'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backends.base import Backend
from calibration.errors import require_package
from pipeline.artifacts import Network, PreparedStudent, QuantisedStudent
from pipeline.config import RunConfig
from pipeline.images.unlabelled import UnlabelledImages
from pipeline.setup.chosen_backend import prepared_for
from pipeline.setup.learning import distilled, widths
from pipeline.setup.state import RunFolder
from pipeline.stages.choose import choose_profile
from pipeline.stages.convert import check_loads, check_opset, compile_model
from pipeline.stages.observe import corrected, prepare
from pipeline.stages.post_training import quantise_after_training
from pipeline.tools.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a quantiser is given: float networks and unlabelled images, the target, and where to keep its state."""

    config: RunConfig
    folder: RunFolder
    candidates: tuple[Backend, ...]
    """The backend with each profile that is exact on the target, the fastest first."""
    teacher: Network
    student: Network
    co_teachers: tuple[Network, ...]
    images: UnlabelledImages
    mirror: bool
    progress: Progress


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
    config, folder, progress = job.config, job.folder, job.progress
    with progress.stage("observe"):
        if config.output.resume and folder.prepared.exists():
            prepared = PreparedStudent.load(folder.prepared, job.student.folded)
        else:
            prepared = prepare(
                job.student.folded,
                job.candidates[0],
                job.images,
                job.teacher.preprocessing,
                widths=widths(config),
                method=config.quantisation.range_method,
                count=config.data.calibration_images,
                seed=config.execution.seed,
                step=lambda done, total: progress.step(done, total),
            )
            prepared = choose_profile(
                prepared,
                job.candidates,
                job.teacher,
                job.images,
                widths=widths(config),
                corrected=lambda calibrated: corrected(
                    calibrated,
                    job.images,
                    job.teacher.preprocessing,
                    count=config.data.calibration_images,
                    seed=config.execution.seed,
                ),
            )
            check_opset(prepared.plan, config.quantisation.opset)
            check_loads(
                prepared,
                job.teacher.folded,
                prepared_for(job.candidates, prepared.plan),
                opset=config.quantisation.opset,
                batch=config.quantisation.static_batch,
                most=config.quantisation.external_data_above,
            )
            prepared.save(folder.prepared)
        check_opset(prepared.plan, config.quantisation.opset)
        backend = prepared_for(job.candidates, prepared.plan)
    with progress.stage("distil"):
        trained = distilled(
            config,
            folder,
            prepared,
            job.teacher,
            job.co_teachers,
            job.images,
            progress,
            mirror=job.mirror,
            student_outputs=job.student.outputs,
        )
    with progress.stage("convert"):
        compiled = compile_model(
            trained.network,
            job.student.folded,
            job.teacher.folded,
            backend,
            opset=config.quantisation.opset,
            batch=config.quantisation.static_batch,
            most=config.quantisation.external_data_above,
        )
    return QuantisedStudent(backend=backend, compiled=compiled, plan=prepared.plan, prepared=prepared, trained=trained)


def _by_nncf(job: Job) -> QuantisedStudent:
    """NNCF's post-training quantisation of the float file; short enough to be done again by a resumed run."""
    with job.progress.stage("quantise"):
        return quantise_after_training(
            job.student.folded,
            job.teacher.folded,
            job.candidates[0],
            job.images,
            job.teacher.preprocessing,
            count=job.config.data.calibration_images,
            seed=job.config.execution.seed,
            opset=job.config.quantisation.opset,
            most=job.config.quantisation.external_data_above,
            step=lambda done, total: job.progress.step(done, total),
        )


#: Name on the command line -> how the integers are found; all end in the same validation, report and bundle.
QUANTISERS = {
    "faqd": Quantiser(quantise=_by_distillation, trains=True),
    "nncf": Quantiser(quantise=_by_nncf, trains=False, package="nncf"),
}
