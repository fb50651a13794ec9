"""How far two columns of outputs say the same: counts over all batches, of decisions, of values and of embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from backends.device.bundle_check.same_answer import EXACT, WITH_FLOAT, largest_difference, limit_on, value_tally
from backends.device.bundle_check.value_tally import Spread, ValueTally
from pipeline.networks.outputs.cosine_tally import CosineTally
from pipeline.networks.outputs.entries import entries_of
from pipeline.networks.outputs.meaning import Output, as_array
from pipeline.report.schema import OutputScore, Parity

# A table of this many classes squared is counted per batch; more classes have no mean intersection over union.
_MOST_CLASSES = 1024
# Of more decisions than these a share can be told, whatever their numbers are.
_FEW_DECISIONS = round(1 / (EXACT - WITH_FLOAT))

Values = NDArray[Any]


class OutputTally:
    """One output's comparison of every column with the target, and of simulation, oracle and runtime."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.metric: Literal["agreement", "r2", "centred-cosine"] = "agreement"
        if output.holds == "values":
            self.metric = "centred-cosine" if output.embedding else "r2"
        self.pairs: dict[tuple[str, str], _Decisions | ValueTally | CosineTally] = {}
        self.agreeing = self.positions = 0
        self.equal = self.elements = 0
        self.largest = 0.0
        self.per_image: dict[str, list[NDArray[np.float64]]] = {}
        self.spreads: dict[str, Spread] = {}
        self.images = 0
        self._numbers: dict[str, ValueTally] = {}  # what few decisions were made of: columns beside the oracle
        self._first: Values | None = None
        self._alike = True
        self._apart = self._size = 0.0

    def add(self, columns: Mapping[str, Tensor]) -> None:
        """Count one batch: column -> the output [B, ...]."""
        compared = [name for name in ("simulated", "oracle", "runtime") if name in columns]
        raw = {name: as_array(values) for name, values in columns.items()}
        seen: dict[str, Values] = dict(raw)
        if self.output.holds != "values":
            seen = {name: self.output.answers(values) for name, values in columns.items()}
            if len(compared) > 1:
                first = seen[compared[0]]
                self.positions += first.size
                self.agreeing += int(np.all([seen[name] == first for name in compared], axis=0).sum())
                self._count_numbers(raw, compared)
            self._compare_decisions(seen)
        self.images += len(next(iter(columns.values())))
        pairs = [("target", name) for name in columns if "target" in columns]
        for one, other in [*pairs, ("oracle", "simulated"), ("oracle", "runtime")]:
            if one in seen and other in seen:
                if (one, other) not in self.pairs:
                    self.pairs[one, other] = self._pair(one)
                pair = self.pairs[one, other]
                if isinstance(pair, CosineTally):
                    pair.add(columns[one], columns[other])
                    continue
                pair.add(seen[one], seen[other])
                if one == "target":
                    self.per_image.setdefault(other, []).append(pair.per_image(seen[one], seen[other]))
        for name, spread in self.spreads.items():
            spread.add(seen[name])
        if "oracle" in columns and "simulated" in columns:
            self._apart = max(self._apart, largest_difference(raw["simulated"], raw["oracle"]))
            self._size = max(self._size, float(np.abs(raw["oracle"]).max(initial=0.0)))
        if "oracle" in columns and "runtime" in columns:
            mine, theirs = raw["oracle"], raw["runtime"]
            self.elements += mine.size
            self.equal += int((mine == theirs).sum())
            self.largest = max(self.largest, largest_difference(theirs, mine))

    def fractions(self) -> dict[str, float]:
        """Each column's agreement with the target (R2 for values, centred cosine for embeddings), 0 to 1."""
        return {other: pair.fraction() for (one, other), pair in self.pairs.items() if one == "target"}

    def lost(self, column: str) -> NDArray[np.float64] | None:
        """What each image has lost in a column against the teacher's own, float64 [images]; None without either.

        Of decisions the share that is no longer the target's; of values the error's share of the variance, so that the
        mean over images is the loss of R2; of embeddings what the centred cosine lacks of 1.
        """
        pair, teacher = self.pairs.get(("target", column)), self.pairs.get(("target", "teacher"))
        if pair is None or teacher is None:
            return None
        if isinstance(pair, CosineTally) and isinstance(teacher, CosineTally):
            similarities: NDArray[np.float64] = (teacher.similarities() - pair.similarities()).numpy()
            return similarities
        wrong = [np.concatenate(self.per_image[name]) for name in (column, "teacher")]
        difference: NDArray[np.float64] = wrong[0] - wrong[1]
        return pair.lost(difference) if isinstance(pair, ValueTally) else difference

    @property
    def alike(self) -> bool:
        """Whether the target is the same on all of several images, position by position: then agreement says nothing.

        One answer for every image agrees with it, and so does a network that sees nothing.
        """
        if self.images < 2:
            return False
        if self.metric == "agreement":
            return self._first is not None and self._alike
        pair = next((pair for (one, _), pair in self.pairs.items() if one == "target"), None)
        if isinstance(pair, CosineTally):
            return not pair.moved
        return isinstance(pair, ValueTally) and not pair.spread.moved

    @property
    def joint_agreement(self) -> float | None:
        """Share of decisions in which simulation, oracle and runtime are all alike; None where there are none."""
        return self.agreeing / self.positions if self.positions else None

    @property
    def runtime_vs_oracle(self) -> float | None:
        """Share of decisions, or R2 of values, by which the runtime gives what the oracle gives; None without both."""
        pair = self.pairs.get(("oracle", "runtime"))
        return None if pair is None else pair.fraction()

    def limit(self, least: float) -> float:
        """The share of answers that must be the same in simulation, oracle and runtime by a limit `least` on shares.

        It is another one where so few decisions were made that one of them is more than it leaves (`limit_on`).
        """
        if not self.positions:
            return least
        numbers = min((tally.fraction() for tally in self._numbers.values()), default=None)
        return limit_on(least, same=self.agreeing, total=self.positions, numbers=numbers)

    def score(self) -> OutputScore:
        """The output's entry in the report."""
        fractions = self.fractions()
        best = self.pairs.get(("target", "runtime")) or self.pairs.get(("target", "oracle"))
        simulation = self.pairs.get(("oracle", "simulated"))
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
            rms_error=best.rms_error() if isinstance(best, ValueTally) else None,
            oracle_vs_simulated=simulation.fraction() if simulation is not None else None,
            runtime_vs_oracle=self.runtime_vs_oracle,
            exact_fraction=self.equal / self.elements if self.elements else None,
            max_difference=self.largest if self.elements else None,
            simulated_difference=self._apart / self._size if self._size else None,
            worst=best.worst() if isinstance(best, CosineTally) else None,
            cosine=best.plain() if isinstance(best, CosineTally) else None,
            entries=entries_of(best) if isinstance(best, ValueTally) else (),
        )

    def _pair(self, one: str) -> _Decisions | ValueTally | CosineTally:
        """An empty tally of a column `one` and another.

        Oracle, simulation and runtime are to give the same numbers, of embeddings too: their R2 is judged there, which
        no angle is stricter than.
        """
        if self.metric == "agreement":
            return self._decisions()
        if self.metric == "centred-cosine" and one == "target":
            return CosineTally()
        tally = value_tally(self.output.shape, embedding=self.output.embedding, negligible=self.output.negligible)
        return ValueTally(self.spreads.setdefault(one, tally.spread))

    def _count_numbers(self, raw: Mapping[str, Values], compared: Sequence[str]) -> None:
        """The numbers that decisions are made of, as long as there are few of those."""
        if self.positions > _FEW_DECISIONS or "oracle" not in raw:
            self._numbers.clear()
            return
        for name in compared:
            if name != "oracle":
                tally = self._numbers.setdefault(name, value_tally((), embedding=True, negligible=0.0))
                tally.add(raw["oracle"], raw[name])
                tally.spread.add(raw["oracle"])

    def _compare_decisions(self, seen: Mapping[str, Values]) -> None:
        """Whether the target's decisions are still those of the first image."""
        if "target" in seen:
            self._first = seen["target"][:1].copy() if self._first is None else self._first
            self._alike = self._alike and bool((seen["target"] == self._first).all())

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
        self.confusion = None if classes is None else np.zeros((classes, classes), np.int64)

    def add(self, expected: Values, answered: Values) -> None:
        self.same += int((expected == answered).sum())
        self.total += expected.size
        if self.confusion is not None:
            size, known = len(self.confusion), (expected >= 0) & (answered >= 0)
            pairs = np.bincount(expected[known] * size + answered[known], minlength=size * size)
            self.confusion += pairs.reshape(size, size)

    @staticmethod
    def per_image(expected: Values, answered: Values) -> NDArray[np.float64]:
        """Share of each image's decisions that differ, [B]."""
        return np.asarray((expected != answered).reshape(len(expected), -1).mean(1), np.float64)

    def fraction(self) -> float:
        return self.same / self.total

    def mean_iou(self) -> float | None:
        """Intersection over union, averaged over the classes that either names; of labels, that of the yes alone."""
        if self.confusion is None:
            return None
        both = self.confusion.diagonal()
        either = self.confusion.sum(0) + self.confusion.sum(1) - both
        if self.labels:
            both, either = both[1:], either[1:]
        named = either > 0
        return float((both[named] / either[named]).mean()) if named.any() else None
