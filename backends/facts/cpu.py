"""The CPUs that artifacts are made for, and which of them this machine has."""

from __future__ import annotations

import platform
from pathlib import Path

CPUS = {
    "x86-vnni": "x86-64 with 8-bit dot products (AVX-512 VNNI or AVX-VNNI)",
    "x86-avx2": "x86-64 without VNNI, whose 16-bit sums of two products saturate",
    "arm64": "ARM, 64 bits",
}
"""Name on the command line -> the processors that it stands for."""

INTEGER_INSTRUCTIONS = {
    "avx2": "x86: int8 kernels, whose sums can saturate where no row below says yes",
    "avx_vnni": "x86: exact 8-bit dot products",
    "avx512_vnni": "x86: exact 8-bit dot products, 512 bits wide",
    "amx_int8": "x86: exact 8-bit matrix tiles",
    "asimddp": "ARM: exact 8-bit dot products",
    "i8mm": "ARM: exact 8-bit matrix products",
}
"""CPU flag as Linux names it -> what it means for int8 kernels (ONNX Runtime, "Quantize ONNX models")."""

# MLAS replaces its saturating U8S8 kernels where it finds one of these (onnxruntime/core/mlas/lib/platform.cpp).
_EXACT_DOT_PRODUCTS = {"avx_vnni", "avx512_vnni"}
_X86, _ARM = {"x86_64", "amd64"}, {"aarch64", "arm64"}


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str] | None:
    """Return the CPU's feature flags as Linux lists them, or None where that list does not exist."""
    if not cpuinfo.is_file():
        return None
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return frozenset(value.split())
    return None


def is_arm() -> bool:
    """Whether this machine has a 64-bit ARM processor."""
    return platform.machine().lower() in _ARM


def host_cpu() -> str | None:
    """Name in `CPUS` of this machine's processor, or None for another architecture.

    An x86-64 whose flags cannot be read counts as one without VNNI: what is made for that is right on both.
    """
    if is_arm():
        return "arm64"
    if platform.machine().lower() not in _X86:
        return None
    return "x86-vnni" if _EXACT_DOT_PRODUCTS & (cpu_flags() or frozenset()) else "x86-avx2"


def elsewhere(cpu: str | None) -> str | None:
    """Why an artifact for that processor does not run where it should on this machine, or None where it does."""
    here = host_cpu()
    if cpu is None or cpu == here:
        return None
    return f"the artifact is for {cpu} and this machine is {here or platform.machine()}"
