"""The oldest versions that pyproject.toml allows, as a file of requirements: `requirements-floor.txt`.

    python3 scripts/floor_versions.py > requirements-floor.txt

Direct requirements alone, each at its floor; what they need in turn is the installer's choice. A test holds the file to
pyproject.toml; `.ci/run --floor` runs the tests with it.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
_REQUIREMENT = re.compile(r"(?P<name>[\w-]+)>=(?P<floor>[\d.]+)(?P<below>,<[\d.]+)?(?P<marker> *;.*)?")
# The first releases behind floors that are none themselves.
_FIRST_RELEASES = {"openvino": "2026.0.0", "setuptools": "77.0.1", "tensorrt_rtx": "1.7.1.116", "timm": "1.0.3"}


def floor_versions(pyproject: Path = PYPROJECT) -> list[str]:
    """Requirements NAME==VERSION of the package and of its extra `test`, with their markers, sorted by name.

    Raises:
        ValueError: a requirement has no floor.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lines = []
    for requirement in {*project["dependencies"], *project["optional-dependencies"]["test"]}:
        read = _REQUIREMENT.fullmatch(requirement)
        if read is None:
            raise ValueError(f"{requirement!r} is not NAME>=VERSION: which is the oldest that the tests run with?")
        floor = _FIRST_RELEASES.get(read["name"], read["floor"])
        lines.append(f"{read['name']}=={floor}{read['marker'] or ''}")
    return sorted(lines, key=str.lower)


def text() -> str:
    """The file."""
    head = "# The oldest versions that pyproject.toml allows, for `.ci/run --floor` (scripts/floor_versions.py)."
    return "\n".join([head, *floor_versions(), ""])


if __name__ == "__main__":
    print(text(), end="")
