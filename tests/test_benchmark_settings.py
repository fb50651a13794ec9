"""What benchmarks read from the environment is what CONTRIBUTING says they do, of each the file that reads it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: Settings of all benchmarks, which are read where they are set up.
OF_ALL = {"FAQD_BENCHMARK_OUTPUT", "FAQD_BENCHMARK_THREADS"}


def test_every_setting_of_a_benchmark_is_described_with_its_file() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text().split("## Benchmarks\n")[1]
    described = {
        (name, file)
        for row in re.findall(r"^\| (`FAQD_.*)$", page, re.M)
        for name in re.findall(r"FAQD_\w+", row)
        for file in re.findall(r"test_\w+\.py", row) or ["conftest.py"]
    }
    read = {
        (name, path.name)
        for path in (ROOT / "tests" / "benchmarks").glob("*.py")
        for name in re.findall(r"environ(?:\.get\(|\[)\"(FAQD_\w+)", path.read_text())
        if path.name == "conftest.py" or name not in OF_ALL
    }
    assert described == read
