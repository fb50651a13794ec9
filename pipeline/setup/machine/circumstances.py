"""Where and with what something was measured: versions of libraries, and the machine."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
from pathlib import Path

import torch

from backends.facts.cpu import INTEGER_INSTRUCTIONS, cpu_flags, host_cpu
from pipeline import __version__
from pipeline.setup.machine.doctor import EXTRAS, REQUIRED
from pipeline.tools.threads import instruction_set


def versions() -> dict[str, str]:
    """Versions of faqd, Python and every library that the result may depend on."""
    return {"faqd": __version__, "python": platform.python_version(), **_installed()}


@functools.cache
def _installed() -> dict[str, str]:
    """Versions of the libraries: read from disk once, as what runs is what was imported."""
    known = dict[str, str]()
    for name in (*REQUIRED, *(package for package, _ in EXTRAS.values())):
        try:
            known[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return known


def host() -> dict[str, str | int | float | bool | None]:
    """The machine, as far as results and latencies depend on it."""
    flags = cpu_flags() or frozenset()
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": _processor(),
        "target": host_cpu(),
        "cores": os.cpu_count(),
        "integer_instructions": ", ".join(name for name in INTEGER_INSTRUCTIONS if name in flags) or "none known",
        "instruction_set": instruction_set(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def _processor() -> str | None:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or None
