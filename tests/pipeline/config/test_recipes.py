"""Recipes: valid settings with their sources, found by name, completed by the flags that they need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.errors import UserError
from pipeline.cli import app, main
from pipeline.config import RunConfig
from pipeline.config.recipes import Recipe, all_recipes, recipe_named
from pipeline.images.embedded import digits_images
from pipeline.report.schema import read_report


def parsed(*arguments: str) -> RunConfig:
    _, bound, _ = app.parse_args(["run", *arguments], exit_on_error=False, print_error=False)
    config = bound.arguments["config"]
    assert isinstance(config, RunConfig)
    return config


@pytest.mark.parametrize("recipe", all_recipes(), ids=lambda recipe: recipe.name)
def test_its_settings_are_a_configuration(recipe: Recipe) -> None:
    needed = {"teacher": "python:my.nets:build", "data": "npz:a#b,c"}
    typed = [word for flag in recipe.needs or ("teacher",) for word in (f"--{flag}", needed[flag])]
    tree = parsed("--recipe", recipe.name, *typed).to_json()
    for key, value in recipe.settings.items():
        assert tree[key] == value, key
    assert recipe.title and recipe.source and recipe.ours


@pytest.mark.usefixtures("branches_learn_briefly", "narrow_digits")
@pytest.mark.parametrize("recipe", all_recipes(), ids=lambda recipe: recipe.name)
def test_it_ends_in_a_validated_bundle(recipe: Recipe, tmp_path: Path) -> None:
    """A few steps of each on the embedded digits, through to the runtime; generations as many as the recipe has."""
    _, images, labels = digits_images()
    np.savez(tmp_path / "digits.npz", images=images, labels=labels)
    np.savez(tmp_path / "few.npz", images=images[-60:], labels=labels[-60:])
    typed = ["--steps", "3", "--batch-size", "16", "--calibration-images", "64", "--held-out-images", "40"]
    typed += ["--eval-data", f"npz:{tmp_path / 'few.npz'}#images,labels", "--max-drop", "100"]
    typed += ["--teacher", "digits"] * recipe.needs.count("teacher")
    if "data" in recipe.needs:
        typed += ["--data", f"npz:{tmp_path / 'digits.npz'}#images,labels"]
    if recipe.settings.get("data") == "none":
        typed += ["--generator-steps", "3", "--generated-images", "256"]
    if "projections" in recipe.settings:
        typed += ["--projections", "4"]  # the last maps are 2 x 2
    output = tmp_path / "run"
    assert main(["run", "--recipe", recipe.name, *typed, "--quiet", "--output", str(output)]) == 0
    report = read_report(output / "report.json")
    assert report.parity.exact_fraction == 1.0
    assert report.distillation is not None and report.distillation.steps == 3


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
    assert all(recipe.name in shown for recipe in all_recipes()) and "arXiv 2302.10899" in shown
    assert all(len(line) <= 100 for line in shown.splitlines())
