"""What can be known to go wrong with networks, alone and on real images, is found before anything takes time."""

from __future__ import annotations

from torch import Tensor

from backends.base import Backend
from backends.placement.place import place
from calibration.simulation.sums import check_first_sums
from pipeline.artifacts import Network
from pipeline.config.distillation import DistillationConfig
from pipeline.config.quantisation import QuantisationConfig
from pipeline.distillation.build import build_objective
from pipeline.distillation.objective import Objective
from pipeline.images.probe_images import probe_images
from pipeline.images.split_images import SplitImages
from pipeline.setup.networks import Networks
from pipeline.stages.convert import check_convertible, float_counterpart
from pipeline.stages.first_link import check_float_file, check_on_images, some_images
from pipeline.stages.teacher import other_size
from pipeline.validation.other_size import check_other_size


def check_networks(networks: Networks, backend: Backend, quantisation: QuantisationConfig) -> None:
    """Check that networks can be converted, placed and compared.

    Raises:
        UserError: what a network lacks.
    """
    for network in networks.compared:
        check_convertible(network.folded, backend, quantisation)
        if network.other is not None:
            size = other_size(network.preprocessing)
            example = probe_images(network.module, network.other, size, "free size", source=network.source)
            check_other_size(network.folded, network.other, example)
    if quantisation.trains:
        plan = place(networks.student.folded, backend.profile, quantisation.widths)
        check_first_sums(networks.student.folded, plan)


def objective_of(networks: Networks, learning: DistillationConfig, *, seed: int) -> Objective:
    """The objective that the student will be trained by.

    Raises:
        UserError: what a network or a method lacks.
    """
    teachers, outputs = [network.folded for network in networks.teachers], networks.teacher.outputs
    return build_objective(learning, networks.student.folded, teachers, outputs, seed=seed)


def checked_on_images(
    networks: Networks, images: SplitImages, quantisation: QuantisationConfig, *, seed: int
) -> Tensor:
    """Some of the images, on which all graphs, and the teacher's float file, compute what their modules do.

    Raises:
        UserError: one does not.
    """
    shown = some_images(images, networks.teacher.preprocessing, seed=seed)
    for network in networks.distinct:
        check_on_images(network, shown)
    # Before training as well as at the end: a mistake of the file must not cost the user an hour first.
    _check_own_float_file(networks.teacher, shown, quantisation)
    return shown


def check_taught(student: Network, shown: Tensor, quantisation: QuantisationConfig) -> None:
    """Hold a student that has learned in float against its module: before, it was with its first weights.

    Raises:
        UserError: graph or file compute something else with images float32 [B, C, H, W].
    """
    check_on_images(student, shown)
    _check_own_float_file(student, shown, quantisation)


def _check_own_float_file(network: Network, shown: Tensor, quantisation: QuantisationConfig) -> None:
    model = float_counterpart(network, quantisation)
    check_float_file(model, network, shown, batch=quantisation.static_batch)
