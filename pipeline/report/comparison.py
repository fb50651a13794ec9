"""What `faqd compare` found: its record, its table and its verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from backends.device.bundle_check import records
from pipeline.report.cards import Card, Shown
from pipeline.report.printed_table import LABEL_COLUMNS, fact_table
from pipeline.report.wording import percentage
from pipeline.tools.printing import json_text, plain, text_of

MOST_TENSORS = 12
"""Differing tensors listed in the table at most; the report file has all."""


@dataclass(frozen=True, kw_only=True)
class ComparedTensor:
    """One rounded tensor of the two executions."""

    name: str
    node: str
    """The graph node whose kernel rounds it."""
    operators: tuple[str, ...]
    """ONNX operators between the roundings before it and its own."""
    elements: int
    differing: int
    largest: int
    """Largest difference, steps of the tensor's grid."""
    own: int
    """Elements that differ although the operator reads the same integers on both sides."""
    own_largest: int
    ties: int
    """Of these, how many lie at a rounding tie."""
    example: str
    why: str
    """Empty for a tensor that is equal."""

    def __post_init__(self) -> None:
        records.check(self)


@dataclass(frozen=True, kw_only=True)
class ComparedOutput:
    """One output of the two executions."""

    name: str
    elements: int
    differing: int
    largest: float
    """Largest absolute difference, in the output's unit."""
    share: float | None = None
    """Share of the decisions that are the same, or R2 of values, 0 to 1."""
    least: float | None = None
    """The share from which on differing values count as none, by the run's own gate; None: every bit counts."""

    def __post_init__(self) -> None:
        records.check(self)

    @property
    def alike(self) -> bool:
        """Whether the two say the same."""
        within = self.least is not None and self.share is not None and self.share >= self.least
        return not self.differing or within


@dataclass(frozen=True, kw_only=True)
class ComparisonReport(Shown):
    """All that a comparison found; `first` names the first tensor in file order that differs."""

    schema: Literal[1] = 1
    here: str
    there: str
    images: int
    tolerance: int
    """Steps up to which a difference counts as none."""
    first: str | None
    tensors: tuple[ComparedTensor, ...]
    outputs: tuple[ComparedOutput, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        records.check(self)

    @property
    def exit_status(self) -> int:
        """0: equal within the tolerance, 1: not. Without any tolerance outputs must be alike too."""
        beyond = any(tensor.largest > self.tolerance for tensor in self.tensors)
        outputs = self.tolerance == 0 and any(not output.alike for output in self.outputs)
        return int(beyond or outputs)

    def __str__(self) -> str:
        return text_of(render_comparison(self))

    def _repr_html_(self) -> str:
        differing = _differing(self)
        return Card(
            title=_title(self),
            verdict=(_verdict(self), "bad" if self.exit_status else "good"),
            facts=tuple(_rows(self)),
            heading=_HEADING if len(differing) > 1 else (),
            rows=tuple(_tensor_rows(differing)) if len(differing) > 1 else (),
        ).html()

    def to_text(self) -> str:
        """Return the text of a report file."""
        tree: dict[str, Any] = records.to_json(self)
        return json_text(tree, indent=2)


EQUAL: Final = "equal"


_HEADING: Final = ("differing tensor", "integers", "at most", "arise here", "why")


def render_comparison(report: ComparisonReport) -> RenderableType:
    """Return what rich prints for a comparison."""
    title, differing = Text(plain(_title(report)), style="bold"), _differing(report)
    facts = fact_table()
    for name, value in _rows(report):
        facts.add_row(name, Text(plain(value)))
    status = Text(f"{'status':<{LABEL_COLUMNS}}  ", style="dim")
    style = "bold red" if report.exit_status else "bold green"
    status += Text(f"{_verdict(report)} (exit status {report.exit_status})", style=style)
    parts: list[RenderableType] = [Text(), title, facts]
    if len(differing) > 1:
        parts += [Text(), _tensors(differing)]
    return Group(*parts, status)


def _title(report: ComparisonReport) -> str:
    return f"{report.here} against {report.there}, {report.images} images"


def _differing(report: ComparisonReport) -> list[ComparedTensor]:
    return [tensor for tensor in report.tensors if tensor.differing]


def _verdict(report: ComparisonReport) -> str:
    if report.exit_status:
        return "differs"
    return f"equal within {_steps(report.tolerance)}" if _differing(report) else EQUAL


def _rows(report: ComparisonReport) -> list[tuple[str, str]]:
    """What there is to say of a comparison, as (name, value)."""
    differing = _differing(report)
    total = sum(tensor.elements for tensor in report.tensors)
    equal = len(report.tensors) - len(differing)
    rows = [("rounded tensors", f"{equal} of {len(report.tensors)} equal ({total} integers compared)")]
    for output in report.outputs:
        words = EQUAL
        if output.differing:
            words = f"{output.differing} of {output.elements} values differ, by {output.largest:.3g} at most"
            if output.least is not None and output.share is not None:
                how = "within the limit of the run" if output.alike else "beyond the limit of the run"
                words += f": the same by {percentage(output.share)}, {how}, {percentage(output.least)}"
        rows.append(("output", f"{output.name}: {words}"))
    if differing:
        first = differing[0]
        how = f"{first.differing} of {first.elements} integers differ, by {_steps(first.largest)} at most"
        rows += [
            ("first difference", f"{first.name}, of {first.node} ({', '.join(first.operators) or 'the input'})"),
            ("", f"{how}; {first.example}"),
            ("why", first.why),
        ]
    return rows + [("note", note) for note in report.notes]


def _tensors(differing: list[ComparedTensor]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in _HEADING:
        wide = heading in (_HEADING[0], _HEADING[-1])
        table.add_column(
            heading, overflow="fold" if wide else "ellipsis", justify="left" if wide else "right", no_wrap=not wide
        )
    for row in _tensor_rows(differing):
        table.add_row(*(Text(plain(cell)) for cell in row))
    return table


def _tensor_rows(differing: list[ComparedTensor]) -> Iterator[tuple[str, ...]]:
    # Where differences arise says more than where they are handed on to.
    shown = sorted(differing, key=lambda tensor: not tensor.own)[:MOST_TENSORS]
    for tensor in (tensor for tensor in differing if tensor in shown):
        share = f"{100 * tensor.differing / tensor.elements:.2g} %"
        yield tensor.name, share, _steps(tensor.largest), str(tensor.own), tensor.why
    if len(differing) > len(shown):
        yield f"and {len(differing) - len(shown)} more", "", "", "", ""


def _steps(count: int) -> str:
    return f"{count} step{'' if count == 1 else 's'}"
