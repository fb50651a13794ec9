"""The examination of a machine."""

from __future__ import annotations

from pathlib import Path

from pipeline.doctor import EXTRAS, REQUIRED, cpu_flags, examine


def test_flags_of_both_architectures_are_read(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512_vnni\n\nflags\t\t: fpu\n", encoding="utf-8")
    assert cpu_flags(file) == frozenset({"fpu", "avx2", "avx512_vnni"})
    file.write_text("processor\t: 0\nFeatures\t: asimd asimddp i8mm\n", encoding="utf-8")
    assert cpu_flags(file) == frozenset({"asimd", "asimddp", "i8mm"})
    assert cpu_flags(tmp_path / "absent") is None


def test_every_package_is_looked_for_and_a_missing_one_has_its_command() -> None:
    findings = {finding.name: finding for finding in examine()}
    assert set(REQUIRED) | set(EXTRAS) <= set(findings)
    assert not any(finding.fix for finding in findings.values() if finding.needed)
    for extra in EXTRAS:
        installed = not findings[extra].value.startswith("not installed")
        assert findings[extra].fix == ("" if installed else f"pip install 'faqd[{extra}]'")
