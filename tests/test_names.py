"""Names say what they hold, in packages and in what tests them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("faqd", "pipeline", "backends", "calibration", "tests", "scripts", "examples")
#: Names that say nothing of what they hold.
SAY_NOTHING = {"found", "given", "wanted"}


def bound_names(text: str) -> set[str]:
    """Every name that a module's source binds: variables, arguments, functions, classes and what is imported."""
    names = set[str]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name)
    return names


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_say_what_they_hold(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    bound = {str(path.relative_to(ROOT)): bound_names(path.read_text()) & SAY_NOTHING for path in files}
    assert files and {path: names for path, names in bound.items() if names} == {}


def test_bound_names_are_those_of_every_kind() -> None:
    text = "import a as b\nfor c, (d, *e) in f(g):\n  h = lambda i: [j for j in i]\ndef k(*l, m=n): pass\nclass o: pass"
    assert bound_names(text) == set("bcdehijklmo")
