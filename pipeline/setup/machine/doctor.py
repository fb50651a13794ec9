"""What this machine offers to a run: versions, integer instructions, GPU, optional packages."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import dataclass

from backends.facts.cpu import CPUS, INTEGER_INSTRUCTIONS, cpu_flags, host_cpu, is_arm

REQUIRED = (
    "torch",
    "torchvision",
    "numpy",
    "onnx",
    "onnxruntime",
    "safetensors",
    "pillow",
    "rich",
    "jinja2",
    "cyclopts",
)
"""Distributions that every run needs."""

EXTRAS = {
    "timm": ("timm", "teachers named timm:NAME"),
    "tensorrt-rtx": ("tensorrt_rtx", "engine builds for --backend tensorrt"),
    "openvino": ("openvino", "--backend openvino"),
    "nncf": ("nncf", "--quantiser nncf"),
}
"""Extra -> the package it installs and what it is for."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the examination."""

    topic: str
    name: str
    value: str
    fix: str = ""
    """What to type when something is missing; empty when all is well."""
    needed: bool = False
    """True when a run cannot do without it."""


def examine() -> list[Finding]:
    """Return what was found on this machine, in reading order; nothing is changed."""
    return [*_versions(), *_processor(), *_accelerators(), *_extras()]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _versions() -> list[Finding]:
    from pipeline import __version__

    findings = [
        Finding(topic="versions", name="faqd", value=__version__),
        Finding(topic="versions", name="python", value=platform.python_version()),
    ]
    for distribution in REQUIRED:
        version = _version(distribution)
        fix = "" if version else f"pip install {distribution}"
        findings.append(Finding(topic="versions", name=distribution, value=version or "missing", fix=fix, needed=True))
    return findings


def _processor() -> list[Finding]:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    findings = [Finding(topic="cpu", name=platform.machine() or "unknown", value=f"{count} cores usable")]
    if (cpu := host_cpu()) is not None:
        findings.append(Finding(topic="cpu", name="target", value=f"{cpu}: {CPUS[cpu]}"))
    present = cpu_flags()
    if present is None:
        return [
            *findings,
            Finding(topic="cpu", name="int8 instructions", value="not readable on this system"),
        ]
    for flag, meaning in INTEGER_INSTRUCTIONS.items():
        if meaning.startswith("ARM") == is_arm():
            value = "yes" if flag in present else "no"
            findings.append(Finding(topic="cpu", name=flag, value=f"{value} ({meaning.partition(': ')[2]})"))
    return findings


def _accelerators() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        return [Finding(topic="gpu", name="cuda", value="unknown: torch is missing")]
    import torch

    from backends.tensorrt.backend import TensorRT

    missing = TensorRT().unavailable()
    engines = Finding(topic="gpu", name="tensorrt", value=f"none: {missing}" if missing else "engines run here")
    if not torch.cuda.is_available():
        return [Finding(topic="gpu", name="cuda", value="none: training runs on the CPU"), engines]
    devices = [
        Finding(topic="gpu", name=f"cuda:{index}", value=torch.cuda.get_device_name(index))
        for index in range(torch.cuda.device_count())
    ]
    return [*devices, engines]


def _extras() -> list[Finding]:
    findings = []
    for extra, (package, purpose) in EXTRAS.items():
        version = _version(package)
        fix = "" if version else f"pip install 'faqd[{extra}]'"
        value = f"{version} ({purpose})" if version else f"not installed ({purpose})"
        findings.append(Finding(topic="extras", name=extra, value=value, fix=fix))
    return findings
