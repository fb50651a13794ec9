"""Quantise a float network after training by NNCF: min-max ranges and fast bias correction, on the float file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from backends.base import Array, Backend
from backends.nncf.plan_of_file import plan_of_file
from backends.nncf.quantiser import quantise
from backends.onnx_file.emit import emit
from backends.onnx_file.serialised import in_one_piece, serialise
from pipeline.artifacts import FLOAT_MODEL, MODEL, CompiledModel, Network, QuantisedStudent
from pipeline.config.quantisation import QuantisationConfig
from pipeline.images.batches import images_at_once
from pipeline.images.calibration_images import calibration_batches, calibration_indices
from pipeline.images.split_images import SplitImages
from pipeline.tools.progress import SILENT, Progress

# The oldest opset of the targets' manuals is enough for 8 bits; the float counterpart is written alike.
_OPSET = 20
_READ_AT_ONCE = 64
_LEFT = "NNCF leaves it in float"


def quantise_after_training(
    student: Network,
    teacher: Network,
    backend: Backend,
    images: SplitImages,
    quantisation: QuantisationConfig,
    *,
    progress: Progress = SILENT,
) -> QuantisedStudent:
    """NNCF's W8A8 file of a student, calibrated on the same images as our own calibration would be.

    Raises MissingExtra without the package nncf, UserError when NNCF cannot quantise the network.
    """
    chosen, opset, most = calibration_indices(images), quantisation.opset or _OPSET, quantisation.external_data_above

    def single_images() -> Iterator[Array]:
        # One by one: ranges of a batch would be those of its most extreme image.
        size = images_at_once(student.preprocessing, _READ_AT_ONCE)
        read = calibration_batches(images, chosen, student.preprocessing, batch_size=size, progress=progress)
        for several in read:
            yield from several.numpy()[:, None]

    plain = in_one_piece(serialise(emit(student.folded, opset=opset), name=FLOAT_MODEL), "NNCF")
    model = quantise(plain, single_images, len(chosen), backend.profile)
    compared = emit(teacher.folded, opset=opset)
    plan, profile = plan_of_file(model, backend=backend.name, left=_LEFT), backend.profile
    return QuantisedStudent(
        backend=backend,
        compiled=CompiledModel(
            model=serialise(model, name=MODEL, most=most), float_model=serialise(compared, name=FLOAT_MODEL, most=most)
        ),
        # By its variant a finished bundle finds its profile again.
        plan=replace(plan, variant=profile.variant, arm_arithmetic=profile.arm_arithmetic),
    )
