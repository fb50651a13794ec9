"""Cards: how a result prints itself in a terminal, and shows and plots itself in a notebook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

from markupsafe import Markup, escape
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.report.charts import Bar, LineChart
from pipeline.report.printed_table import fact_table
from pipeline.report.templates import rendered
from pipeline.tools.printing import plain, text_of


class Shown(ABC):
    """A result that people look at."""

    @abstractmethod
    def __str__(self) -> str:
        """The result as text of at most 100 columns."""

    @abstractmethod
    def _repr_html_(self) -> str:
        """The result as a piece of HTML, which notebooks show."""

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Print the text where IPython would show the name of every field."""
        printer.text(str(self))


@final
@dataclass(frozen=True, kw_only=True)
class Card:
    """What there is to see of one result; every text is foreign and is escaped."""

    title: str
    facts: tuple[tuple[str, str], ...] = ()
    """Name and value; a name that is empty belongs to the value before it."""
    verdict: tuple[str, str] | None = None
    """Words and their tone: good, bad or open."""
    bars: tuple[tuple[str, tuple[Bar, ...]], ...] = ()
    """Charts of bars, each with its heading."""
    heading: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    """A table, as many texts in a row as `heading` has."""
    chart: LineChart | None = None
    picture: str | None = None
    """A PNG in base64."""

    def text(self) -> str:
        """Return title, facts and table for a terminal."""
        parts: list[RenderableType] = [Text(plain(self.title), style="bold")]
        facts = fact_table()
        for name, value in self.facts:
            facts.add_row(plain(name), Text(plain(value)))
        if self.facts:
            parts.append(facts)
        if self.rows:
            table = Table(box=None, pad_edge=False, header_style="dim")
            for heading in self.heading:
                table.add_column(plain(heading), overflow="fold")
            for row in self.rows:
                table.add_row(*(Text(plain(cell)) for cell in row))
            parts += [Text(), table]
        return text_of(Group(*parts))

    def html(self, *, page: str | None = None) -> str:
        """Return all of it as a piece of HTML whose styles reach nothing around it; `page`: a whole page to unfold."""
        return rendered("card.html.j2", card=self, page=None if page is None else Markup(escape(page)))
