"""Quantise a float network after training by NNCF: min-max ranges and fast bias correction, on the float file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch.fx import GraphModule

from backends.base import Array, Backend
from backends.nncf.plan_of_file import plan_of_file
from backends.nncf.quantiser import quantise
from backends.onnx_file.emit import emit
from backends.onnx_file.serialised import in_one_piece, serialise
from pipeline.artifacts import FLOAT_MODEL, MODEL, CompiledModel, QuantisedStudent
from pipeline.images.batches import images_at_once
from pipeline.images.calibration_images import calibration_batches, calibration_indices
from pipeline.images.preprocessing import Preprocessing
from pipeline.images.unlabelled import UnlabelledImages

# The oldest opset of the targets' manuals is enough for 8 bits; the float counterpart is written alike.
_OPSET = 20
_READ_AT_ONCE = 64
_LEFT = "NNCF leaves it in float"


def quantise_after_training(
    folded: GraphModule,
    teacher: GraphModule,
    backend: Backend,
    images: UnlabelledImages,
    preprocessing: Preprocessing,
    *,
    count: int,
    seed: int,
    opset: int | None,
    most: int,
    step: Callable[[int, int], None],
) -> QuantisedStudent:
    """NNCF's W8A8 file of a folded graph, calibrated on the same `count` images as our own calibration would be.

    `most`: bytes of weights beyond which they are for a file beside the model's. `step(done, total)` hears of the
    progress. Raises MissingExtra without the package nncf, UserError when NNCF cannot quantise the network.
    """
    chosen = calibration_indices(images, count=count, seed=seed)

    def single_images() -> Iterator[Array]:
        # One by one: ranges of a batch would be those of its most extreme image.
        size = images_at_once(preprocessing, _READ_AT_ONCE)
        for several in calibration_batches(images, chosen, preprocessing, batch_size=size, step=step):
            yield from several.numpy()[:, None]

    plain = in_one_piece(serialise(emit(folded, opset=opset or _OPSET), name=FLOAT_MODEL), "NNCF")
    model = quantise(plain, single_images, len(chosen), backend.profile)
    compared = emit(teacher, opset=opset or _OPSET)
    plan, profile = plan_of_file(model, backend=backend.name, left=_LEFT), backend.profile
    return QuantisedStudent(
        backend=backend,
        compiled=CompiledModel(
            model=serialise(model, name=MODEL, most=most), float_model=serialise(compared, name=FLOAT_MODEL, most=most)
        ),
        # By its variant a finished bundle finds its profile again.
        plan=replace(plan, variant=profile.variant, arm_arithmetic=profile.arm_arithmetic),
    )
