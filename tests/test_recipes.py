"""CONTRIBUTING's recipes, applied to a copy of the sources: the tests that each promises hold what is new."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

RECIPES = Path(__file__).parent / "recipes"
COPIED = ("faqd", "pipeline", "backends", "calibration", "scripts", "tests", "pyproject.toml")
TABLE_ROW = re.compile(r"^\| \*\*(?P<recipe>[a-z ]+)\*\* \|(?P<files>.*)\|(?P<rows>.*)\|(?P<tests>.*)\|$", re.MULTILINE)


def recipes() -> dict[str, dict[str, Any]]:
    return {
        file.parent.name.replace("_", " "): tomllib.loads(file.read_text())
        for file in sorted(RECIPES.glob("*/rows.toml"))
    }


def new_files(recipe: str) -> list[Path]:
    """What a recipe brings, relative to the root of the sources."""
    folder = RECIPES / recipe.replace(" ", "_")
    brought = (file.relative_to(folder) for file in folder.rglob("*.py"))
    return sorted(file for file in brought if "__pycache__" not in file.parts)


def shown_paths(cell: str, name: str = "NAME") -> list[str]:
    """The paths that a cell of CONTRIBUTING's table shows outside of brackets, with the name of what is new."""
    shown = re.findall(r"`([^`]+/[^`]+|[^`]+\.toml)`", re.sub(r"\(.*?\)", "", cell))
    return [path.replace("NAME", name) for path in shown]


@pytest.fixture(scope="module")
def applied(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with every recipe applied."""
    copy = tmp_path_factory.mktemp("recipes") / "copy"
    copy.mkdir()
    for name in COPIED:
        source = repository / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    shutil.move(copy / "tests" / "recipes" / "together.py", copy / "tests" / "test_together.py")
    shutil.rmtree(copy / "tests" / "recipes")  # of which the copy needs none
    for recipe, content in recipes().items():
        for file in new_files(recipe):
            if not (copy / file).parent.exists():
                (copy / file).parent.mkdir()
                (copy / file).with_name("__init__.py").write_text(f'"""{content["package"]}"""\n')
            shutil.copy(RECIPES / recipe.replace(" ", "_") / file, copy / file)
        for row in content["rows"]:
            text = (copy / row["file"]).read_text()
            assert text.count(row["old"]) == 1, f"{recipe}: {row['file']} has not one {row['old']!r}"
            (copy / row["file"]).write_text(text.replace(row["old"], row["new"].lstrip("\n")))
    return copy


def test_contributing_names_the_files_and_rows_of_every_recipe(repository: Path) -> None:
    page = (repository / "CONTRIBUTING.md").read_text()
    shown = {match["recipe"]: match for match in TABLE_ROW.finditer(page)}
    assert shown.keys() == recipes().keys()
    for recipe, content in recipes().items():
        files = [str(file) for file in new_files(recipe)]
        assert shown_paths(shown[recipe]["files"], content["file"]) == files, recipe
        rows = dict.fromkeys(row["file"] for row in content["rows"] if not row["file"].startswith("tests/"))
        assert shown_paths(shown[recipe]["rows"]) == [*rows], recipe
        assert shown_paths(shown[recipe]["tests"]) == content["tests"], recipe


def test_what_a_recipe_adds_is_held_by_the_tests_that_stand_and_works_with_all_others(applied: Path) -> None:
    chosen = " or ".join(" and ".join(content["name"].split()) for content in recipes().values())
    tests = sorted({test for content in recipes().values() for test in content["tests"]})
    options = ["-n", "0", "-v", "-p", "no:cacheprovider", "--show-capture=no", "-k", f"{chosen} or together"]
    command = [sys.executable, "-m", "pytest", *options, *tests, "tests/test_together.py"]
    run = subprocess.run(command, cwd=applied, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr
    passed = [line for line in run.stdout.splitlines() if " PASSED" in line]
    for recipe, content in recipes().items():
        for test in content["tests"]:
            held = [line for line in passed if line.startswith(test) and content["name"] in line]
            assert held, f"{recipe}: {test} holds nothing of it"
    assert any(line.startswith("tests/test_together.py") for line in passed)
