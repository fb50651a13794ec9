"""What the functions of the chain return: images, a quantised student and its artifact, which show themselves."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from backends import title_of
from backends.base import Backend
from backends.onnx_file.serialised import Serialised, size_of
from calibration.errors import UserError
from calibration.graph.copies import Unpicklable
from calibration.simulation.prepared import PreparedNetwork
from faqd.images_at_hand import run_model
from pipeline.artifacts import Lesson, Network, PreparedStudent, QuantisedStudent
from pipeline.bundle.bundle import write_model
from pipeline.config import DistillationConfig
from pipeline.images.loading import Reader
from pipeline.images.preprocessing import Preprocessing, normalise
from pipeline.images.sources.image_source import ImageSource
from pipeline.images.split_images import SplitImages
from pipeline.report.cards import Card, Shown
from pipeline.report.charts import Bar, line_chart
from pipeline.report.schema import Distillation
from pipeline.report.wording import kilobytes
from pipeline.stages.imagine import preview
from pipeline.tools.atomic import check_place
from pipeline.validation.layer_report import layers_of

_SHOWN_IMAGES = 8


@final
class ImageSet(Dataset[Tensor]):
    """Some images as a map-style data set of tensors float32 [C, H, W], as the network takes them."""

    def __init__(self, source: ImageSource, indices: NDArray[np.int64], preprocessing: Preprocessing) -> None:
        self.indices, self.preprocessing, self._reader = indices, preprocessing, Reader(source, preprocessing)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int | slice) -> Tensor:
        """One image, normalised, or those of a slice, float32 [N, C, H, W].

        Raises UserError where one cannot be read, and IndexError behind the last, as sequences do.
        """
        if isinstance(index, slice):
            p, places = self.preprocessing, range(*index.indices(len(self)))
            return torch.stack([self[i] for i in places]) if places else torch.empty(0, p.channels, p.height, p.width)
        if not hasattr(index, "__index__"):
            raise UserError(
                f"images[{index!r:.60}]: must be a whole number or a slice; several by their numbers are"
                " torch.stack([images[i] for i in numbers])"
            )
        return normalise(self.pixels(operator.index(index))[None], self.preprocessing)[0]

    def pixels(self, index: int) -> Tensor:
        """One image as the device prepares it, uint8 [C, H, W]. Raises UserError where it cannot be read."""
        place, array = int(self.indices[index]), self._reader.array
        if array is not None:
            return array.prepared(np.array([place]), self.preprocessing)[0]
        image = self._reader.plain(place)
        if image is None:
            name, reason = self._reader.bad[place]
            raise UserError(f"{name} cannot be read: {reason}; take it out of the images")
        return image


@final
@dataclass(frozen=True, kw_only=True)
class Images(Shown):
    """Images for one network: most calibrate and train, the rest is held out to judge the result."""

    split: SplitImages
    preprocessing: Preprocessing
    seed: int
    """By which they were divided, and by which `faqd.distil` draws unless another is given."""

    @property
    def training(self) -> ImageSet:
        """Those that train, for a loop of your own: `DataLoader(images.training, 64, shuffle=True)`."""
        return ImageSet(self.split.source, self.split.training, self.preprocessing)

    @property
    def held_out(self) -> ImageSet:
        """Those that no training sees, by which `faqd.validate` judges unless other images are given."""
        return ImageSet(self.split.source, self.split.held_out, self.preprocessing)

    def __len__(self) -> int:
        return len(self.split.source)

    def __str__(self) -> str:
        return self._card(picture=None).text()

    def __repr__(self) -> str:
        return f"<Images {self.split.source.name}, {len(self)}>"

    def _repr_html_(self) -> str:
        held_out = self.held_out
        sheet = np.stack([held_out.pixels(index).numpy() for index in range(min(_SHOWN_IMAGES, len(held_out)))])
        return self._card(picture=preview(sheet)).html()

    def _card(self, *, picture: str | None) -> Card:
        images, p = self.split, self.preprocessing
        calibrate = len(images.training if images.calibration is None else images.calibration)
        return Card(
            title=f"{images.source.name}: {len(self)} images",
            facts=(
                ("training", f"{len(images.training)}, of which {calibrate} calibrate"),
                ("held out", str(len(images.held_out))),
                ("as", f"float32 [batch, {p.channels}, {p.height}, {p.width}], seed {self.seed}"),
                *(("note", note) for note in images.source.notes),
            ),
            picture=picture,
        )


@final
class Simulation(Unpicklable, nn.Module):
    """A quantised student as a plain module, which any loop can train.

    Takes images float32 [B, C, H, W], normalised as the network's own are. Returns the output, or where there are
    several a dictionary of them by name. In evaluation mode these are the numbers that the runtime will compute.
    """

    def __init__(self, network: PreparedNetwork, names: tuple[str, ...], sizes: tuple[int, int | None, int | None]):
        super().__init__()
        self.network, self.names = network, names
        #: Channels, height and width of images; None where any height or width is taken.
        self.sizes = sizes

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """Normalised images, float32 [B, C, H, W], to what the network gives.

        Raises UserError for images of another form or size: of those nothing is calibrated, and no file takes them.
        """
        self._check(images)
        outputs: tuple[Tensor, ...] = self.network(images)
        return outputs[0] if len(outputs) == 1 else dict(zip(self.names, outputs, strict=True))

    def _check(self, images: Tensor) -> None:
        sizes = tuple(images.shape[1:]) if isinstance(images, Tensor) and images.ndim == 4 else (0, 0, 0)
        if all(expected in (None, size) for expected, size in zip(self.sizes, sizes, strict=True)) and any(sizes):
            own = next(self.parameters()).dtype
            if images.dtype == own or (images.is_floating_point() and torch.is_autocast_enabled(images.device.type)):
                return
        shown = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else f"a {type(images).__name__}"
        axes = ", ".join(str(size or axis) for size, axis in zip(self.sizes, ("", "height", "width"), strict=True))
        raise UserError(
            f"student.module({shown}): takes normalised images, float32 [batch, {axes}], as it was prepared for; one"
            " image is image[None], and another size another faqd.capture(image_size=...) or dynamic_size=True"
        )

    def weight_parameters(self) -> list[nn.Parameter]:
        """Everything that learns but the scales of the grids."""
        return self.network.weight_parameters()

    def scale_parameters(self) -> list[nn.Parameter]:
        """The logarithms of the grids' scales, which learn at rates of their own: 1e-3 of Adam is what ours do."""
        return self.network.scale_parameters(activations=True, weights=True)


@final
@dataclass(frozen=True, kw_only=True)
class Student(Unpicklable, Shown):
    """A quantised network that computes as its runtime will: calibrated, trainable, and ready to be converted."""

    module: Simulation
    """Trained in place by `faqd.distil`'s result, or by a loop of your own."""
    prepared: PreparedStudent
    network: Network
    """In float, as it was before it was prepared."""
    lesson: Lesson
    """Its teachers, the network itself first where no other was named, and the images."""
    backend: Backend
    seed: int
    shown: Tensor
    """A few normalised images on which all graphs and files are held against the user's module."""
    notes: tuple[str, ...] = ()
    settings: DistillationConfig | None = None
    distillation: Distillation | None = None
    """What `faqd.distil` did; None before it, and where a loop of your own has trained."""

    def __str__(self) -> str:
        return self._card().text()

    def __repr__(self) -> str:
        return f"<Student {self.title}>"

    def _repr_html_(self) -> str:
        return self._card().html()

    @property
    def title(self) -> str:
        """The network, its runtime and widths in half a line."""
        asked, variant = self.prepared.quantisation, self.backend.profile.variant
        grid = f"W{asked.bits}A{asked.activation_bits}"
        return f"{self.network.source} -> {title_of(self.backend.name)} {grid}" + (f" ({variant})" if variant else "")

    def _card(self) -> Card:
        plan, done = self.prepared.plan, self.distillation
        layers = layers_of(plan, None, {})
        integer = len(plan.integer_layers())
        images = self.lesson.images
        calibrated = len(images.training if images.calibration is None else images.calibration)
        facts = [
            ("layers", f"{integer} of {len(layers)} weighted layers multiply integers"),
            ("calibrated", f"on {calibrated} images of {images.source.name}, seed {self.seed}"),
        ]
        if done is not None:
            losses = [f"{loss:.4g}" for loss in (done.loss_calibrated, done.loss_final) if loss is not None]
            held_out = f", held-out loss {' -> '.join(losses)}" if losses else ""
            facts.append(("distilled", f"{done.steps} steps{held_out}; {done.chosen} weights kept"))
        return Card(
            title=self.title,
            facts=(*facts, *(("note", note) for note in (*self.notes, *self.prepared.notes))),
            heading=("layer", "kind", "weight bits", "remark"),
            rows=tuple((layer.name, layer.kind, str(layer.weight_bits or "float"), layer.reason) for layer in layers),
            chart=None if done is None else line_chart(done.curve),
        )


@final
@dataclass(frozen=True, kw_only=True)
class Artifact(Unpicklable, Shown):
    """A model file for its runtime, with all that is needed to run and to judge it here."""

    student: Student
    quantised: QuantisedStudent

    @property
    def model(self) -> Serialised:
        """The serialised model: bytes, or graph and weights apart where one file cannot hold them."""
        return self.quantised.compiled.model

    @property
    def float_model(self) -> Serialised:
        """Its float counterpart, for comparisons."""
        return self.quantised.compiled.float_model

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed and decided on the way."""
        return (*self.student.notes, *self.quantised.notes)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the model to a file, at once, and its weights beside it where one file cannot hold them; the path.

        Raises UserError when the place cannot be written.
        """
        if not isinstance(path, str | PathLike):
            raise UserError(f"Artifact.save takes the path of a file, not a {type(path).__name__}")
        check_place(written := Path(path).expanduser(), flag="Artifact.save:")
        write_model(written, self.model)
        return written

    def run(self, images: Any, *, threads: int = 1) -> Mapping[str, NDArray[np.float32]]:
        """Every output by name, for images, computed by the runtime.

        `images`: normalised, float32 [B, C, H, W], or anything that `faqd.open_images` takes, in its order.

        Raises UserError where the runtime is not here, or the images are of another form or cannot be read.
        """
        network, quantised = self.student.network, self.quantised
        return run_model(
            quantised.backend,
            self.model,
            images,
            network.preprocessing,
            [output.name for output in network.outputs],
            threads=threads,
            any_size=network.other is not None,
        )

    def __str__(self) -> str:
        return self._card().text()

    def __repr__(self) -> str:
        return f"<Artifact {self.student.title}>"

    def _repr_html_(self) -> str:
        return self._card().html()

    def _card(self) -> Card:
        sizes = {"float": size_of(self.float_model), "quantised": size_of(self.model)}
        largest = max(sizes.values())
        p, absent = self.student.network.preprocessing, self.quantised.backend.unavailable()
        outputs = ", ".join(f"{output.name} ({output.holds})" for output in self.student.network.outputs)
        return Card(
            title=self.student.title,
            facts=(
                ("input", f"float32 [batch, {p.channels}, {p.height}, {p.width}]"),
                ("outputs", outputs),
                ("size", ", ".join(f"{kind} {kilobytes(size)}" for kind, size in sizes.items())),
                ("runs here", "yes" if absent is None else absent),
                *(("note", note) for note in self.notes),
            ),
            bars=(
                (
                    "Model file",
                    tuple(
                        Bar(label=kind, value=kilobytes(size), share=100 * size / largest, kind=kind)
                        for kind, size in sizes.items()
                    ),
                ),
            ),
        )


def snapshot(module: Simulation) -> PreparedNetwork:
    """A copy of what a module computes now, on the CPU and in evaluation mode, which no training changes.

    Raises UserError where its numbers are no float32, in which runtimes compute: others would round elsewhere.
    """
    for name, values in module.network.state_dict().items():
        if values.is_floating_point() and values.dtype != torch.float32:
            kind = str(values.dtype).removeprefix("torch.")
            raise UserError(
                f"convert: the student's module holds {kind} ({name}), and runtimes compute in float32: call"
                " student.module.float() first, and train under torch.autocast where you want half types"
            )
    with torch.no_grad():
        return copy.deepcopy(module.network).cpu().eval()
