"""Recipes: valid settings with their sources, found by name, completed by the flags that they need."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.errors import UserError
from pipeline.cli import app, main
from pipeline.config import RunConfig
from pipeline.recipes import Recipe, recipe_named, recipes


def parsed(*arguments: str) -> RunConfig:
    _, bound, _ = app.parse_args(["run", *arguments], exit_on_error=False, print_error=False)
    config = bound.arguments["config"]
    assert isinstance(config, RunConfig)
    return config


@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.name)
def test_its_settings_are_a_configuration(recipe: Recipe) -> None:
    needed = {"teacher": "python:my.nets:build", "data": "npz:a#b,c"}
    typed = [word for flag in recipe.needs or ("teacher",) for word in (f"--{flag}", needed[flag])]
    found = parsed("--recipe", recipe.name, *typed).to_json()
    for key, value in recipe.settings.items():
        assert found[key] == value, key
    assert recipe.title and recipe.source and recipe.ours


def test_flags_win_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("affinity-weight = 7.0\ntemperature = 9.0\n", encoding="utf-8")
    config = parsed("--recipe", "sp", "--config", str(file), "--temperature", "2", "--bits", "8").distillation
    assert (config.affinity, config.affinity_weight, config.temperature) == ("sp", 7.0, 2.0)


def test_a_recipe_names_what_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--recipe", "feed-parallel", "--teacher", "digits"]) == 2
    assert "--recipe feed-parallel (Several teachers" in (error := capsys.readouterr().err)
    assert "needs --teacher 2 times" in error and error.count("\n") == 1


def test_an_unknown_recipe_is_told_the_known_ones() -> None:
    with pytest.raises(
        UserError, match=r"--recipe speqq: unknown, did you mean speq\?; known are dafl, faqd, faqd-paper"
    ):
        recipe_named("speqq")


def test_the_list_shows_every_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    assert all(recipe.name in shown for recipe in recipes()) and "arXiv 2302.10899" in shown
    assert all(len(line) <= 100 for line in shown.splitlines())
