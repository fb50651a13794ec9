"""The repository's promises: layers, the wheel's contents, the README's commands and links."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pipeline import __version__
from pipeline.cli import app
from pipeline.config import RunConfig
from pipeline.config.compare import CompareConfig
from pipeline.config.flags import flags

PACKAGES = ("faqd", "pipeline", "backends", "calibration")
DATA_SUFFIXES = (".toml", ".py", ".npz", ".safetensors", ".md", ".css", ".j2", ".txt", ".typed")
COMMANDS = ("recipes", "run", "validate", "doctor")


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def readme(repository: Path) -> str:
    return (repository / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("pip", "setuptools"):
        try:
            importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"building the wheel needs {package}, which is not installed")
    # A copy, because setuptools leaves its build folder in the source.
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(repository / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repository / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-build-isolation",
        "--no-deps",
        "--no-index",
    ]
    done = subprocess.run([*command, "--wheel-dir", str(out), str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_the_layers_hold(repository: Path) -> None:
    code = "import sys; from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_the_packages_whole_and_nothing_else(wheel: Path, repository: Path) -> None:
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        str(path.relative_to(repository))
        for package in PACKAGES
        for path in (repository / package).rglob("*")
        if path.suffix in DATA_SUFFIXES or path.name == "py.typed"
    }
    assert shipped == expected
    assert {f"{package}/py.typed" for package in PACKAGES} <= shipped


def test_every_file_of_the_packages_is_of_a_kind_that_ships(repository: Path) -> None:
    strangers = [
        path
        for package in PACKAGES
        for path in (repository / package).rglob("*")
        if path.is_file() and path.suffix not in (*DATA_SUFFIXES, ".pyc") and path.name != "py.typed"
    ]
    assert strangers == []


def test_the_wheel_names_its_command_licence_and_version(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    information = f"faqd-{__version__}.dist-info"
    assert "faqd = faqd.command:main" in archive.read(f"{information}/entry_points.txt").decode()
    metadata = archive.read(f"{information}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Apache License" in archive.read(f"{information}/licenses/LICENSE").decode()
    assert set(archive.read(f"{information}/top_level.txt").decode().split()) == set(PACKAGES)


MISTAKES = """
import faqd

network = faqd.load_network("digits")
images = faqd.open_images("digits", network)
student = faqd.prepare(network, images, bits=5)
reveal_type(student)
reveal_type(faqd.distil(network, network, images, float_steps=3))
faqd.validate(faqd.convert(network))
"""


def test_examples_are_typed_against_the_installed_wheel(wheel: Path, repository: Path, tmp_path: Path) -> None:
    """By mypy in a folder that holds nothing else; what torch is, it knows from its last look at the packages."""
    site, desk, cache = tmp_path / "site", tmp_path / "desk", tmp_path / "cache"
    zipfile.ZipFile(wheel).extractall(site)
    if (repository / ".mypy_cache").is_dir():
        shutil.copytree(repository / ".mypy_cache", cache)
    desk.mkdir()
    for example in (repository / "examples").glob("*.py"):
        if "lightning" not in example.name or importlib.util.find_spec("pytorch_lightning") is not None:
            shutil.copy(example, desk)
    (desk / "mistakes.py").write_text(MISTAKES)
    settings = ("--config-file", str(repository / "pyproject.toml"), "--cache-dir", str(cache), "--no-error-summary")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *settings, "."],
        cwd=desk,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stdout + done.stderr
    first, second, third, fourth = lines
    assert first.startswith('mistakes.py:6: error: Argument "bits" to "prepare" has incompatible type "Literal[5]"')
    assert second == 'mistakes.py:7: note: Revealed type is "faqd.results.Student"'
    assert third == 'mistakes.py:8: note: Revealed type is "pipeline.artifacts.Network"'
    assert fourth.startswith('mistakes.py:9: error: Argument 1 to "convert" has incompatible type "Network"')


def test_examples_know_the_face_alone(repository: Path) -> None:
    for example in (repository / "examples").glob("*.py"):
        named = set(re.findall(r"^\s*(?:from|import) (\w+)", example.read_text(encoding="utf-8"), flags=re.MULTILINE))
        assert named & set(PACKAGES) == {"faqd"}
        assert not re.search(r"faqd\.[a-z_]+\.|from faqd|import faqd\.", example.read_text(encoding="utf-8"))


def test_no_package_hides_another_from_below_tests_or_docker(repository: Path) -> None:
    assert [path for folder in ("tests", "docker") for path in (repository / folder).rglob("__init__.py")] == []


def commands(text: str) -> list[list[str]]:
    """Return the shell commands of a text's fenced blocks, split at && and into words."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if re.match(r"(python3|faqd|pip) ", line)]
    return [shlex.split(part) for line in lines for part in line.split("&&")]


def test_the_readme_holds_the_two_set_up_lines(readme: str) -> None:
    assert "\npython3 -m pip install . && python3 -m pipeline run --backend onnxruntime --bits 8\n" in readme
    assert "\npython3 -m pip install '.[test]' && python3 -m pytest\n" in readme


def test_the_commands_of_the_readme_exist(
    readme: str, project: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.toml").touch()
    ours = 0
    for words in commands(readme):
        if words[0] == "faqd" or words[:3] == ["python3", "-m", "pipeline"]:
            arguments = words[1:] if words[0] == "faqd" else words[3:]
            # Raises where a flag is unknown or a value is not allowed; the command itself is not run.
            app.parse_args(arguments, exit_on_error=False, print_error=False)
            ours += 1
        else:
            assert words[:3] in (["python3", "-m", "pip"], ["python3", "-m", "pytest"]), words
    assert ours >= 5
    for extras in re.findall(r"pip install '\.\[([^]]+)\]'", readme):
        assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])


def test_the_readme_names_every_flag_and_no_other(readme: str) -> None:
    named = set(re.findall(r"--([a-z][a-z-]+)", readme)) - {"help"}
    known = set(flags(RunConfig)) | set(flags(CompareConfig))
    of_a_bundles_check = {"images"}
    of_commands = {"config", "recipe", "emulate", "key", "old-key", "report", "verbose", "quiet"}
    assert named - of_a_bundles_check == known | of_commands
    for command in COMMANDS:
        assert f"faqd {command}" in readme


def test_links_resolve(repository: Path) -> None:
    texts = [
        *repository.glob("*.md"),
        *(repository / "docs").rglob("*.md"),
        *(repository / "docker").rglob("*.md"),
    ]
    texts += [path for package in PACKAGES for path in (repository / package).rglob("*.md")]
    broken = []
    for text in texts:
        for link in re.findall(r"\]\(([^)\s]+)\)", text.read_text(encoding="utf-8")):
            target = link.partition("#")[0]
            if target and not re.match(r"[a-z]+:", link) and not (text.parent / target).exists():
                broken.append(f"{text.relative_to(repository)}: {link}")
    assert broken == []


def test_paths_that_documents_name_are_there(repository: Path) -> None:
    rooms = "|".join([*PACKAGES, "tests", "scripts", "docs", "docker"])
    missing = []
    for text in (*repository.glob("*.md"), *(repository / "docs").glob("*.md")):
        for path in re.findall(rf"`((?:{rooms})/[^`\s:]+)`", text.read_text(encoding="utf-8")):
            # A recipe's name for what is new, and patterns.
            if "NAME" not in path and "*" not in path and not (repository / path).exists():
                missing.append(f"{text.name}: {path}")
    assert missing == []


def test_hooks_and_ci_run_the_same_checks(repository: Path) -> None:
    hooks = (repository / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    script = (repository / ".ci" / "run").read_text(encoding="utf-8")
    for check in (
        "ruff check",
        "ruff format --check",
        "mypy --strict faqd pipeline backends calibration scripts tests",
        "lint-imports",
    ):
        assert check in hooks
        assert check in script
    assert "python3 -m pytest\n" in script
