"""A student of another architecture learns in float, with its BatchNorms, and resumes to the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from calibration.graph.training_mode import in_training
from calibration.rewrites.fold import fold
from pipeline.artifacts import Lesson, Network, TrainingFiles
from pipeline.config import DistillationConfig, ExecutionConfig, QuantisationConfig
from pipeline.networks.architectures.digits import DigitsNetwork
from pipeline.stages.convert import float_counterpart
from pipeline.stages.first_link import check_float_file, check_on_images
from pipeline.stages.float_student import teach_float, what_was_learned, with_weights
from pipeline.tools.kept import Kept
from pipeline.tools.progress import SILENT, Progress, SilentProgress


def student(example: SimpleNamespace) -> Network:
    """The embedded network with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = DigitsNetwork()
    captured = capture(module, torch.zeros(2, 1, 8, 8), source="small")
    return Network(
        source="small",
        module=module,
        captured=captured,
        folded=fold(captured),
        preprocessing=example.teacher.preprocessing,
        outputs=example.teacher.outputs,
        fold_difference=0.0,
        notes=(),
    )


def teach(
    example: SimpleNamespace,
    folder: Path,
    *,
    untaught: Network | None = None,
    steps: int = 40,
    progress: Progress = SILENT,
    **changes: Any,
) -> tuple[dict[str, Tensor], float]:
    # SPEQ's second pass is one that a float network does not have.
    settings: dict[str, Any] = {"batch_size": 32, "float_learning_rate": 3e-3, "speq_weight": 1.0}
    folder.mkdir(exist_ok=True)
    mirror = changes.get("targets") == "mirror"
    taught = teach_float(
        untaught or student(example),
        Lesson(teachers=(example.teacher,), images=example.images, mirror=mirror),
        DistillationConfig(**settings | changes),
        ExecutionConfig(device="cpu"),
        steps=steps,
        files=TrainingFiles(checkpoint=Kept(folder / "float.safetensors")),
        progress=progress,
    )
    return dict(taught.tensors), taught.agreement


def test_it_learns_and_resumes_to_the_same_bits(example: SimpleNamespace, tmp_path: Path) -> None:
    weights, agreement = teach(example, tmp_path)
    assert agreement > 0.5, "random weights agree on a tenth"

    class Interrupted(SilentProgress):
        def step(self, done: int, total: int, **figures: float) -> None:
            if done == 23:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach(example, tmp_path, progress=Interrupted())
    resumed, _ = teach(example, tmp_path)
    assert weights.keys() == resumed.keys()
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    trained = with_weights(student(example), weights)
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(trained.folded(images)[0], trained.captured(images)[0], rtol=1e-3, atol=1e-4)


def test_killed_at_any_step_it_ends_with_the_same_bits(
    example: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept on the way out, and what is trained beside the student must be found again: adapters."""
    monkeypatch.setattr("pipeline.distillation.training.learner.CHECKPOINT_SECONDS", 0.0)
    settings: dict[str, Any] = {"affinity": "fa", "adapters": "trained", "targets": "mirror"}
    weights, _ = teach(example, tmp_path / "whole", steps=6, **settings)
    steps = list[int]()

    class Killed(SilentProgress):
        def step(self, done: int, total: int, **figures: float) -> None:
            steps.append(done)
            if len(steps) == 4:
                raise SystemExit

    with pytest.raises(SystemExit):
        teach(example, tmp_path, steps=6, progress=Killed(), **settings)
    resumed, _ = teach(example, tmp_path, steps=6, progress=Killed(), **settings)
    assert steps == [1, 2, 3, 4, 4, 5, 6], "of the step in which it was killed nothing was kept"
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_what_was_taught_is_held_against_the_users_own_module_with_these_weights(
    example: SimpleNamespace, tmp_path: Path
) -> None:
    untaught = student(example)
    before = {name: tensor.clone() for name, tensor in untaught.module.state_dict().items()}
    weights, _ = teach(example, tmp_path, untaught=untaught, steps=3)
    taught = with_weights(untaught, weights)
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    check_on_images(taught, images)
    check_float_file(float_counterpart(taught, QuantisationConfig()), taught, images, batch=None)
    assert all(torch.equal(before[name], tensor) for name, tensor in untaught.module.state_dict().items())
    kept = taught.module.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights.items() if name in kept)
    assert weights.keys() <= kept.keys() and not torch.equal(kept["classifier.weight"], before["classifier.weight"])
    with pytest.raises(UserError, match="does not compute what the network does"):
        check_on_images(replace(taught, module=untaught.module), images)


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({}, "it gives 75.0 % of held-out images the class that it was asked for"),
        ({"holds": "values"}, "it explains 75.0 % of the variance of logits on held-out images"),
        ({"holds": "labels"}, "it gives 75.0 % of the decisions of logits as asked for"),
    ],
)
def test_what_was_learned_is_told_in_the_words_of_the_output(
    change: dict[str, Any], outcome: str, example: SimpleNamespace
) -> None:
    output = replace(example.teacher.outputs[0], name="logits", **change)
    said = what_was_learned(student(example), replace(example.teacher, outputs=(output,)), 0.75, steps=9)
    assert said == f"small learned in float for 9 steps: {outcome}"


def test_batch_norms_train_in_a_copy_alone(example: SimpleNamespace) -> None:
    captured = student(example).captured
    images = 3 + torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in captured.state_dict().items()}
    training = in_training(captured)
    with torch.no_grad():
        first = training(images)[0]
        changed = [name for name, tensor in training.state_dict().items() if not torch.equal(tensor, before[name])]
        norms = sum(isinstance(module, nn.BatchNorm2d) for module in DigitsNetwork().modules())
        assert len(changed) == 2 * norms, "a running mean and variance for each"
        assert all(torch.equal(tensor, before[name]) for name, tensor in captured.state_dict().items())
        again = in_training(training, training=False)
        assert torch.equal(again(images)[0], again(images)[0]) and not torch.equal(first, again(images)[0])


def test_divergence_is_the_users_line(example: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"diverged at step .*: use a lower --float-learning-rate than 1e"):
        teach(example, tmp_path, float_learning_rate=1e30, steps=8)
