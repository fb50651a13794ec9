"""The report's files: one for programs, one for people."""

from __future__ import annotations

from pathlib import Path

from pipeline.report.html import page
from pipeline.report.schema import Report
from pipeline.tools.atomic import write_text


def write_report(report: Report, folder: Path) -> None:
    """Write `report.json` and `report.html` into a folder, each at once.

    Raises:
        UserError: the folder cannot be written.
    """
    write_text(folder / "report.json", report.to_text())
    write_text(folder / "report.html", page(report))
