"""Every method trains the real student and leaves nothing of its own behind."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from calibration.simulation.prepared import PreparedNetwork
from pipeline.artifacts import Lesson, Network, TrainedStudent
from pipeline.config import DistillationConfig, ExecutionConfig, QuantisationConfig
from pipeline.distillation.training.speq import stochastic_precision
from pipeline.distillation.training.trainer import Trainer
from pipeline.stages.distill import teach
from pipeline.stages.targets import joint_targets
from pipeline.tools.kept import Kept
from pipeline.tools.progress import SILENT, Progress, SilentProgress

METHODS: dict[str, dict[str, Any]] = {
    "sp": {"affinity": "sp"},
    "rkd-d": {"affinity": "rkd-d"},
    "rkd-a": {"affinity": "rkd-a"},
    "pkt": {"affinity": "pkt"},
    "grid": {"affinity": "rbf", "normalise": "softmax", "distance": "js", "over": "pixels"},
    "adapters": {"affinity": "fa", "affinity_order": "1", "adapters": "trained"},
    "gslr": {"affinity": "none", "logit_weight": "linear:1:0", "class_weight": "linear:0:1"},
    "labels": {"affinity": "none", "label_weight": 0.5},
    "feed": {"affinity": "none", "feed_weight": 0.1},
    "speq": {"affinity": "none", "speq_weight": 1.0},
    "sakd": {"affinity": "none", "sakd_weight": 0.1},
}


#: Other ways for weights and scales to learn.
SCHEDULES: dict[str, dict[str, Any]] = {
    "faqd weights": {"weight_grids": "faqd"},
    "faqd weights, normalised": {"weight_grids": "faqd", "batch_norm": "kept"},
    "pact": {"activation_grids": "pact"},
    "pact, normalised": {"activation_grids": "pact", "batch_norm": "kept"},
    "sgd": {"optimiser": "sgd", "learning_rate": 0.003},
    "decay": {"weight_decay": 1e-4},
}
#: Those of them that are settings of the grids.
OF_GRIDS = ("weight_grids", "activation_grids")

#: Methods that train something beside the student, which a resumed run must find again.
OWN_WEIGHTS = ("adapters", "feed", "sakd")


def train(
    example: SimpleNamespace,
    folder: Path,
    *,
    progress: Progress = SILENT,
    co_teachers: tuple[Network, ...] = (),
    predecessor: PreparedNetwork | None = None,
    **changes: Any,
) -> TrainedStudent:
    """Distil with changed settings, of learning or of the grids."""
    grids = {name: changes.pop(name) for name in OF_GRIDS if name in changes}
    settings = {"steps": 16, "batch_size": 32, "learning_rate": 3e-4, "scale_learning_rate": 1e-3}
    labelled = replace(example.images, labels=np.arange(len(example.images.source), dtype=np.int64) % 10)
    trainer = Trainer(
        replace(example.prepared, quantisation=QuantisationConfig(bits=4, **grids)),
        Lesson(teachers=(example.teacher, *co_teachers), images=labelled),
        DistillationConfig(**settings | changes),
        ExecutionConfig(device="cpu"),
        predecessor=predecessor,
    )
    return teach(trainer, checkpoint=Kept(folder / "checkpoint.safetensors"), progress=progress)


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_and_leaves_nothing_of_its_own_behind(name: str, example: SimpleNamespace, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    trained = train(example, tmp_path, **METHODS[name])
    assert torch.equal(state, torch.get_rng_state())
    assert trained.network.state_dict().keys() == example.prepared.network().state_dict().keys()
    record = trained.distillation
    assert record.loss_final is not None and record.loss_calibrated is not None
    assert not record.diverged and record.backoffs == 0
    if name != "labels":  # those are wrong here: what they teach is not what the teacher says
        assert record.loss_final < record.loss_calibrated


@pytest.mark.parametrize("name", SCHEDULES)
def test_weights_and_scales_learn_in_other_ways(name: str, example: SimpleNamespace, tmp_path: Path) -> None:
    trained = train(example, tmp_path, **SCHEDULES[name])
    record, network = trained.distillation, trained.network
    losses = [loss for _, loss in record.curve]
    assert len(losses) == 16 and record.backoffs == 0
    # A normalised student forgets a little before it learns, and this one has 16 steps.
    assert sum(losses[-4:]) < sum(losses[:4]) or "normalised" in name
    assert network.state_dict().keys() == example.prepared.network().state_dict().keys()
    assert all(grid.form is None for grid in network.weight_grids().values())
    assert not any(operation._forward_hooks for operation in network.modules())


@pytest.mark.usefixtures("branches_learn_briefly")
@pytest.mark.parametrize("name", [*OWN_WEIGHTS, *SCHEDULES])
def test_it_resumes_to_the_same_bits(name: str, example: SimpleNamespace, tmp_path: Path) -> None:
    settings = {"steps": 5, "batch_size": 16, **METHODS.get(name, {}), **SCHEDULES.get(name, {})}
    whole = train(example, tmp_path, **settings)

    class Interrupted(SilentProgress):
        def step(self, done: int, total: int, **figures: float) -> None:
            if done == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(example, tmp_path, progress=Interrupted(), **settings)
    resumed = train(example, tmp_path, **settings)
    pairs = zip(whole.network.state_dict().values(), resumed.network.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert whole.distillation == resumed.distillation


def test_labels_are_followed_where_they_are_asked_for(example: SimpleNamespace, tmp_path: Path) -> None:
    plain, labelled = (
        train(example, tmp_path, affinity="none", label_weight=weight).distillation for weight in (None, 20.0)
    )
    assert plain.loss_final is not None and labelled.loss_final is not None
    assert labelled.loss_final > 3 * plain.loss_final, "the wrong labels must lead away from the teacher"


def test_several_teachers_are_averaged(example: SimpleNamespace, tmp_path: Path) -> None:
    teacher = example.teacher.folded
    once = train(example, tmp_path, affinity="none").distillation
    twice = train(example, tmp_path, affinity="none", co_teachers=(example.teacher,)).distillation
    assert twice.loss_calibrated == pytest.approx(once.loss_calibrated, rel=1e-3), "two equal teachers are one"
    fed = train(example, tmp_path, affinity="none", feed_weight=0.1, co_teachers=(example.teacher,)).distillation
    assert fed.chosen == "trained"
    images = torch.randn((8, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    flipped = copy.deepcopy(teacher)
    for parameter in flipped.parameters():
        parameter.data.neg_()
    (joint,) = joint_targets([teacher, flipped], [example.teacher.outputs] * 2, mirror=False, temperature=4.0)(images)
    with torch.no_grad():
        by_hand = ((teacher(images)[0] / 4).softmax(1) + (flipped(images)[0] / 4).softmax(1)) / 2
    torch.testing.assert_close((joint / 4).softmax(1), by_hand)


def test_a_student_can_follow_a_student(example: SimpleNamespace, tmp_path: Path) -> None:
    first = train(example, tmp_path, feed_weight=0.1)
    second = train(example, tmp_path, feed_weight=0.1, predecessor=first.network).distillation
    assert second.loss_calibrated is not None and second.loss_final is not None
    assert second.loss_final < second.loss_calibrated
    assert second.loss_calibrated != first.distillation.loss_calibrated


def test_mixed_precision_ends_with_the_pass(example: SimpleNamespace) -> None:
    network = example.prepared.network()
    images = torch.randn((8, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = network(images)[0]
        with stochastic_precision(network, None, 1.0, torch.Generator()):
            coarse = network(images)[0]
        with stochastic_precision(network, 2, 0.5, torch.Generator().manual_seed(1)):
            mixed = network(images)[0]
        with stochastic_precision(network, 8, 0.5, torch.Generator().manual_seed(1)):
            full = network(images)[0]
        assert torch.equal(network(images)[0], own) and torch.equal(full, own)
    difference = (coarse - own).norm() / own.norm()
    assert 0.005 < difference < 0.5, "4-bit activations on the same range"
    assert not torch.equal(mixed, coarse)
