"""What all benchmarks share: where rows are kept and shown as tables, how many threads, networks set up as a run does.

Environment: FAQD_BENCHMARK_OUTPUT folder of the tables and of the rows they are made from (a temporary one by
default; its path is printed); FAQD_BENCHMARK_THREADS threads of training (2 by default); FAQD_SHARED the shared data
and checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import faqd
from backends.base import Backend
from faqd.settings import QuantisationSettings
from pipeline.artifacts import Lesson, PreparedStudent
from pipeline.distillation.training.schedule import Schedule, resolve_device, schedule_of
from pipeline.images.split_images import SplitImages
from pipeline.setup.machine.circumstances import host, versions
from pipeline.stages.targets import lesson_for

BATCH = 64
"""Images that go through a network at a time where they are scored."""
DEFAULT_THREADS = 2  # the machine that the figures are promised for has two cores
_SHOWN_VERSIONS = ("faqd", "python", "torch", "onnx", "onnxruntime", "numpy")

Row = dict[str, Any]
Columns = Mapping[str, Callable[[Row], object]]
"""Heading -> function from a row to what its cell shows; None is shown as a dash."""


class Results:
    """The rows of one benchmark: appended to NAME.jsonl as they are measured, shown as the table NAME.md.

    Rows of earlier runs in the same folder stay, so a benchmark whose cases run one by one has them in one table.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self._kept, self._table = folder, folder / f"{name}.jsonl", folder / f"{name}.md"

    def beside(self, name: str) -> Results:
        """The rows of another benchmark in the same folder."""
        return Results(self.folder, name)

    def rows(self) -> list[Row]:
        """All rows so far, oldest first; a last line that a killed run left unfinished is dropped."""
        if not self._kept.exists():
            return []
        text = self._kept.read_text(encoding="utf-8")
        complete = text[: text.rfind("\n") + 1]
        if complete != text:
            self._kept.write_text(complete, encoding="utf-8")
        return [json.loads(line) for line in complete.splitlines()]

    def find(self, key: Mapping[str, Any]) -> Row | None:
        """The newest row whose key is this one."""
        return next((row for row in reversed(self.rows()) if row["key"] == dict(key)), None)

    def newest(self) -> list[Row]:
        """The newest row of every key, in the order in which the keys first came."""
        latest: dict[str, Row] = {}
        for row in self.rows():
            latest[json.dumps(row["key"], sort_keys=True)] = row
        return list(latest.values())

    def add(self, key: Mapping[str, Any], **measured: Any) -> None:
        """Keep a row: what `key` says was measured, the figures, and where and when."""
        self.rows()  # ends the file at a whole line
        row = {"key": dict(key), **measured, "circumstances": _circumstances()}
        with self._kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def publish(self, title: str, columns: Columns, rows: Sequence[Row], *, notes: Sequence[str] = ()) -> None:
        """Print the rows as a table and write it, under when and where they were measured."""
        cells = [[_text(show(row)) for show in columns.values()] for row in rows]
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
            for line in (list(columns), ["-" * width for width in widths], *cells)
        ]
        said = [_circumstances_of(row) for row in rows]
        all_notes = [*_said([one for several in said for one in several]), *notes]
        text = "\n".join([f"# {title}", "", *(f"- {note}" for note in all_notes), "", *lines, ""])
        self._table.write_text(text, encoding="utf-8")
        print(f"\n{text}\n{self._table}")


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A student that is calibrated as `faqd run` calibrates it, with everything that its training takes."""

    config: faqd.RunConfig
    backend: Backend
    lesson: Lesson
    prepared: PreparedStudent
    opened: faqd.Images

    @property
    def teacher(self) -> faqd.Network:
        """The network that is quantised."""
        return self.lesson.teacher

    @property
    def images(self) -> SplitImages:
        """The images that calibrate, train and judge."""
        return self.lesson.images

    def calibrating(self) -> list[Tensor]:
        """As many images as its calibration reads, normalised, float32 [B, C, H, W] each."""
        training = self.opened.training
        count = min(self.config.data.calibration_images, len(training))
        return list(torch.split(torch.stack([training[index] for index in range(count)]), BATCH))

    def schedule(self, steps: int | None = None) -> Schedule:
        """The run's schedule at the rates that it offers, over another number of steps if one is given."""
        config = self.config
        device, graph = resolve_device(config.execution.device), self.prepared.folded
        made = schedule_of(config.distillation, config.quantisation, graph, device, images=len(self.images.training))
        return replace(made, steps=made.steps if steps is None else steps, tries_rates=False)

    def training(self, affinity: str) -> tuple[PreparedStudent, Lesson, faqd.DistillationConfig, faqd.ExecutionConfig]:
        """What the run's training takes, with another form of the affinity."""
        settings = replace(self.config.distillation, affinity=affinity)  # type: ignore[arg-type]  # checked at birth
        return self.prepared, self.lesson, settings, self.config.execution


def make_ready(config: faqd.RunConfig) -> Ready:
    """Teacher, images and calibrated student of a configuration, in process, by the face."""
    asked, data = config.teacher, vars(config.data)
    quantisation = {
        key: value for key, value in vars(config.quantisation).items() if key in QuantisationSettings.__annotations__
    }
    teacher = faqd.load_network(asked.source, weights=asked.weights[0], **config.preprocessing.overrides())
    settings = {key: data[key] for key in ("workers", "augmentation", "calibration_images", "held_out_images")}
    images = faqd.open_images(config.data.source, teacher, seed=config.execution.seed, **settings)
    student = faqd.prepare(teacher, images, **quantisation)
    # What the face decides inside of `faqd.distil`: benchmarks time single steps of it.
    lesson, _ = lesson_for((teacher,), images.split, config.distillation)
    return Ready(config=config, backend=student.backend, lesson=lesson, prepared=student.prepared, opened=images)


@dataclass(frozen=True, kw_only=True)
class Cifar:
    """The shared CIFAR sample and the checkpoints of the networks trained for it."""

    folder: Path

    @property
    def unlabelled(self) -> str:
        """Source of the images that calibrate and train."""
        return f"npz:{self.folder / 'data' / 'cifar10_sample.npz'}#unlabelled"

    @property
    def test(self) -> str:
        """Source of the labelled images that score."""
        return f"npz:{self.folder / 'data' / 'cifar10_sample.npz'}#test_images,test_labels"

    def labelled(self, network: faqd.Network) -> list[tuple[Tensor, Tensor]]:
        """The images that score, normalised, float32 [B, 3, 32, 32] each, and their labels [B]."""
        p = network.preprocessing
        with np.load(self.folder / "data" / "cifar10_sample.npz") as arrays:
            pixels, labels = (torch.from_numpy(arrays[key]) for key in ("test_images", "test_labels"))
        assert tuple(pixels.shape[1:]) == (p.channels, p.height, p.width)  # nothing is to be resized
        divisor, mean, std = (torch.tensor(v).reshape(1, -1, 1, 1) for v in (float(p.divisor), p.mean, p.std))
        images = (pixels.float() / divisor - mean) / std
        return list(zip(torch.split(images, BATCH), torch.split(labels.long(), BATCH), strict=True))

    def weights(self, network: str) -> Path:
        """Checkpoint of a network such as resnet20."""
        return self.folder / "models" / f"{network}_cifar10.safetensors"

    def config(self, network: str, *, bits: int, seed: int = 0) -> faqd.RunConfig:
        """The default run of a network on these images."""
        return faqd.RunConfig(
            teacher=faqd.TeacherConfig(sources=(f"cifar:{network}",), files=(str(self.weights(network)),)),
            data=faqd.DataConfig(source=self.unlabelled),
            quantisation=faqd.QuantisationConfig(bits=bits),  # type: ignore[arg-type]  # checked by the dataclass
            execution=faqd.ExecutionConfig(seed=seed),
        )


@pytest.fixture(scope="session")
def benchmark_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tables: $FAQD_BENCHMARK_OUTPUT, else a temporary one."""
    named = os.environ.get("FAQD_BENCHMARK_OUTPUT")
    folder = Path(named) if named else tmp_path_factory.mktemp("benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def results(benchmark_folder: Path, request: pytest.FixtureRequest) -> Results:
    """The rows of the benchmark that asks, in a file named after its own."""
    return Results(benchmark_folder, request.path.stem.removeprefix("test_"))


@pytest.fixture
def training_threads() -> Iterator[int]:
    """How many threads torch uses in this test."""
    before, threads = torch.get_num_threads(), int(os.environ.get("FAQD_BENCHMARK_THREADS") or DEFAULT_THREADS)
    torch.set_num_threads(threads)
    yield threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def cifar(shared_folder: Path) -> Cifar:
    """The shared CIFAR sample and its networks."""
    return Cifar(folder=shared_folder.resolve())


@pytest.fixture(scope="session")
def ready() -> Callable[[faqd.RunConfig], Ready]:
    """Builder of a calibrated student from a configuration."""
    return make_ready


def _circumstances() -> Row:
    machine, installed = host(), versions()
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "host": f"{machine['processor']}, {machine['cores']} cores, {machine['integer_instructions']}",
        "versions": ", ".join(f"{name} {installed[name]}" for name in _SHOWN_VERSIONS if name in installed),
        "code": _fingerprint(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def _fingerprint() -> str:
    """Eight hexadecimal digits that change with any line of the packages: rows of older code can be told."""
    root, digest = Path(__file__).resolve().parents[2], hashlib.blake2b(digest_size=4)
    for package in ("calibration", "backends", "pipeline"):
        for file in sorted((root / package).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _circumstances_of(row: Row) -> list[Row]:
    """Those of one measurement, or of all that a row sums up."""
    circumstances = row["circumstances"]
    return circumstances if isinstance(circumstances, list) else [circumstances]


def _said(circumstances: Sequence[Row]) -> list[str]:
    """Date, host, versions, state of the code and load, one line each; several values where they differ."""
    lines = []
    for name in ("date", "host", "versions", "code"):
        values = list(dict.fromkeys(one[name] for one in circumstances))
        shown = f"{min(values)} to {max(values)}" if name == "date" and len(values) > 1 else "; ".join(values)
        lines.append(f"{name}: {shown}")
    loads = [one["load"] for one in circumstances if one["load"] is not None]
    if loads:
        lines.append(f"load average of the machine after each row: {min(loads)} to {max(loads)}")
    return lines


def _text(value: object) -> str:
    return "-" if value is None else str(value)
