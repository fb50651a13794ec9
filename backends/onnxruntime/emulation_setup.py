"""Make the Python of another processor, from Debian's packages and the Python package index alone."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from backends.onnxruntime.emulation import EMULATED, emulated_command, environment_folder
from calibration.errors import UserError

#: What is downloaded, by its hashes; the image of docker/ installs the same.
WHEELS = Path(__file__).with_name("device_wheels.txt")
_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
# Wheels name the oldest glibc that they run on; Debian 12's is 2.36.
_PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
# What Linux says of a core: its part number, and the extensions beside those that all of them have.
_CORES = {
    "cortex-a53": ("0xd03", ""),
    "neoverse-n1": ("0xd0c", "atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"),
    "max": ("0xd49", "atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp i8mm"),
}
_CPUINFO = """processor\t: {index}
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: {part}
CPU revision\t: 3

"""


def describe_processors(root: Path, core: str) -> None:
    """Write what the emulated Linux below `root` says of its processors, each of them such a core.

    ONNX Runtime from 1.28 on ends with a segmentation fault where it reads the host's processors instead.
    """
    part, features = _CORES[core]
    (root / "proc").mkdir(exist_ok=True)
    described = "".join(
        _CPUINFO.format(index=index, part=part, features=features) for index in range(os.cpu_count() or 1)
    )
    (root / "proc" / "cpuinfo").write_text(described, encoding="utf-8")


def make_environment(cpu: str, say: Callable[[str], None]) -> Path | None:
    """The folder of an emulated processor's Python, made anew where it is missing; None where none is needed.

    Nothing of the host changes: the packages are unpacked, not installed. Raises UserError with what to mend.
    """
    if cpu not in EMULATED:
        raise UserError(f"emulation {cpu}: must be {' or '.join(EMULATED)}")
    if not EMULATED[cpu].unpacked:
        emulated_command(cpu)
        return None
    folder = environment_folder(cpu)
    if not folder.is_dir():
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise UserError(f"emulation {cpu} unpacks Debian's packages with {tool}, which is not installed here")
        work = folder.with_name(f"{folder.name}.{os.getpid()}")
        try:
            _fill(work, say)
            work.rename(folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    say("starting it once")
    command, environment = emulated_command(cpu)
    code = "import numpy, onnxruntime; print(onnxruntime.__version__, end='')"
    done = subprocess.run([*command, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"the Python at {folder} does not start ({_last(done.stderr)}): remove it and try again")
    return folder


def _fill(folder: Path, say: Callable[[str], None]) -> None:
    """Download and unpack everything into a folder."""
    apt = folder / "apt"
    for name in ("lists/partial", "cache/archives/partial", "wheels"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures::": "arm64",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
        "Debug::NoLocking": "1",
        "Dir::Cache": str(apt / "cache"),
        "Dir::State::Lists": str(apt / "lists"),
        "Dir::State::status": str(apt / "status"),
    }
    common = ["apt-get", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    say("reading Debian's list of arm64 packages")
    _run([*common, "update"])
    say("downloading Python for arm64")
    _run([*common, "install", "--download-only", "--yes", "--no-install-recommends", *_PACKAGES])
    for package in sorted((apt / "cache" / "archives").glob("*.deb")):
        _run(["dpkg-deb", "--extract", str(package), str(folder / "root")])
    interpreter = next(iter(sorted((folder / "root" / "usr" / "bin").glob("python3.[0-9]*"))), None)
    if interpreter is None:
        raise UserError("Debian's packages of python3-minimal for arm64 hold no interpreter")
    say("downloading numpy and ONNX Runtime for arm64")
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    wheels, requirements = wheels_for(importlib.metadata.version("onnxruntime"))
    if WHEELS.name not in " ".join(wheels):
        say(f"{requirements[-1]} is none of the wheels whose hashes faqd knows: the index alone vouches for it")
    python = interpreter.name.removeprefix("python")
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    _run([*pip, *platforms, "--python-version", python, "--dest", str(apt / "wheels"), *wheels])
    for wheel in sorted((apt / "wheels").glob("*.whl")):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(folder / "packages")
    shutil.rmtree(apt)
    # QEMU looks below its prefix first.
    describe_processors(folder / "root", EMULATED["arm64"].cpu)
    (folder / "made-of.json").write_text(
        json.dumps({"debian": list(_PACKAGES), "python": requirements}), encoding="utf-8"
    )


def wheels_for(version: str) -> tuple[list[str], list[str]]:
    """What pip is told to download for a version of ONNX Runtime, and the requirements that this comes to.

    With hashes where they are known; a runtime of another version than the one here would prove nothing of it.
    """
    known = re.findall(r"^(\S+==\S+)", WHEELS.read_text(encoding="utf-8"), re.MULTILINE)
    if f"onnxruntime=={version}" in known:
        return ["--require-hashes", "--requirement", str(WHEELS)], known
    requirements = ["numpy", f"onnxruntime=={version}"]
    return requirements, requirements


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{' '.join(command[:2])} failed: {_last(done.stderr or done.stdout)}")


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1][:300]
