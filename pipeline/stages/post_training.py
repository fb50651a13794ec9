"""Quantise a float network after training by NNCF: min-max ranges and fast bias correction, on the float file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch.fx import GraphModule

from backends.base import Array, Backend
from backends.nncf_quantiser import quantise
from backends.onnx_graph import emit
from backends.onnx_plan import plan_of_file
from pipeline.artifacts import CompiledModel, QuantisedStudent, UnlabelledImages
from pipeline.batches import images_at_once
from pipeline.calibration_images import calibration_batches, calibration_indices
from pipeline.preprocessing import Preprocessing

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
    step: Callable[[int, int], None],
) -> QuantisedStudent:
    """NNCF's W8A8 file of a folded graph, calibrated on the same `count` images as our own calibration would be.

    `step(done, total)` hears of the progress. Raises MissingExtra without the package nncf, UserError when NNCF cannot
    quantise the network.
    """
    chosen = calibration_indices(images, count=count, seed=seed)

    def single_images() -> Iterator[Array]:
        # One by one: ranges of a batch would be those of its most extreme image.
        size = images_at_once(preprocessing, _READ_AT_ONCE)
        for several in calibration_batches(images, chosen, preprocessing, batch_size=size, step=step):
            yield from several.numpy()[:, None]

    plain = emit(folded, opset=opset or _OPSET).SerializeToString()
    model = quantise(plain, single_images, len(chosen), backend.profile)
    compared = plain if teacher is folded else emit(teacher, opset=opset or _OPSET).SerializeToString()
    plan, profile = plan_of_file(model, backend=backend.name, left=_LEFT), backend.profile
    return QuantisedStudent(
        backend=backend,
        compiled=CompiledModel(model=model.SerializeToString(), float_model=compared),
        # By its variant a finished bundle finds its profile again.
        plan=replace(plan, variant=profile.variant, arm_arithmetic=profile.arm_arithmetic),
    )
