"""The chain of calls: byte for byte what a run makes, from networks and images at hand."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import faqd
from faqd import settings
from pipeline.config.flags import flags
from tests.faqd.conftest import pixels, small

LEARNING: dict[str, Any] = {"steps": 3, "batch_size": 16, "learning_rate": 1e-4}


@pytest.mark.usefixtures("narrow_digits")
def test_the_chain_makes_the_bytes_and_the_report_of_a_run(tmp_path: Path) -> None:
    bits: Literal[4] = 4
    data: dict[str, Any] = {"calibration_images": 64, "held_out_images": 40}
    config = faqd.RunConfig(
        data=faqd.DataConfig(**data),
        quantisation=faqd.QuantisationConfig(bits=bits),
        distillation=faqd.DistillationConfig(**LEARNING),
        execution=faqd.ExecutionConfig(seed=3),
        output=faqd.OutputConfig(folder=tmp_path / "run"),
    )
    report = faqd.run(config)

    teacher = faqd.load_network("digits")
    opened = faqd.open_images("digits", teacher, seed=3, **data)
    student = faqd.distil(faqd.prepare(teacher, opened, bits=bits), teacher, opened, **LEARNING)
    artifact = faqd.convert(student)

    assert artifact.model == (tmp_path / "run" / "bundle" / "model.onnx").read_bytes()
    assert artifact.float_model == (tmp_path / "run" / "float.onnx").read_bytes()
    assert artifact.save(tmp_path / "saved.onnx").read_bytes() == artifact.model
    judged = faqd.validate(artifact, "digits")
    unlike = {"seconds", "latency", "gates", "run"}  # times are new each time, and a chain is no run
    here, there = ({k: v for k, v in r.to_json().items() if k not in unlike} for r in (judged, report))
    assert here == there
    assert [(gate.name, gate.passed) for gate in judged.gates] == [(gate.name, gate.passed) for gate in report.gates]


def test_the_module_is_what_runs_to_the_bit_before_and_after_a_loop_of_ones_own(
    student: faqd.Student, images: faqd.Images, network: faqd.Network
) -> None:
    mine = faqd.prepare(network, images)
    before = faqd.convert(mine)
    batch = torch.stack([images.training[index] for index in range(8)])
    target = network.folded(batch)[0].detach()
    optimiser = torch.optim.Adam(mine.module.parameters(), lr=1e-2)
    mine.module.train()
    for _ in range(3):
        loss = (mine.module(batch) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    after = faqd.convert(mine)
    assert mine.module.training  # it goes on as it was
    mine.module.eval()
    for artifact, module in ((before, student.module), (after, mine.module)):
        with torch.no_grad():
            simulated = module(batch).numpy()
        assert np.array_equal(artifact.run(batch)["output"], simulated)
    assert before.model != after.model
    report = faqd.validate(after)  # on what was held out, by agreement with the float network
    assert report.accuracy.images == len(images.held_out) and report.distillation is None
    assert report.parity.exact_fraction == 1.0

    with pytest.raises(faqd.UserError, match="this student has been trained already"):
        faqd.distil(mine, network, images, **LEARNING)


def test_distil_leaves_the_student_that_it_is_given(
    student: faqd.Student, network: faqd.Network, images: faqd.Images
) -> None:
    first, second = (faqd.distil(student, network, images, **LEARNING) for _ in range(2))
    assert faqd.convert(first).model == faqd.convert(second).model
    assert first.distillation is not None and first.distillation.steps == 3
    with pytest.raises(faqd.UserError, match="trained already"):
        faqd.distil(first, network, images, **LEARNING)


def test_what_was_distilled_goes_on_from_a_checkpoint(
    student: faqd.Student, network: faqd.Network, images: faqd.Images, tmp_path: Path
) -> None:
    class Interrupted:
        """A user at the keyboard: Ctrl-C at the third step."""

        def stage(self, name: str) -> Any:
            import contextlib

            return contextlib.nullcontext()

        def step(self, done: int, total: int, **figures: float) -> None:
            if figures and done == 3:
                raise KeyboardInterrupt

        def say(self, line: str) -> None: ...

    kept, learning = tmp_path / "kept.safetensors", {**LEARNING, "steps": 6}
    with pytest.raises(KeyboardInterrupt):
        faqd.distil(student, network, images, checkpoint=kept, progress=Interrupted(), **learning)
    assert kept.is_file()
    resumed = faqd.distil(student, network, images, checkpoint=kept, **learning)
    whole = faqd.distil(student, network, images, **learning)
    assert faqd.convert(resumed).model == faqd.convert(whole).model and not kept.exists()


def test_a_captured_network_is_a_copy(images: faqd.Images) -> None:
    model = small().train()
    weight = model[0].weight  # type: ignore[index]  # a Sequential
    captured = faqd.capture(model, torch.zeros(2, 3, 16, 16), mean=(0.5,), std=(0.25,))
    assert model.training and captured.source == "Sequential"
    before = captured.folded(torch.ones(1, 3, 16, 16))[0]
    with torch.no_grad():
        weight.mul_(3)
    assert torch.equal(captured.folded(torch.ones(1, 3, 16, 16))[0], before)
    assert captured.preprocessing.height == 16 and captured.preprocessing.mean == (0.5, 0.5, 0.5)


def test_a_network_without_preprocessing_says_what_is_assumed() -> None:
    captured = faqd.capture(small(), image_size=16)
    assert any("carries no preprocessing" in note and "0.485" in note for note in captured.notes)
    whole = faqd.capture(small(), preprocessing={"height": 16, "width": 16, "mean": 0.5, "std": 0.25})
    assert not any("carries no preprocessing" in note for note in whole.notes)
    assert faqd.capture(small(), preprocessing=whole.preprocessing).preprocessing == whole.preprocessing


def labelled_items() -> list[tuple[Any, int]]:
    return [(Image.fromarray(image.transpose(1, 2, 0)), index % 4) for index, image in enumerate(pixels())]


FORMS: dict[str, Callable[[Path], Any]] = {
    "array": lambda _: pixels(),
    "channels last": lambda _: pixels().transpose(0, 2, 3, 1),
    "tensor": lambda _: torch.from_numpy(pixels()),
    "sequence": lambda _: [image for image, _ in labelled_items()],
    "items with labels": lambda _: labelled_items(),
    "data set": lambda _: TensorDataset(torch.from_numpy(pixels()), torch.arange(24)),
    "npz": lambda folder: folder / "images.npz",
    "name": lambda folder: f"npz:{folder / 'images.npz'}#images",
    "folder": lambda folder: folder / "photos",
    "folder's name": lambda folder: str(folder / "photos"),
}


@pytest.mark.parametrize("form", FORMS)
def test_images_come_in_every_form(form: str, network: faqd.Network, tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=pixels())
    (tmp_path / "photos").mkdir()
    for index, (image, _) in enumerate(labelled_items()):
        image.save(tmp_path / "photos" / f"{index:02}.png")
    opened = faqd.open_images(FORMS[form](tmp_path), network, held_out_images=4, calibration_images=7)
    assert (len(opened), len(opened.training), len(opened.held_out)) == (24, 20, 4)
    assert opened.split.calibration is not None and len(opened.split.calibration) == 7
    expected = (torch.from_numpy(pixels()[opened.held_out.indices]) / 255 - 0.5) / 0.25
    (batch,) = DataLoader(opened.held_out, batch_size=4)
    assert torch.allclose(batch, expected, atol=1e-6)


def test_labels_are_read_where_a_loss_asks_for_them(network: faqd.Network, student: faqd.Student) -> None:
    labels = np.arange(24) % 4
    opened = faqd.open_images((pixels(), labels), network, labels=True, held_out_images=4)
    assert opened.split.labels is not None and list(opened.split.labels) == list(labels)
    with pytest.raises(faqd.UserError, match="no labels; give"):
        faqd.open_images(pixels(), network, labels=True)
    plain = faqd.open_images(pixels(), network)
    with pytest.raises(faqd.UserError, match="--label-weight needs labels, and images at hand was opened without"):
        faqd.distil(student, network, plain, label_weight=1.0, steps=1)
    with pytest.raises(faqd.UserError, match="label"):
        faqd.open_images((pixels(), labels + 2), network, labels=True)  # of six classes, and the network has four


def test_images_to_judge_by_come_in_every_form_too(student: faqd.Student, images: faqd.Images, tmp_path: Path) -> None:
    artifact = faqd.convert(student)
    others = faqd.open_images(pixels(10), images.preprocessing)
    judged = {
        "held out": (faqd.validate(artifact), "agreement", len(images.held_out)),
        "its own": (faqd.validate(artifact, images), "agreement", len(images.held_out)),
        "others": (faqd.validate(artifact, others), "agreement", 10),
        "array": (faqd.validate(artifact, pixels(12)), "agreement", 12),
    }
    for form, (report, metric, count) in judged.items():
        assert (report.accuracy.metric, report.accuracy.images) == (metric, count), form
    with torch.no_grad():
        answers = student.lesson.teacher.folded(torch.stack([others.training[i] for i in range(9)]))[0].argmax(1)
    stored = np.stack([others.training.pixels(i).numpy() for i in range(9)])
    labelled = faqd.validate(artifact, (stored, answers.numpy()))
    assert (labelled.accuracy.metric, labelled.accuracy.teacher) == ("top1", 1.0)
    with pytest.raises(faqd.UserError, match="say the same"):
        faqd.validate(artifact, stored, faqd.ValidationConfig(eval_data="digits"))
    assert faqd.validate(artifact, stored, faqd.ValidationConfig(max_drop=7.0)).gates[0].limit == 7.0


KINDS = ("classes=classes", "map=values")


class Several(nn.Module):
    """A classifier and a map."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.a(x).relu()
        return {"classes": y.mean((2, 3)), "map": self.b(y)}


def test_several_outputs_are_known_by_name() -> None:
    torch.manual_seed(0)
    network = faqd.capture(Several(), torch.zeros(2, 3, 16, 16), output_kinds=KINDS, mean=(0.5,), std=(0.5,))
    images = faqd.open_images(pixels(), network)
    student = faqd.prepare(network, images)
    batch = torch.stack([images.training[index] for index in range(3)])
    with torch.no_grad():
        simulated = student.module(batch)
    outputs = faqd.convert(student).run(batch)
    assert list(simulated) == list(outputs) == ["classes", "map"]
    assert all(np.array_equal(outputs[name], simulated[name].numpy()) for name in outputs)


def test_an_artifact_runs_images_as_they_are_stored(student: faqd.Student, images: faqd.Images) -> None:
    artifact = faqd.convert(student)
    normalised = (torch.from_numpy(pixels(5)) / 255 - 0.5) / 0.25
    for batch in (pixels(5), torch.from_numpy(pixels(5)), normalised.numpy(), normalised.double()):
        assert artifact.run(batch)["output"].shape == (5, 4)
    assert np.array_equal(artifact.run(pixels(5))["output"], artifact.run(normalised)["output"])
    with pytest.raises(faqd.UserError, match=r"normalised images must be float32 \[batch, 3, 16, 16\]"):
        artifact.run(torch.rand(2, 1, 16, 16))


def test_a_network_for_one_image_makes_a_model_for_one_image(images: faqd.Images) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.b(self.a(x).relu().mean((2, 3)).view(1, -1))
            return answer

    torch.manual_seed(0)
    with pytest.raises(faqd.UserError, match="--static-batch 1"):
        faqd.capture(One(), torch.zeros(2, 3, 16, 16))
    network = faqd.capture(One(), torch.zeros(1, 3, 16, 16), static_batch=1, mean=(0.5,), std=(0.25,))
    with pytest.raises(faqd.UserError, match=r"prepare\(static_batch=2\): One takes one image at a time"):
        faqd.prepare(network, images, static_batch=2)
    artifact = faqd.convert(faqd.prepare(network, images))
    assert artifact.run(pixels(3))["output"].shape == (3, 4)


def test_another_architecture_learns_in_float_and_is_prepared(network: faqd.Network, images: faqd.Images) -> None:
    torch.manual_seed(5)
    other = nn.Sequential(nn.Conv2d(3, 8, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    smaller = faqd.capture(other, preprocessing=network.preprocessing, name="other")
    taught = faqd.distil(smaller, network, images, float_steps=2, batch_size=8)
    learned = re.compile("other learned in float for 2 steps: it gives .* % of held-out images the class")
    assert any(learned.match(note) for note in taught.notes), "as a run says it"
    student = faqd.prepare(taught, images, teacher=network)
    artifact = faqd.convert(faqd.distil(student, network, images, **LEARNING))
    report = faqd.validate(artifact)
    assert (report.teacher, report.student) == ("small", "other")


def test_one_number_a_list_and_an_array_say_a_preprocessing_alike() -> None:
    expected = faqd.capture(small(), image_size=16, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)).preprocessing
    said: Any = {"image_size": [16, 16], "mean": 0.5, "std": np.full(3, 0.25)}
    assert faqd.capture(small(), **said).preprocessing == expected


def test_settings_are_the_fields_of_the_sections() -> None:
    left_out = {
        "DataSettings": {"source"},
        "QuantisationSettings": {"quantiser", "dynamic_size"},
        "DistillationSettings": set[str](),
    }
    for name, section in (
        ("DataSettings", faqd.DataConfig),
        ("QuantisationSettings", faqd.QuantisationConfig),
        ("DistillationSettings", faqd.DistillationConfig),
    ):
        fields = {field.name for field in dataclasses.fields(section)}
        listed = get_type_hints(getattr(settings, name))
        assert set(listed) == fields - left_out[name]
        assert {key: get_type_hints(section)[key] for key in listed} == listed
    assert flags(faqd.RunConfig)  # what is left out is a flag of a run, or an argument of another function


def test_progress_hears_of_every_stage(network: faqd.Network, images: faqd.Images) -> None:
    from pipeline.tools.progress import LineProgress

    lines = list[str]()
    progress = LineProgress(lines.append)
    student = faqd.distil(
        faqd.prepare(network, images, progress=progress), network, images, progress=progress, **LEARNING
    )
    faqd.validate(faqd.convert(student, progress=progress), progress=progress)
    stages = [line.split()[0] for line in lines if line.split()[1:3][-1:] == ["s"]]
    assert stages == ["observe", "reconstruct", "distil", "convert", "validate"]
