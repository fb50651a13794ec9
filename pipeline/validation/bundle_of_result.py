"""From what a validation has found to the bundle on the disk: the one way there, of a run and of the public face."""

from __future__ import annotations

from pathlib import Path

from pipeline.artifacts import FLOAT_MODEL, Network, QuantisedStudent
from pipeline.bundle.bundle import digest_of, write_bundle
from pipeline.bundle.bundle_contents import BundleContents
from pipeline.networks.outputs.class_order import named_outputs
from pipeline.networks.outputs.meaning import Output
from pipeline.validation.evaluation import Scored
from pipeline.validation.gates import least_parity_for
from pipeline.validation.validate import Validated


def write_result(
    target: Path,
    quantised: QuantisedStudent,
    validated: Validated,
    teacher: Network,
    student: Network,
    scored: Scored,
    *,
    overwrite: bool,
) -> None:
    """Write the complete bundle of an artifact that has been validated, or nothing.

    Args:
        target: the bundle's folder.
        quantised: the artifact.
        validated: brings golden images, the device's files and the report that goes into it.
        teacher: first of the float networks; says the preprocessing, and what the outputs of float.onnx hold.
        student: says what the model's outputs hold.
        scored: images that it was judged by; their class folders name classes that nobody else has named.
        overwrite: whether a folder that is there already is replaced.

    Raises:
        UserError: the place is taken, full or not writable.
    """
    contents = BundleContents(
        model=quantised.compiled.model,
        plan=quantised.plan,
        preprocessing=teacher.preprocessing,
        outputs=_with_folders_names(student.outputs, scored),
        float_outputs=teacher.outputs,
        float_digest=digest_of(quantised.compiled.float_model, FLOAT_MODEL),
        golden=validated.golden,
        device_files=validated.device_files,
        session_options=quantised.backend.profile.session_options,
        least_parity=least_parity_for(quantised.plan, quantised.backend),
        report=validated.report,
    )
    write_bundle(target, contents, overwrite=overwrite)


def _with_folders_names(outputs: tuple[Output, ...], scored: Scored) -> tuple[Output, ...]:
    """The outputs, with the class folders' names where nobody else has named the classes."""
    folders = None if scored.evaluation.labels is None else scored.evaluation.folders
    return outputs if folders is None or any(output.names for output in outputs) else named_outputs(outputs, folders)
