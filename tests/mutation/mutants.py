"""The mutants of a file: mutmut's operators on libcst's tree, where a changed value can be a wrong answer.

mutmut's own runner mutates nothing outside functions and nothing that is decorated, where our tables, limits and
defaults stand, and renames functions, which captured graphs know by what they are. So its operators alone are taken.
Left alone are texts (a changed word of a message is no wrong number), what `raise` says, annotations, decorators,
`__all__`, and zip's `strict`, which no right program is seen without.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.mutation.groups import ROOT


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One changed source: `number` counts within the file, `lines` are the statement's, first and last.

    `later`: within the body of a function, which is evaluated when it is called and not on import.
    """

    file: str
    number: int
    lines: tuple[int, int]
    later: bool
    qualname: str
    change: str
    source: str

    @property
    def name(self) -> str:
        """By which results are kept."""
        return f"{self.file}:{self.qualname}#{self.number}"


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a node stands that may be changed."""

    qualname: str = "<module>"
    lines: tuple[int, int] = (1, 1)
    later: bool = False


class Candidates:
    """What may be changed in one file; a mutant is made when it is asked for, by its number."""

    def __init__(self, path: Path) -> None:
        cst: Any = importlib.import_module("libcst")
        metadata: Any = importlib.import_module("libcst.metadata")
        wrapper = metadata.MetadataWrapper(cst.parse_module(path.read_text()), unsafe_skip_copy=True)
        self._path = path
        self._module = wrapper.module
        self._positions = wrapper.resolve(metadata.PositionProvider)
        self._original = self._module.code
        self._changes = [
            (node, changed, place)
            for node, place in _nodes(self._module, _Place(), self._positions, cst)
            for changed in _changed(node)
        ]

    def __len__(self) -> int:
        return len(self._changes)

    def mutant(self, number: int) -> Mutant | None:
        """The mutant of a number, from 0; None where it does not compile or says the same as before."""
        node, changed, place = self._changes[number]
        source = self._spliced(node, changed) or self._module.deep_replace(node, changed).code
        try:
            if _meant(source) == _meant(self._original):
                return None
            compile(source, str(self._path), "exec", dont_inherit=True)
        except SyntaxError:  # a starred None, or a `return` in place of a `break` outside functions
            return None
        return Mutant(
            file=str(self._path.relative_to(ROOT)),
            number=number,
            lines=place.lines,
            later=place.later,
            qualname=place.qualname,
            change="  =>  ".join(_differing_lines(self._original, source)),
            source=source,
        )

    def _spliced(self, node: Any, changed: Any) -> str | None:
        """The changed source as text, much sooner than by the tree; None where the node is not its text alone."""
        position = self._positions.get(node)
        if position is None:
            return None
        lines = self._original.splitlines(keepends=True)
        start, end = (sum(map(len, lines[: place.line - 1])) + place.column for place in (position.start, position.end))
        if self._original[start:end] != self._module.code_for_node(node):
            return None
        text: str = self._original[:start] + self._module.code_for_node(changed) + self._original[end:]
        return text


def _meant(source: str) -> str:
    """A source as its tree says it, without any `strict`."""
    tree = ast.parse(source)
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            call.keywords = [keyword for keyword in call.keywords if keyword.arg != "strict"]
    return ast.dump(tree)


def _changed(node: Any) -> Iterator[Any]:
    """What mutmut would put in place of one node."""
    mutators: Any = importlib.import_module("mutmut.mutation.mutators")
    for kind, operator in mutators.mutation_operators:
        if operator is not mutators.operator_string and isinstance(node, kind):
            yield from operator(node)


def _nodes(node: Any, place: _Place, positions: Any, cst: Any) -> Iterator[tuple[Any, _Place]]:
    """Every node that is not left alone, parents first, with its place."""
    if _left_alone(node, cst):
        return
    if isinstance(node, cst.SimpleStatementLine):
        place = replace(place, lines=(positions[node].start.line, positions[node].end.line))
    elif isinstance(node, cst.BaseCompoundStatement):
        first = positions[node].start.line
        body = node.cases[0] if isinstance(node, cst.Match) else node.body
        place = replace(place, lines=(first, max(first, positions[body].start.line - 1)))
    yield node, place
    inner = place
    if isinstance(node, cst.FunctionDef | cst.ClassDef):
        inner = replace(place, qualname=f"{place.qualname}.{node.name.value}".removeprefix("<module>."))
    for child in node.children:
        if isinstance(child, cst.Decorator):
            continue
        within = isinstance(node, cst.FunctionDef | cst.Lambda) and child is node.body
        yield from _nodes(child, replace(inner, later=True) if within else inner, positions, cst)


def _left_alone(node: Any, cst: Any) -> bool:
    if isinstance(node, cst.Annotation | cst.Raise | cst.FormattedString | cst.ConcatenatedString | cst.Import):
        return True
    if isinstance(node, cst.ImportFrom | cst.ImportAlias):
        return True
    if isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value in ("UserError", "cast"):
        return True
    if isinstance(node, cst.Arg) and node.keyword is not None and node.keyword.value == "strict":
        return True
    if isinstance(node, cst.Assign):
        return any(isinstance(target.target, cst.Name) and target.target.value == "__all__" for target in node.targets)
    return False


def _differing_lines(before: str, after: str) -> tuple[str, str]:
    old, new = before.splitlines(), after.splitlines()
    start = next((index for index, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), 0)
    end = next((i for i, (a, b) in enumerate(zip(reversed(old), reversed(new), strict=False)) if a != b), 0)
    end = min(end, len(old) - start, len(new) - start)
    return tuple(" ".join(" ".join(lines[start : len(lines) - end]).split()) for lines in (old, new))  # type: ignore[return-value]
