"""Distillation: it learns, resumes to the same bits, notices divergence, and chooses weights without labels."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from calibration.errors import UserError
from calibration.ranges.observation import Range
from calibration.simulation.prepared import PreparedNetwork
from pipeline.artifacts import Lesson, TrainedStudent, TrainingFiles
from pipeline.config import DistillationConfig, ExecutionConfig
from pipeline.distillation.training.judging import Judge
from pipeline.distillation.training.trainer import Trainer
from pipeline.stages.distill import distil, teach
from pipeline.tools.kept import Kept
from pipeline.tools.progress import SILENT, Progress
from tests.pipeline.stages.lessons import BATCH, Watched, made, same, train, trainer_of


def test_patience_that_few_held_out_images_switch_off_is_told(example: SimpleNamespace) -> None:
    few = SimpleNamespace(**vars(example))
    few.images = replace(example.images, held_out=example.images.held_out[:7])
    arguments, schedule = made(few, steps=12, affinity="none")
    trained = teach(Trainer(*arguments, schedule=replace(schedule, patience=2)), progress=(watched := Watched()))
    said = (
        "training does not end early, which --patience 2 asks for: 7 held-out images tell no loss that falls from one"
        " that stands still, 8 do (--held-out-images 8)"
    )
    assert said in watched.said and said in trained.distillation.remarks and watched.steps[-1] == 12
    quiet = teach(Trainer(*arguments, schedule=schedule), progress=SILENT)
    assert not any("--patience" in line for line in quiet.distillation.remarks)


def stepped(example: SimpleNamespace, **changes: Any) -> PreparedNetwork:
    """The student after the steps, whether they did it good or not."""
    trainer = trainer_of(example, **changes)
    for images, _ in trainer.learner.batches():
        trainer.learner.update(images)
    return trainer.network


def test_training_lowers_the_held_out_loss(example: SimpleNamespace, tmp_path: Path) -> None:
    record = train(example, tmp_path).distillation

    assert record.loss_calibrated is not None and record.loss_final is not None
    assert record.loss_final < 0.7 * record.loss_calibrated
    assert record.chosen == "trained" and not record.diverged and record.backoffs == 0


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(example: SimpleNamespace, tmp_path: Path) -> None:
    first, again = (train(example, tmp_path, steps=8).network.state_dict() for _ in range(2))

    assert same(first, again)
    assert not same(first, train(example, tmp_path, steps=8, seed=1).network.state_dict())


def test_a_student_and_a_lesson_are_enough(example: SimpleNamespace) -> None:
    lesson = Lesson(teachers=(example.teacher,), images=example.images)
    settings = DistillationConfig(steps=2, batch_size=16, affinity="none", learning_rate=1e-5)
    record = distil(example.prepared, lesson, settings, ExecutionConfig(device="cpu")).distillation
    assert record.steps == 2 and len(record.curve) == 2 and record.learning_rate == 1e-5


def test_generations_that_are_kept_are_not_taught_again(example: SimpleNamespace, tmp_path: Path) -> None:
    (student, lesson, settings, execution), _ = made(example, steps=16, generations=2)
    kept = (Kept(tmp_path / "first.safetensors"), Kept(tmp_path / "last.safetensors"))
    files = TrainingFiles(checkpoint=Kept(tmp_path / "checkpoint.safetensors"), students=kept)
    whole, quick = Watched(), Watched()
    last = distil(student, lesson, settings, execution, files=files, progress=whole)
    assert [line for line in whole.said if line.startswith("student")] == ["student 1 of 2", "student 2 of 2"]
    assert not files.checkpoint.exists() and all(file.exists() for file in kept)

    first = TrainedStudent.load(kept[0], student)
    assert first.distillation.chosen == "trained" and not same(first.network.state_dict(), last.network.state_dict())
    taught = teach(Trainer(student, lesson, settings, execution, predecessor=first.network))
    assert same(last.network.state_dict(), taught.network.state_dict()) and taught.distillation == last.distillation
    kept[1].remove()
    again = distil(student, lesson, settings, execution, files=files, progress=quick)
    assert [line for line in quick.said if line.startswith("student")] == ["student 2 of 2"] and quick.steps[-1] == 16
    assert same(last.network.state_dict(), again.network.state_dict()) and again.distillation == last.distillation


def test_one_checkpoint_cannot_stand_for_several_generations(example: SimpleNamespace, tmp_path: Path) -> None:
    (student, lesson, settings, execution), _ = made(example, steps=1, generations=2)
    for students in ((), (Kept(tmp_path / "one.safetensors"),)):
        files = TrainingFiles(checkpoint=Kept(tmp_path / "checkpoint.safetensors"), students=students)
        with pytest.raises(ValueError, match="2 generations cannot go on"):
            distil(student, lesson, settings, execution, files=files)
    assert not any(tmp_path.iterdir())


def test_an_interrupted_run_resumes_to_the_same_bits(example: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()  # a slow machine keeps checkpoints on the way
    whole = train(example, tmp_path / "whole", steps=12)

    with pytest.raises(KeyboardInterrupt):
        train(example, tmp_path, steps=12, progress=Watched(interrupt_at=7))
    watched = Watched()
    resumed = train(example, tmp_path, steps=12, progress=watched)

    assert watched.steps[0] == 8
    assert same(whole.network.state_dict(), resumed.network.state_dict())
    assert whole.distillation == resumed.distillation


def test_a_run_that_ends_early_resumes_to_the_same_bits(
    example: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before its end begins, in the middle of a look, and on its last steps; it has no rate to learn by."""
    settings: dict[str, Any] = {"steps": 40, "learning_rate": 1e-9, "scale_learning_rate": 1e-9, "affinity": "none"}
    (tmp_path / "whole").mkdir()
    watched = Watched()
    schedule = replace(made(example, **settings)[1], patience=1)

    def taught(folder: Path, progress: Progress) -> TrainedStudent:
        trainer = Trainer(*made(example, **settings)[0], schedule=schedule)
        return teach(trainer, checkpoint=Kept(folder / "checkpoint.safetensors"), progress=progress)

    whole = taught(tmp_path / "whole", watched)
    assert watched.steps[-1] == 27 and (whole.distillation.steps, whole.distillation.planned_steps) == (27, 40)
    assert any("training ends after 27 steps instead of 40" in line for line in watched.said)

    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path, Watched(interrupt_at=2))
    losses, asked = Judge.on_the_way, list[PreparedNetwork]()

    def interrupted(self: Judge, network: PreparedNetwork) -> Tensor:
        asked.append(network)
        if len(asked) == 2:  # the first are the calibrated student's
            raise KeyboardInterrupt
        return losses(self, network)

    monkeypatch.setattr(Judge, "on_the_way", interrupted)
    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path, SILENT)
    with pytest.raises(KeyboardInterrupt):
        taught(tmp_path, on_last := Watched(interrupt_at=24))
    resumed = taught(tmp_path, SILENT)
    assert on_last.steps == [21, 22, 23, 24] and len(asked) == 5, "one look was made twice"
    assert same(whole.network.state_dict(), resumed.network.state_dict())
    assert whole.distillation == resumed.distillation


def test_a_damaged_checkpoint_is_the_users_line(example: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"not safetensors")

    with pytest.raises(UserError, match="damaged"):
        train(example, tmp_path)


def test_divergence_is_noticed_backed_off_and_named(example: SimpleNamespace, tmp_path: Path) -> None:
    watched = Watched()
    settings = {"steps": 80, "learning_rate": 0.3, "scale_learning_rate": 0.3}
    record = train(example, tmp_path, **settings, progress=watched).distillation

    assert record.backoffs >= 1
    assert any("diverged" in line and "learning rate" in line for line in watched.said)


def test_a_hopeless_run_ends_with_the_calibrated_network(example: SimpleNamespace, tmp_path: Path) -> None:
    watched = Watched()
    settings = {"steps": 60, "learning_rate": 1e4, "scale_learning_rate": 1e4}
    trained = train(example, tmp_path, **settings, progress=watched)

    assert trained.distillation.diverged and trained.distillation.chosen == "calibrated"
    assert same(trained.network.state_dict(), example.prepared.network().state_dict())
    assert "given up" in watched.said[-1]
    assert any(line.startswith("WARNING: training diverged") for line in trained.distillation.remarks)


def test_weights_that_became_worse_are_not_kept_and_that_is_said(example: SimpleNamespace, tmp_path: Path) -> None:
    trained = train(example, tmp_path, steps=2, learning_rate=0.003)
    record = trained.distillation

    assert record.loss_calibrated is not None and record.loss_final is not None and record.gain is not None
    assert record.loss_final > record.loss_calibrated and not record.diverged
    assert record.gain == pytest.approx(record.loss_calibrated - record.loss_final, rel=1e-6)
    assert record.chosen == "calibrated" and "has made worse" in record.remarks[-1]
    assert same(trained.network.state_dict(), example.prepared.network().state_dict())


@pytest.mark.parametrize(
    "way", [{"batch_norm": "kept", "learning_rate": 3.0}, {"weight_grids": "faqd"}, {"activation_grids": "pact"}]
)
def test_no_way_of_training_keeps_what_is_worse(way: dict[str, Any], example: SimpleNamespace, tmp_path: Path) -> None:
    """Recipes train otherwise, an interrupted run goes on, and all end in the one verdict."""
    settings = {"steps": 2, "learning_rate": 0.03} | way
    with pytest.raises(KeyboardInterrupt):
        train(example, tmp_path, **settings, progress=Watched(interrupt_at=1))
    trained = train(example, tmp_path, **settings)
    record = trained.distillation
    assert record.loss_calibrated is not None and record.loss_final is not None
    assert record.loss_final > 2 * record.loss_calibrated and record.chosen == "calibrated"
    assert "has made worse" in record.remarks[-1]
    assert same(trained.network.state_dict(), example.prepared.network().state_dict())


def test_a_rate_on_offer_is_lowered_before_it_does_harm(example: SimpleNamespace, tmp_path: Path) -> None:
    """The rate by which the last test made things worse, and a scale's that is as far beyond."""
    watched, settings = Watched(), {"steps": 2, "learning_rate": 0.003, "scale_learning_rate": 0.3}
    record = train(example, tmp_path, **settings, offered=True, progress=watched).distillation
    said = [line for line in watched.said if "first step" in line]

    assert record.learning_rate in (0.003 * 0.3, 0.003 * 0.1, 0.003 * 0.03) and record.backoffs == 0
    assert ["the weights" in line or "the scales" in line for line in said] == [True, True]
    assert record.remarks[:2] == tuple(said) and "--learning-rate takes yours" in said[0]


def test_trials_end_best_at_the_rates_that_are_taken_and_leave_nothing_behind(example: SimpleNamespace) -> None:
    """Rates a hundred times the usual: no first step shows how far they are beyond, as the loss is large already."""
    usual = {"steps": 60, "learning_rate": 1e-3, "scale_learning_rate": 3e-2}
    trainer = trainer_of(example, **usual, offered=True)
    trainer.measure_start()
    said = trainer.lower_rates()
    assert "12 steps on trial ended at held-out losses of" in said[-1]
    assert trainer.rates.weights <= 1e-3 and trainer.rates.scales <= 3e-3
    assert trainer.learner.step == 0 and trainer.learner.optimiser.steps == trainer.schedule.steps == 60
    taken = {"learning_rate": trainer.rates.weights, "scale_learning_rate": trainer.rates.scales}
    plain = trainer_of(example, **usual | taken)
    plain.measure_start()
    batches = [next(iter(one.images.training(0, 1))) for one in (trainer, plain)]
    assert trainer.learner.update(*batches[0]) == plain.learner.update(*batches[1])
    assert same(trainer.network.state_dict(), plain.network.state_dict())


@pytest.mark.parametrize(
    "changes",
    [{"learning_rate": 1e-5, "scale_learning_rate": 1e-5}, {"optimiser": "sgd"}, {"batch_norm": "kept"}],
    ids=str,
)
def test_a_rate_is_left_where_its_first_step_does_no_harm_or_is_another(
    example: SimpleNamespace, changes: dict[str, Any]
) -> None:
    settings = {"steps": 3, "learning_rate": 0.3} | changes
    trainer = trainer_of(example, **settings, offered=True)
    assert trainer.lower_rates() == () and trainer.rates.weights == settings["learning_rate"]


def test_the_losses_of_single_images_are_those_of_the_batch(example: SimpleNamespace) -> None:
    trainer = trainer_of(example, mirror=True)
    network = example.prepared.network().eval()
    held_out = trainer.judge.of_held_out(network)
    losses, ignorant = held_out.losses, held_out.ignorant
    images = torch.cat(list(trainer.images.held_out()))
    teacher = example.teacher.folded
    targets = (teacher(images)[0] + teacher(images.flip(3))[0]) / 2
    both = [logits.log_softmax(1) for logits in (network(images)[0] / 4, targets / 4)]
    expected = 16 * (both[1].exp() * (both[1] - both[0])).sum(1)

    assert losses.tolist() == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-5)
    alike = network(images)[0].argmax(1) == targets.argmax(1)
    assert held_out.agreement is not None and held_out.agreement.tolist() == alike.double().tolist()
    assert ignorant > float(losses.mean()) > 0


def test_no_step_is_calibration_only(example: SimpleNamespace, tmp_path: Path) -> None:
    trained = train(example, tmp_path, steps=0)

    assert trained.distillation.chosen == "calibrated" and trained.distillation.loss_final is None
    assert same(trained.network.state_dict(), example.prepared.network().state_dict())


@pytest.mark.parametrize(
    ("learned", "activations_move", "weights_move"),
    [("all", True, True), ("weights", False, True), ("none", False, False)],
)
def test_only_the_chosen_scales_are_learned(
    example: SimpleNamespace, learned: str, activations_move: bool, weights_move: bool
) -> None:
    before, after = example.prepared.network(), stepped(example, steps=5, learned_scales=learned)
    for kinds, moves in (((True, False), activations_move), ((False, True), weights_move)):
        pairs = zip(
            before.scale_parameters(activations=kinds[0], weights=kinds[1]),
            after.scale_parameters(activations=kinds[0], weights=kinds[1]),
            strict=True,
        )
        assert any(not torch.equal(first, second) for first, second in pairs) == moves


def test_weights_are_trained_whatever_is_learned_of_the_scales(example: SimpleNamespace) -> None:
    before, after = example.prepared.network(), stepped(example, steps=3, learned_scales="none")
    pairs = zip(before.weight_parameters(), after.weight_parameters(), strict=True)

    assert all(not torch.equal(first, second) for first, second in pairs)


def test_the_teacher_is_left_as_it_was(example: SimpleNamespace, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in example.teacher.folded.state_dict().items()}
    train(example, tmp_path, steps=3)

    assert same(before, example.teacher.folded.state_dict())
    assert all(parameter.requires_grad for parameter in example.teacher.folded.parameters())


def test_mirrored_targets_are_the_mean_over_both(example: SimpleNamespace, tmp_path: Path) -> None:
    plain = train(example, tmp_path, steps=0).distillation
    mirrored = train(example, tmp_path, steps=0, mirror=True).distillation

    assert plain.loss_calibrated is not None and mirrored.loss_calibrated is not None
    assert mirrored.loss_calibrated > 2 * plain.loss_calibrated, "mirrored digits are other characters"


def test_with_mirrored_targets_a_batch_and_its_mirror_image_are_one(example: SimpleNamespace) -> None:
    images = torch.randint(0, 256, (8, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    losses = []
    for batch in (images, images.flip(3)):
        trainer = trainer_of(example, mirror=True, affinity="fa")
        losses.append(trainer.learner.update(trainer.images.on_device(batch)))

    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert next(iter(trainer_of(example, mirror=True).learner.batches()))[0].shape[0] == BATCH // 2


def test_a_student_equal_to_its_teacher_has_no_negative_loss(example: SimpleNamespace, tmp_path: Path) -> None:
    """A teacher whose logits hardly differ: the KL of rounding errors must not come out below zero."""
    folded = copy.deepcopy(example.teacher.folded)
    for parameter in folded.parameters():
        parameter.data.mul_(1e-3)
    small = {name: Range(scale=1e-6, zero_point=chosen.zero_point) for name, chosen in example.prepared.ranges.items()}
    teacher = replace(example.teacher, folded=folded)
    student = replace(example.prepared, student=teacher, ranges=small)
    record = train(example, tmp_path, student=student, teacher=teacher, steps=2).distillation

    assert record.loss_calibrated is not None and record.loss_calibrated >= 0


def test_the_global_generator_is_left_alone(example: SimpleNamespace, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    train(example, tmp_path, steps=3, affinity="ffa", projections=3)

    assert torch.equal(state, torch.random.get_rng_state())


def test_an_unknown_tap_lists_the_known_ones(example: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--taps nowhere.*stage1"):
        train(example, tmp_path, taps=("nowhere",))
