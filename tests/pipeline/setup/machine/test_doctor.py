"""The examination of a machine."""

from __future__ import annotations

from backends.facts.cpu import host_cpu
from pipeline.setup.machine.doctor import EXTRAS, REQUIRED, examine


def test_every_package_is_looked_for_and_a_missing_one_has_its_command() -> None:
    findings = {finding.name: finding for finding in examine()}
    assert set(REQUIRED) | set(EXTRAS) <= set(findings)
    assert not any(finding.fix for finding in findings.values() if finding.needed)
    for extra in EXTRAS:
        installed = not findings[extra].value.startswith("not installed")
        assert findings[extra].fix == ("" if installed else f"pip install 'faqd[{extra}]'")


def test_it_says_whether_engines_run_here() -> None:
    (said,) = [finding.value for finding in examine() if finding.name == "tensorrt"]
    assert said == "engines run here" or (said.startswith("none: ") and "check.py" in said)


def test_the_processor_is_named_as_a_target() -> None:
    said = {finding.name: finding.value for finding in examine()}
    assert said["target"].startswith(f"{host_cpu()}: ")
