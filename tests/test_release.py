"""What a release is made of is known by hash, and the oldest versions that are allowed are those that are tested."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.floor_versions import floor_versions, text

LOCKS = ("requirements-tested.txt", "backends/onnxruntime/device_wheels.txt")


def test_the_oldest_versions_are_those_of_the_project(repository: Path) -> None:
    assert (repository / "requirements-floor.txt").read_text(encoding="utf-8") == text()


def test_every_floor_is_a_version(tmp_path: Path) -> None:
    lines = floor_versions()
    assert "torch==2.11" in lines and "rich==14.2" in lines and "mypy==2.4" in lines
    assert len(lines) == len({line.partition("==")[0] for line in lines})
    project = tmp_path / "pyproject.toml"
    project.write_text('[project]\ndependencies = ["torch"]\n[project.optional-dependencies]\ntest = []\n')
    with pytest.raises(ValueError, match="'torch' is not NAME>=VERSION"):
        floor_versions(project)


def test_ci_tests_both_ends(repository: Path) -> None:
    script = (repository / ".ci" / "run").read_text(encoding="utf-8")
    assert "--requirement requirements-floor.txt" in script
    refused = subprocess.run([repository / ".ci" / "run", "--flor"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr) == (2, "usage: .ci/run [--floor]\n")


@pytest.mark.parametrize("lock", LOCKS)
def test_every_part_is_known_by_hash(lock: str, repository: Path) -> None:
    lines = (repository / lock).read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    parts = [line for line in lines if line and not line.startswith("#")]
    assert parts and [line for line in parts if not re.match(r"\S+==\S+.* --hash=sha256:[0-9a-f]{64}", line)] == []


def test_the_lists_of_parts_are_made_of_them(repository: Path, tmp_path: Path) -> None:
    script = (repository / ".ci" / "sbom").read_text(encoding="utf-8")
    assert [lock for lock in LOCKS if lock not in script] == []
    tool = shutil.which("cyclonedx-py") or shutil.which("cyclonedx-py", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("cyclonedx-py is not installed: pip install '.[dev]'")
    made = subprocess.run([repository / ".ci" / "sbom", tmp_path], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["faqd-device.cdx.json", "faqd.cdx.json"]


def test_the_image_s_base_can_be_pinned(repository: Path) -> None:
    (file,) = (repository / "docker").glob("*.Dockerfile")
    lines = file.read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"ARG BASE=python:[\w.-]+", lines[lines.index("FROM ${BASE}") - 1])
