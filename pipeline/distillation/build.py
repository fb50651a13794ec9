"""An objective made for given networks: taps found or checked, transforms drawn, the affinity's form chosen per tap."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from calibration.errors import UserError
from calibration.graph.operators import static_shape
from pipeline.config.distillation import DistillationConfig
from pipeline.config.ramps import Ramp
from pipeline.distillation.losses.affinity import AffinityOrder
from pipeline.distillation.losses.affinity_grid import grid_loss
from pipeline.distillation.losses.feed import feed_loss, non_linear_transform, seeded_conv
from pipeline.distillation.losses.sakd import SemanticBranch
from pipeline.distillation.losses.table import AFFINITY_FORMS, LOGIT_LOSSES, FormFunction, Metric
from pipeline.distillation.objective import Objective, affinity_form
from pipeline.distillation.taps import TapKind, match_taps, stage_ends
from pipeline.distillation.terms import BranchTerm, ClassTerm, EnsembleTerm, FeatureTerm, LogitTerm, Term
from pipeline.networks.outputs.meaning import Output
from pipeline.tools.randomness import generator_for
from pipeline.tools.source_text import batch_shape


def build_objective(
    config: DistillationConfig,
    student: GraphModule,
    teachers: Sequence[GraphModule],
    outputs: Sequence[Output],
    *,
    seed: int,
) -> Objective:
    """The objective for these networks: taps found or checked, transforms made from the seed.

    Args:
        config: terms, weights and the taps that the affinity loss and SAKD compare.
        student: folded graph.
        teachers: folded graphs, at least one; all but FEED's loss and the targets look at the first alone.
        outputs: what the outputs of all of them hold.
        seed: of the transforms' weights.

    Raises:
        UserError: taps that do not exist (the known ones are listed), FFA with more projections than a map has
            positions, kl of a single class, a term that needs a classifier.
    """
    return _Builder(config, student, teachers, outputs, seed).build()


class _Builder:
    def __init__(
        self,
        config: DistillationConfig,
        student: GraphModule,
        teachers: Sequence[GraphModule],
        outputs: Sequence[Output],
        seed: int,
    ) -> None:
        self.config, self.student, self.teachers, self.seed = config, student, teachers, seed
        self.outputs = tuple(outputs)
        self.taps: list[dict[str, str]] = [{} for _ in teachers]
        self.reals = False

    def build(self) -> Objective:
        config, terms = self.config, dict[str, Term]()
        temperature = config.ramp("temperature")
        terms["logits"] = LogitTerm(
            config.ramp("logit_weight"),
            self.outputs,
            LOGIT_LOSSES[config.logit_loss],
            temperature,
            soft=config.logit_loss == "kl",
        )
        for name, labelled in (("label_weight", True), ("class_weight", False)):
            if getattr(config, name) is not None:
                self._needs_classifier(name.replace("_", "-"))
                terms["labels" if labelled else "classes"] = ClassTerm(config.ramp(name), labelled=labelled)
        remarks = tuple(self._without_maps())
        if config.affinity != "none" and not remarks:
            terms["affinity"] = self._affinity()
        if config.feed_weight is not None:
            terms["feed"] = self._feed()
        if config.sakd_weight is not None:
            self._needs_classifier("sakd-weight")
            terms["branches"] = self._branches(self.outputs[0].shape[0], temperature)
        if config.speq_weight is not None:
            self._needs_classifier("speq-weight")
            terms["ensemble"] = EnsembleTerm(config.ramp("speq_weight"), temperature)
        return Objective(config, terms, self.taps, reals=self.reals, remarks=remarks)

    def _without_maps(self) -> Iterator[str]:
        """That features are compared where there are any, and here there are none."""
        config = self.config
        as_it_comes = config.affinity == "auto" and config.taps is None and config.adapters == "identity"
        if as_it_comes and not all(stage_ends(graph) for graph in (self.student, self.teachers[0])):
            yield (
                "no map of the network has more than one position: there are no features to compare (--affinity auto"
                " means none here), and the outputs alone are learned"
            )

    def _needs_classifier(self, flag: str) -> None:
        first = self.outputs[0]
        if first.holds != "classes" or len(first.shape) != 1:
            raise UserError(
                f"--{flag} needs a classifier: the first output of this network, {first.name}, holds {first.holds} "
                f"of shape {batch_shape(first.shape)}"
            )

    def _match(self, teacher: int, kind: TapKind, names: Sequence[str] | None, asked: str) -> dict[str, str]:
        pairs = match_taps(self.student, self.teachers[teacher], names, kind=kind, asked=asked)
        self.taps[teacher].update(pairs)
        return pairs

    def _shape(self, graph: GraphModule, tap: str) -> torch.Size:
        return torch.Size(static_shape(next(node for node in graph.graph.nodes if node.name == tap)))

    def _affinity(self) -> Term:
        config, point = self.config, self.config.point
        weight = config.ramp("affinity_weight")
        if point is not None:
            over_pixels = point.over == "pixels"
            kind: TapKind = "stages" if over_pixels else "last" if config.affinity == "sp" else "pooled"
            pairs = self._match(0, kind, self.config.taps, f"--affinity {config.affinity}")
            self.reals = True
            metrics: dict[str, Metric] = dict.fromkeys(pairs, _without_generator(partial(grid_loss, point=point)))
            if over_pixels:
                self._refuse_vectors(pairs, f"--affinity {config.affinity} --over pixels")
        else:
            pairs = self._match(0, "stages", self.config.taps, f"--affinity {config.affinity}")
            self._refuse_vectors(pairs, f"--affinity {config.affinity}")
            metrics = {}
            for tap, teacher_tap in pairs.items():
                shapes = self._shape(self.student, tap), self._shape(self.teachers[0], teacher_tap)
                form = AFFINITY_FORMS[affinity_form(tap, *shapes, config=config)]
                metrics[tap] = partial(_form_loss, form, config.affinity_order, config.projections)
        transforms: dict[str, nn.Module] = {}
        if config.adapters == "trained":
            self.reals = True
            for tap, teacher_tap in pairs.items():
                channels = self._shape(self.student, tap)[1], self._shape(self.teachers[0], teacher_tap)[1]
                convolution = seeded_conv(*channels, 1, generator_for(self.seed, "adapter", tap))
                transforms[tap] = nn.Sequential(convolution, nn.ReLU())
        return FeatureTerm(weight, metrics, [transforms])

    def _refuse_vectors(self, pairs: Mapping[str, str], flag: str) -> None:
        for tap in pairs:
            if len(self._shape(self.student, tap)) != 4:
                raise UserError(f"{flag} compares pixels, and tap {tap} is a vector: name maps with --taps")

    def _feed(self) -> Term:
        self.reals = True
        transforms = []
        tap = ""
        for index, teacher in enumerate(self.teachers):
            ((tap, teacher_tap),) = self._match(index, "last", None, "--feed-weight").items()
            channels = self._shape(self.student, tap)[1], self._shape(teacher, teacher_tap)[1]
            transforms.append({tap: non_linear_transform(*channels, generator_for(self.seed, "feed", index))})
        return FeatureTerm(self.config.ramp("feed_weight"), {tap: _without_generator(feed_loss)}, transforms)

    def _branches(self, classes: int, temperature: Ramp) -> Term:
        self.reals = True
        pairs = self._match(0, "stages", self.config.taps, "--sakd-weight")
        self._refuse_vectors(pairs, "--sakd-weight")
        branches: tuple[dict[str, nn.Module], dict[str, nn.Module]] = ({}, {})
        for tap, teacher_tap in pairs.items():
            side = min(*self._shape(self.student, tap)[2:], *self._shape(self.teachers[0], teacher_tap)[2:])
            for which, made in zip(("student", "teacher"), branches, strict=True):
                generator = generator_for(self.seed, "branch", which, tap)
                made[tap] = SemanticBranch(side=side, classes=classes, generator=generator)
        return BranchTerm(self.config.ramp("sakd_weight"), *branches, temperature)


def _without_generator(metric: Callable[[Tensor, Tensor], Tensor]) -> Metric:
    return lambda student, teacher, _generator: metric(student, teacher)


def _form_loss(
    form: FormFunction, order: AffinityOrder, projections: int, student: Tensor, teacher: Tensor, g: torch.Generator
) -> Tensor:
    return form(student, teacher, order, projections, g)
