"""`report.json`, schema 1: others read it, so its keys and their order are stable.

A value that could not be measured here is None (`null`), never 0. Optional blocks are absent when there is
nothing to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from backends.device.bundle_check import records
from backends.device.bundle_check.stored import DamagedError, read_object
from calibration.errors import UserError
from pipeline.report.cards import Shown
from pipeline.report.fields import (
    SCHEMA,
    Accuracy,
    Bits,
    Data,
    Distillation,
    Entries,
    FloatLayer,
    Kernels,
    Latency,
    Layer,
    OutputScore,
    Parity,
    Percentiles,
    ReportFields,
    Sample,
    Size,
)
from pipeline.report.gate import OPTIONAL_OF_GATES
from pipeline.report.html import report_card
from pipeline.report.printed_table import render_report
from pipeline.tools.printing import json_text, text_of

__all__ = [
    "SCHEMA",
    "Accuracy",
    "Bits",
    "Data",
    "Distillation",
    "Entries",
    "FloatLayer",
    "Kernels",
    "Latency",
    "Layer",
    "OutputScore",
    "Parity",
    "Percentiles",
    "Report",
    "Sample",
    "Size",
    "read_report",
]

OPTIONAL_BLOCKS = (
    "target",
    "distillation",
    "data",
    "preprocessing",
    "notes",
    "layers",
    "outputs",
    "quantiser",
    "sample",
    "run",
    "strategy",
)
OPTIONAL_OF_OUTPUTS = ("worst", "cosine", "entries")
"""The same of an output."""


@final
@dataclass(frozen=True, kw_only=True)
class Report(ReportFields, Shown):
    """All that a run found; printed it is the table of the command line, in a notebook a card with the page inside."""

    def __str__(self) -> str:
        return text_of(render_report(self))

    def _repr_html_(self) -> str:
        return report_card(self)

    def to_json(self) -> dict[str, Any]:
        """Return the report as one JSON object in schema 1's order, without empty optional blocks."""
        tree: dict[str, Any] = records.to_json(self)
        for gate in tree["gates"]:
            for key in OPTIONAL_OF_GATES:
                if gate[key] in (None, False):
                    del gate[key]
        for output in tree["outputs"]:
            for key in OPTIONAL_OF_OUTPUTS:
                if output[key] in (None, []):
                    del output[key]
        return {key: value for key, value in tree.items() if key not in OPTIONAL_BLOCKS or value not in (None, [])}

    def to_text(self) -> str:
        """Return the text of `report.json`."""
        return json_text(self.to_json(), indent=2)

    @classmethod
    def from_json(cls, tree: object, *, where: str = "report.json") -> Report:
        """Build a report from a JSON object.

        Raises:
            UserError: the object is no report of schema 1.
        """
        if isinstance(tree, dict) and tree.get("schema") != SCHEMA:
            schema, file = records.shown(tree.get("schema")), where.removesuffix(":")
            raise UserError(f"{file} has schema {schema}: this version reads schema {SCHEMA}")
        try:
            return records.from_json(cls, tree, where=where)
        except ValueError as error:
            raise UserError(str(error)) from error


def read_report(path: Path) -> Report:
    """Read a `report.json`.

    Raises:
        UserError: the file cannot be read or is no report of schema 1.
    """
    try:
        tree, _ = read_object(path)
    except DamagedError as error:
        raise UserError(str(error)) from error
    return Report.from_json(tree, where=f"{path}:")
