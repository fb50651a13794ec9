"""What stages hand to each other, and what of it a folder keeps so that a killed run can go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule

from backends.base import Backend
from backends.onnx_file.serialised import Serialised
from calibration.graph.copies import Unpicklable
from calibration.plan import Plan
from calibration.ranges.observation import Range
from calibration.simulation.correction import Corrections
from calibration.simulation.insert import FirstScales, insert
from calibration.simulation.prepared import PreparedNetwork
from calibration.simulation.reconstruction.reconstruction import Reconstruction
from pipeline.config.quantisation import QuantisationConfig
from pipeline.images.preprocessing import Preprocessing
from pipeline.images.split_images import SplitImages
from pipeline.networks.models import preprocessing_words
from pipeline.networks.outputs.meaning import Output
from pipeline.report.cards import Card, Shown
from pipeline.report.schema import Distillation
from pipeline.tools.kept import Kept

#: Names of the files that the artifact and its float counterpart are written to.
MODEL, FLOAT_MODEL = "model.onnx", "float.onnx"


@dataclass(frozen=True, kw_only=True)
class Network(Unpicklable, Shown):
    """A float network as a folded graph, with what its images must look like."""

    source: str
    module: nn.Module
    """As it was handed over: what the graphs must compute. They have its parameters in memory with it."""
    captured: GraphModule
    """As captured, its BatchNorms not yet folded."""
    folded: GraphModule
    preprocessing: Preprocessing
    outputs: tuple[Output, ...]
    fold_difference: float
    """Largest difference that folding made to an output, relative to the largest output."""
    notes: tuple[str, ...]
    other: GraphModule | None = None
    """The folded graph for images of another size, where it is free; the interface of `folded` says what follows it."""

    def __str__(self) -> str:
        return self._card().text()

    def __repr__(self) -> str:
        return f"<Network {self.source}>"

    def _repr_html_(self) -> str:
        return self._card().html()

    def _card(self) -> Card:
        parameters = sum(parameter.numel() for parameter in self.folded.parameters())
        rows = [
            (output.name, " x ".join(map(str, ("batch", *output.shape))), _held(output), ", ".join(output.names[:3]))
            for output in self.outputs
        ]
        return Card(
            title=f"{self.source}, float32",
            facts=(
                ("images", preprocessing_words(self.preprocessing)),
                ("parameters", f"{parameters:,}"),
                *(("note", note) for note in self.notes),
            ),
            heading=("output", "shape", "holds", "first classes"),
            rows=tuple(rows),
        )


def _held(output: Output) -> str:
    """What an output holds, in a word or two."""
    if output.embedding:
        return "an embedding"
    return output.holds if output.activation is None else f"{output.holds} ({output.activation})"


@dataclass(frozen=True, kw_only=True)
class GeneratedImages:
    """Images made from a network alone, as a decoder would hand them over."""

    pixels: NDArray[np.uint8]
    """[N, C, H, W]."""
    remarks: tuple[str, ...]
    """What there is to say of them."""

    def save(self, place: Kept) -> None:
        """Keep them as one file."""
        place.save({"images": torch.from_numpy(self.pixels)}, _Remarks(remarks=self.remarks))

    @classmethod
    def load(cls, place: Kept) -> GeneratedImages:
        """What `save` kept. Raises UserError when the file is damaged, or another run's."""
        tensors, record = place.load(_Remarks)
        pixels = tensors.get("images", torch.zeros(0)).numpy()
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or not pixels.size:
            raise place.damaged(f"it holds no images, but {pixels.dtype} {list(pixels.shape)}")
        return cls(pixels=pixels, remarks=record.remarks)


@dataclass(frozen=True, kw_only=True)
class _Remarks:
    """What a file says of the images in it."""

    remarks: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a student is to learn: to be its teachers, on these images."""

    teachers: tuple[Network, ...]
    """The first says what images look like and what outputs hold; students learn the mean of all."""
    images: SplitImages
    mirror: bool = False
    """Whether targets are averaged over each image and its mirror image, which is in the same batch (see
    `pipeline.distillation.training.mirror`)."""

    @property
    def teacher(self) -> Network:
        """The first teacher."""
        return self.teachers[0]


@dataclass(frozen=True, kw_only=True)
class FloatWeights:
    """What a float student has learned."""

    tensors: Mapping[str, Tensor]
    """Its parameters and statistics by name, on the CPU."""
    agreement: float
    """The share of held-out images, 0 to 1, that it decides as it was asked to; of values, R2."""

    def save(self, place: Kept) -> None:
        """Keep them as one file."""
        place.save(self.tensors, _Agreement(agreement=self.agreement))

    @classmethod
    def load(cls, place: Kept) -> FloatWeights:
        """What `save` kept. Raises UserError when the file is damaged, or another run's."""
        tensors, record = place.load(_Agreement)
        return cls(tensors=tensors, agreement=record.agreement)


@dataclass(frozen=True, kw_only=True)
class _Agreement:
    """What a file says of the weights in it."""

    agreement: float


@dataclass(frozen=True, kw_only=True)
class PreparedStudent:
    """A student with quantisers and calibrated ranges; `network()` builds it anew, always the same."""

    student: Network
    plan: Plan
    ranges: Mapping[str, Range]
    quantisation: QuantisationConfig
    """What was asked for: the bits that it was planned with, how its grids learn, what its file is to be."""
    corrections: Corrections = field(default_factory=Corrections)
    reconstruction: Reconstruction = field(default_factory=Reconstruction)
    """Weights that are not rounded to their nearest integers, where reconstruction has found better ones."""
    notes: tuple[str, ...] = ()
    """What was decided on the way, for the report."""
    _first_scales: dict[GraphModule, FirstScales] = field(default_factory=dict, repr=False, compare=False)
    """What weights' grids begin with, by the float graph that holds the weights; searched for when a network is first
    built of it, for this student and all that `replace` makes of it."""

    @property
    def folded(self) -> GraphModule:
        """The float graph that the plan is of."""
        return self.student.folded

    def network(self, *, trainable: bool = False, corrected: bool = True) -> PreparedNetwork:
        """The prepared network, calibrated, `corrected` and reconstructed or with the float weights as they are.

        What is not corrected shares the float network's memory unless it is `trainable`; then the float weights, as far
        as roundings allow, stand behind those that are reconstructed.
        """
        first_scales = self._first_scales.setdefault(self.folded, {})
        network = insert(self.folded, self.plan, self.ranges, shared=not trainable, first_scales=first_scales)
        if not corrected:
            return network
        towards = self.folded if trainable else None
        return self.reconstruction.apply(self.corrections.apply(network), towards=towards)

    def save(self, place: Kept) -> None:
        """Keep plan, ranges, corrections and notes as one JSON file; what is reconstructed is kept by itself."""
        biases, factors = (
            {name: tuple(values.tolist()) for name, values in table.items()}
            for table in (self.corrections.biases, self.corrections.factors)
        )
        place.save_json(
            _KeptPreparation(plan=self.plan, ranges=self.ranges, biases=biases, factors=factors, notes=self.notes)
        )

    @classmethod
    def load(cls, place: Kept, student: Network, quantisation: QuantisationConfig) -> PreparedStudent:
        """What `save` kept, for the same student. Raises UserError when the file is damaged, or another run's."""
        kept = place.load_json(_KeptPreparation)
        if (other := kept.not_in(student.folded)) is not None:
            raise place.damaged(f"it speaks of {other}, which this network has not, or has otherwise")
        biases, factors = (
            {name: torch.tensor(values) for name, values in table.items()} for table in (kept.biases, kept.factors)
        )
        return cls(
            student=student,
            quantisation=quantisation,
            plan=kept.plan,
            ranges=kept.ranges,
            corrections=Corrections(biases=biases, factors=factors),
            notes=kept.notes,
        )


@dataclass(frozen=True, kw_only=True)
class _KeptPreparation:
    """What a file holds of a prepared student."""

    plan: Plan
    ranges: Mapping[str, Range]
    biases: Mapping[str, tuple[float, ...]]
    factors: Mapping[str, tuple[float, ...]]
    notes: tuple[str, ...]

    def __post_init__(self) -> None:
        groups = {placement.group: placement.grid for placement in self.plan.activations}
        if groups.keys() != self.ranges.keys():
            raise ValueError("ranges must be those of the plan's groups, no more and no fewer")
        for name, chosen in self.ranges.items():
            grid = groups[name]
            if not chosen.scale > 0 or not grid.quant_min <= chosen.zero_point <= grid.quant_max:
                raise ValueError(f"ranges.{name} is {chosen}: the scale must be above 0, the zero point on its grid")
        if not all(factor > 0 for factors in self.factors.values() for factor in factors):
            raise ValueError("factors must be above 0")

    def not_in(self, folded: GraphModule) -> str | None:
        """A node or parameter that it speaks of and a student has not; None where it is of that student."""
        shapes = {name: parameter.shape for name, parameter in folded.named_parameters(remove_duplicate=False)}
        nodes = {node.name for node in folded.graph.nodes} | {str(node.target) for node in folded.graph.nodes}
        other = sorted(self.plan.names() - nodes)
        other += [name for table in (self.biases, self.factors) for name in table if name not in shapes]
        other += [name for name, bias in self.biases.items() if name in shapes and shapes[name] != (len(bias),)]
        return other[0] if other else None


@dataclass(frozen=True, kw_only=True)
class TrainedStudent:
    """A student after distillation, on the CPU, in evaluation mode, with the weights that go on."""

    network: PreparedNetwork
    distillation: Distillation

    def save(self, place: Kept) -> None:
        """Keep weights and record as one file."""
        place.save(self.network.state_dict(), self.distillation)

    @classmethod
    def load(cls, place: Kept, prepared: PreparedStudent) -> TrainedStudent:
        """What `save` kept of a student that was prepared so. Raises UserError when the file is damaged."""
        tensors, distillation = place.load(Distillation)
        network = prepared.network(trainable=True)
        place.give_weights(network, tensors)
        return cls(network=network.eval(), distillation=distillation)


@dataclass(frozen=True, kw_only=True)
class TrainingFiles:
    """Where training keeps what a killed run goes on with."""

    checkpoint: Kept
    """Position within the training of one student; it goes when that is finished."""
    students: tuple[Kept, ...] = ()
    """Of each generation, the last one included, once it is finished; empty where that is handed over alone."""


@dataclass(frozen=True, kw_only=True)
class CompiledModel:
    """The artifact and its float counterpart, serialised for files of these names."""

    model: Serialised
    float_model: Serialised


@dataclass(frozen=True, kw_only=True)
class QuantisedStudent:
    """What a quantiser makes of float networks and images: the artifact, its plan, and what is known of the way there.

    `backend` has the profile that it was made for. `prepared` and `simulated` compute it before and after
    training, None where the quantiser simulates nothing: then the artifact itself is all that can be run.
    `distillation` is what training did, None where there was none, or another's.
    """

    backend: Backend
    compiled: CompiledModel
    plan: Plan
    prepared: PreparedStudent | None = None
    simulated: PreparedNetwork | None = None
    distillation: Distillation | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided and found on the way, for the report."""
        decided = () if self.prepared is None else self.prepared.notes
        return decided if self.distillation is None else (*decided, *self.distillation.remarks)
