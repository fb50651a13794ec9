"""Reconstruction of a whole student: nearer to its teacher before any training, kept, only where it is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from backends.facts.widths import Widths
from backends.placement.place import place
from calibration.errors import UserError
from calibration.simulation.reconstruction.block_by_block import BlockChange
from calibration.simulation.reconstruction.reconstruction import Reconstruction
from pipeline.artifacts import PreparedStudent
from pipeline.config import QuantisationConfig
from pipeline.images.calibration_images import calibration_indices
from pipeline.images.data import ordered_batches
from pipeline.images.preprocessing import normalise
from pipeline.stages.observe import corrected
from pipeline.stages.reconstruct import MOST_MISSED, Remarks, missed_of_outputs, reconstruct, remarks_on_blocks
from pipeline.tools.kept import Kept

TWO_BITS = QuantisationConfig(bits=2)


@pytest.fixture
def student(example: SimpleNamespace) -> PreparedStudent:
    plan = place(example.prepared.folded, example.backend.profile, Widths(weights=2))
    return corrected(replace(example.prepared, plan=plan, quantisation=TWO_BITS), example.images)


def far_from_teacher(example: SimpleNamespace, student: PreparedStudent) -> float:
    """Mean squared difference from the teacher's logits on held-out images."""
    network, preprocessing, far = student.network().eval(), example.teacher.preprocessing, []
    with torch.no_grad():
        for batch in ordered_batches(example.images.source, example.images.held_out, preprocessing, batch_size=64):
            inputs = normalise(batch.images, preprocessing)
            far.append((network(inputs)[0] - example.teacher.folded(inputs)[0]).square().mean(1))
    return float(torch.cat(far).mean())


def test_three_levels_come_nearer_to_the_teacher(example: SimpleNamespace, student: PreparedStudent) -> None:
    better = reconstruct(student, example.images, seed=0)
    assert far_from_teacher(example, better) < 0.7 * far_from_teacher(example, student)
    assert better.notes[:-1] == student.notes
    assert "rounded by least squares on" in better.notes[-1]
    # The float network has its own weights still, and so has a student that is to begin with them.
    for name, parameter in student.network(corrected=False).state_dict().items():
        assert torch.equal(parameter, better.network(corrected=False).state_dict()[name])


def test_one_layer_is_one_layer() -> None:
    (line,) = remarks_on_blocks([BlockChange(layers=1, before=0.2, after=0.05)], count=1)
    assert line.startswith("the weights of 1 layer are rounded by least squares on 1 image: what ")
    assert line.endswith("from 20 to 5 %")
    (line,) = remarks_on_blocks([BlockChange(layers=2, before=0.2, after=0.05)], count=64)
    assert line.startswith("the weights of 2 layers are rounded by least squares on 64 images: what ")
    assert remarks_on_blocks([], count=64) == ()


def test_what_is_kept_is_not_found_again(example: SimpleNamespace, student: PreparedStudent, tmp_path: Path) -> None:
    kept = Kept(tmp_path / "reconstructed.safetensors", "run")
    better = reconstruct(student, example.images, seed=0, place=kept)
    nothing = replace(example.images, training=example.images.training[:0])
    again = reconstruct(student, nothing, seed=1, place=kept)
    assert again.notes == better.notes
    weights, loaded = better.network().state_dict(), again.network().state_dict()
    assert all(torch.equal(weights[name], loaded[name]) for name in weights)


def test_what_is_another_network_s_is_refused(
    example: SimpleNamespace, student: PreparedStudent, tmp_path: Path
) -> None:
    kept = Kept(tmp_path / "reconstructed.safetensors", "run")
    reconstruct(student, example.images, seed=0, place=kept)
    path = next(iter(student.network().weight_grids()))
    tensors = Reconstruction(constants={path: torch.zeros(3)}).tensors()
    kept.save(tensors, Remarks(remarks=()))
    with pytest.raises(UserError, match=rf"reconstructed.safetensors is damaged \(it speaks of {path}"):
        reconstruct(student, example.images, seed=0, place=kept)


@pytest.mark.parametrize(
    ("asked", "rounding"),
    [
        (QuantisationConfig(), "auto"),
        (QuantisationConfig(rounding="nearest"), "nearest"),
        (QuantisationConfig(bits=4), "least-squares"),
        (QuantisationConfig(bits=4, rounding="nearest"), "nearest"),
        (QuantisationConfig(rounding="least-squares"), "least-squares"),
    ],
)
def test_what_is_asked_for(asked: QuantisationConfig, rounding: str, student: PreparedStudent) -> None:
    assert asked.resolved_rounding == rounding
    if rounding == "nearest":
        nearest = replace(student, quantisation=asked)
        assert reconstruct(nearest, None, seed=0) is nearest  # type: ignore[arg-type]  # no image is looked at


def test_at_eight_bits_the_network_decides(
    example: SimpleNamespace, student: PreparedStudent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(tmp_path / "reconstructed.safetensors", "run")
    plan = place(example.prepared.folded, example.backend.profile, Widths(weights=8))
    eight = corrected(replace(example.prepared, plan=plan, quantisation=QuantisationConfig()), example.images)
    assert missed_of_outputs(eight, example.images) < 0.001
    assert reconstruct(eight, example.images, seed=0, place=kept) is eight and not kept.exists()
    # Weights of two bits stand for a network that eight bits do not suffice.
    coarse = replace(student, quantisation=QuantisationConfig())
    missed = missed_of_outputs(coarse, example.images)
    assert missed > MOST_MISSED
    better = reconstruct(coarse, example.images, seed=0, place=kept)
    assert f"misses {100 * missed:.2g} % of its outputs' variance: at 8 bits too" in better.notes[-2]
    assert missed_of_outputs(better, example.images) < 0.7 * missed
    monkeypatch.setattr("pipeline.stages.reconstruct.missed_of_outputs", None)
    assert reconstruct(coarse, example.images, seed=0, place=kept).notes == better.notes


def test_what_stands_still_misses_nothing(
    example: SimpleNamespace, student: PreparedStudent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A constant output that its grid does not hold has no variance; one as small as you like has."""
    exact = torch.linspace(-1, 1, 32)[:, None]
    for float_output, simulated, missed in (
        (torch.full((32, 1), 0.7), torch.full((32, 1), 0.71), 0.0),
        (0.7 + 1e-4 * exact, torch.full((32, 1), 0.71), 0.0),
        (torch.zeros(32, 1), torch.zeros(32, 1), 0.0),
        (1e-25 * exact, torch.zeros(32, 1), 1.0),
    ):
        outputs = iter([[simulated.double()], [float_output.double()]])
        monkeypatch.setattr("pipeline.stages.reconstruct._outputs", lambda *_, outputs=outputs: next(outputs))
        assert missed_of_outputs(student, example.images) == pytest.approx(missed)


def test_what_is_missed_by_hand(example: SimpleNamespace, student: PreparedStudent) -> None:
    """The mean over the images is worth nothing, and misses all."""
    indices = calibration_indices(example.images)
    chosen, preprocessing = indices[:: -(-len(indices) // 32)], example.teacher.preprocessing
    (batch,) = ordered_batches(example.images.source, chosen, preprocessing, batch_size=64)
    shown = normalise(batch.images, preprocessing)
    with torch.no_grad():
        exact, simulated = example.teacher.folded(shown)[0], student.network().eval()(shown)[0]
    missing = (simulated - exact).double().square().sum() / (exact - exact.mean(0)).double().square().sum()
    assert missed_of_outputs(student, example.images) == pytest.approx(float(missing), rel=1e-3)
