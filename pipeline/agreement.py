"""How far two columns of outputs say the same: counts over all batches, of decisions and of values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.outputs import Output
from pipeline.report.schema import OutputScore, Parity

# A table of this many classes squared is counted per batch; more classes have no mean intersection over union.
_MOST_CLASSES = 1024
# Of float64 sums of squares, what cancellation leaves of a variance that is none.
_NO_VARIANCE = 1e-12
# Entries of one tensor are numbers of other kinds where their spreads differ by more than so much from one to the next:
# scores spread by up to 0.5, coordinates by tens of pixels; scores of one network lie near each other.
_APART = 30.0
_MOST_ENTRIES = 512


class OutputTally:
    """One output's comparison of every column with the target, and of simulation, oracle and runtime."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.metric: Literal["agreement", "r2"] = "r2" if output.holds == "values" else "agreement"
        self.axis = _axis_of_kinds(output.shape)
        self.pairs: dict[tuple[str, str], _Decisions | _Values] = {}
        self.agreeing = self.positions = 0
        self.equal = self.elements = 0
        self.largest = 0.0
        self.per_image: dict[str, list[Tensor]] = {}

    def add(self, columns: Mapping[str, Tensor]) -> None:
        """Count one batch: column -> the output [B, ...]."""
        compared = [name for name in ("simulated", "oracle", "runtime") if name in columns]
        seen = dict(columns)
        if self.output.holds != "values":
            seen = {name: self.output.decided(values) for name, values in columns.items()}
            if len(compared) > 1:
                first = seen[compared[0]]
                self.positions += first.numel()
                self.agreeing += int(torch.stack([seen[name] == first for name in compared]).all(0).sum())
        pairs = [("target", name) for name in columns if "target" in columns]
        for one, other in [*pairs, ("oracle", "simulated"), ("oracle", "runtime")]:
            if one in seen and other in seen:
                if (one, other) not in self.pairs:
                    values = self.metric == "r2"
                    self.pairs[one, other] = _Values(self.axis) if values else self._decisions()
                pair = self.pairs[one, other]
                pair.add(seen[one], seen[other])
                if one == "target":
                    self.per_image.setdefault(other, []).append(pair.per_image(seen[one], seen[other]))
        if "oracle" in columns and "runtime" in columns:
            mine, theirs = columns["oracle"], columns["runtime"]
            self.elements += mine.numel()
            self.equal += int((mine == theirs).sum())
            self.largest = max(self.largest, float((mine.double() - theirs.double()).abs().max()))

    def fractions(self) -> dict[str, float]:
        """Each column's agreement with the target (R2 for values), 0 to 1."""
        return {other: pair.fraction() for (one, other), pair in self.pairs.items() if one == "target"}

    def lost(self, column: str) -> NDArray[np.float64] | None:
        """What each image has lost in a column against the teacher's own, float64 [images]; None without either.

        Of decisions the share that is no longer the target's; of values the error's share of the variance, so that the
        mean over images is the loss of R2.
        """
        if column not in self.per_image or "teacher" not in self.per_image:
            return None
        wrong = [torch.cat(self.per_image[name]).double() for name in (column, "teacher")]
        difference = wrong[0] - wrong[1]
        pair = self.pairs["target", column]
        if isinstance(pair, _Values):
            entries, scale = pair.worst()
            difference = difference[:, entries].sum(1) * (len(difference) / scale if scale > 0 else 0.0)
        lost: NDArray[np.float64] = difference.numpy()
        return lost

    @property
    def joint_agreement(self) -> float | None:
        """Share of decisions in which simulation, oracle and runtime are all alike; None where there are none."""
        return self.agreeing / self.positions if self.positions else None

    def score(self) -> OutputScore:
        """The output's entry in the report."""
        fractions = self.fractions()
        best = self.pairs.get(("target", "runtime")) or self.pairs.get(("target", "oracle"))
        simulation, runtime = self.pairs.get(("oracle", "simulated")), self.pairs.get(("oracle", "runtime"))
        return OutputScore(
            name=self.output.name,
            holds=self.output.holds,
            shape=self.output.shape,
            decisions=self.output.decisions,
            metric=self.metric,
            teacher=fractions.get("teacher"),
            simulated=fractions.get("simulated"),
            oracle=fractions.get("oracle"),
            runtime=fractions.get("runtime"),
            mean_iou=best.mean_iou() if isinstance(best, _Decisions) else None,
            rms_error=best.rms_error() if isinstance(best, _Values) else None,
            oracle_vs_simulated=simulation.fraction() if simulation is not None else None,
            runtime_vs_oracle=runtime.fraction() if runtime is not None else None,
            exact_fraction=self.equal / self.elements if self.elements else None,
            max_difference=self.largest if self.elements else None,
        )

    def _decisions(self) -> _Decisions:
        classes = 2 if self.output.holds == "labels" else self.output.shape[self.output.axis - (self.output.axis > 0)]
        dense = self.output.decisions != 1 or self.output.holds == "labels"
        return _Decisions(classes if dense and classes <= _MOST_CLASSES else None, labels=self.output.holds == "labels")


def parity_of(tallies: Sequence[OutputTally]) -> Parity:
    """The comparison of simulation, oracle and runtime over all outputs together; None where the runtime is absent."""
    elements, positions = sum(t.elements for t in tallies), sum(t.positions for t in tallies)
    if not elements:
        return Parity(argmax_agreement=None, exact_fraction=None, max_difference=None)
    return Parity(
        argmax_agreement=sum(t.agreeing for t in tallies) / positions if positions else None,
        exact_fraction=sum(t.equal for t in tallies) / elements,
        max_difference=max(t.largest for t in tallies),
    )


class _Decisions:
    """How often two columns decide alike; with the number of classes, also which they confuse."""

    def __init__(self, classes: int | None, *, labels: bool) -> None:
        self.same = self.total = 0
        self.labels = labels
        self.confusion = None if classes is None else torch.zeros(classes, classes, dtype=torch.int64)

    def add(self, wanted: Tensor, found: Tensor) -> None:
        self.same += int((wanted == found).sum())
        self.total += wanted.numel()
        if self.confusion is not None:
            size = len(self.confusion)
            pairs = torch.bincount((wanted * size + found).reshape(-1), minlength=size * size)
            self.confusion += pairs.reshape(size, size)

    @staticmethod
    def per_image(wanted: Tensor, found: Tensor) -> Tensor:
        """Share of each image's decisions that differ, [B]."""
        return (wanted != found).reshape(len(wanted), -1).double().mean(1)

    def fraction(self) -> float:
        return self.same / self.total

    def mean_iou(self) -> float | None:
        """Intersection over union, averaged over the classes that either names; of labels, that of the yes alone."""
        if self.confusion is None:
            return None
        both = self.confusion.diagonal().double()
        either = self.confusion.sum(0) + self.confusion.sum(1) - self.confusion.diagonal()
        if self.labels:
            both, either = both[1:], either[1:]
        named = either > 0
        return float((both[named] / either[named]).mean()) if bool(named.any()) else None


class _Values:
    """Sums over two columns of numbers, float64, entry by entry of the axis that holds kinds of numbers.

    A tensor may hold numbers of several kinds, such as coordinates in pixels beside scores within 1: the variance of
    the one would drown every error of the other. Entries whose spreads lie apart are judged apart.
    """

    def __init__(self, axis: int | None) -> None:
        self.axis = axis
        self.count = 0  # numbers of each entry
        self.sum = self.squares = self.errors = torch.zeros(1, dtype=torch.float64)

    def add(self, wanted: Tensor, found: Tensor) -> None:
        exact, error = self._entries(wanted), self._entries(wanted.double() - found.double())
        self.count += exact.shape[0] * exact.shape[2]
        self.sum = self.sum + exact.sum((0, 2))
        self.squares = self.squares + exact.square().sum((0, 2))
        self.errors = self.errors + error.square().sum((0, 2))

    def per_image(self, wanted: Tensor, found: Tensor) -> Tensor:
        """Squared error of each image in each entry, [B, entries]."""
        return self._entries(wanted.double() - found.double()).square().sum(2)

    def _entries(self, values: Tensor) -> Tensor:
        """float64 [B, entries, numbers of each]."""
        values = values.double()
        if self.axis is None:
            return values.reshape(len(values), 1, -1)
        return values.movedim(self.axis, 1).flatten(2) if values.ndim > 2 else values.unsqueeze(2)

    def kinds(self) -> list[tuple[Tensor, float]]:
        """The entries that are judged together, as a mask [entries], with what their errors are measured by."""
        everything = torch.ones(len(self.sum), dtype=torch.bool)
        count = self.count * len(self.sum)
        variance, power = float(self.squares.sum() - self.sum.sum() ** 2 / count), float(self.squares.sum())
        together = [(everything, variance if variance > _NO_VARIANCE * power else power)]
        own = self.squares - self.sum**2 / self.count
        order = [int(entry) for entry in own.argsort() if own[entry] > _NO_VARIANCE * self.squares[entry]]
        starts = [i for i in range(1, len(order)) if own[order[i]] > _APART**2 * own[order[i - 1]]]
        if not starts:
            return together
        for first, last in zip([0, *starts], [*starts, len(order)], strict=True):
            chosen = torch.zeros_like(everything)
            chosen[order[first:last]] = True
            together.append((chosen, float(own[chosen].sum())))
        return together

    def worst(self) -> tuple[Tensor, float]:
        """The entries of which the least is explained, and what their errors are measured by."""
        return max(self.kinds(), key=lambda kind: float(self.errors[kind[0]].sum()) / kind[1] if kind[1] > 0 else 0.0)

    def fraction(self) -> float:
        """R2, the share of the variance that is explained: 1 when equal, 0 for the mean or worse; the worst kind's."""
        if float(self.errors.sum()) == 0:
            return 1.0
        entries, scale = self.worst()
        return max(0.0, 1 - float(self.errors[entries].sum()) / scale) if scale > 0 else 0.0

    def rms_error(self) -> float:
        """Root of the mean squared difference, in the unit of the values."""
        return math.sqrt(float(self.errors.sum()) / (self.count * len(self.sum)))


def _axis_of_kinds(shape: Sequence[int]) -> int | None:
    """The axis of an output (its shape without the batch) that may hold numbers of several kinds; None without one.

    That of channels: the first or the last, whichever is shorter, as [B, 84, 8400] and [B, 8400, 84] have them.
    """
    if not shape:
        return None
    axis = 1 if shape[0] <= shape[-1] or len(shape) == 1 else len(shape)
    return axis if 2 <= shape[axis - 1] <= _MOST_ENTRIES else None
