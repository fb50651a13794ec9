"""Deployment targets: where each executes integers, how its artifact is written, checked and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from backends.facts.cpu import CPUS, host_cpu
from calibration.errors import UserError, require_package

if TYPE_CHECKING:
    from backends.base import Backend
    from backends.facts.profile import Profile


def _onnxruntime(profile: Profile | None) -> Backend:
    from backends.onnxruntime.backend import OnnxRuntime

    return OnnxRuntime(profile)


def _tensorrt(profile: Profile | None) -> Backend:
    from backends.tensorrt.backend import TensorRT

    return TensorRT()


def _openvino(profile: Profile | None) -> Backend:
    from backends.openvino.backend import OpenVINO

    return OpenVINO(profile)


def _reference(profile: Profile | None) -> Backend:
    from backends.oracle.backend import Reference

    return Reference(profile)


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One row of the table of runtimes: what command line, reports and bundles need to know without importing it."""

    #: As reports write it.
    title: str
    #: Makes the backend with one of its `cpu_profiles` where it has any, None: for this machine. Imports it first.
    make: Callable[[Profile | None], Backend]
    #: Package that pip installs on any machine, without which a run could only end unvalidated, so does not start; the
    #: extra that brings it has its name. None: the artifact is worth having without its runtime, or that is required.
    package: str | None = None
    #: Package of `backends.device` whose main is the check that its bundles bring along.
    device_check: str = "bundle_check"
    #: Whether that check compares layers too, for which bundles bring the oracle's values of a few images.
    compares_layers: bool = False
    #: Whether it writes its own form of a model into a temporary folder, of about the model's size.
    writes_scratch: bool = False
    #: Processors that `faqd validate --emulate` runs it on.
    emulated: tuple[str, ...] = ()


#: Name on the command line -> its row. Importing this table imports no backend.
BACKENDS: dict[str, Runtime] = {
    "onnxruntime": Runtime(
        title="ONNX Runtime", make=_onnxruntime, writes_scratch=True, emulated=("x86-avx2", "arm64")
    ),
    "tensorrt": Runtime(title="TensorRT", make=_tensorrt, device_check="tensorrt_device", compares_layers=True),
    "openvino": Runtime(title="OpenVINO", make=_openvino, package="openvino"),
    "reference": Runtime(title="the integer oracle", make=_reference),
}

# The choices of a flag are the table's rows, which a type checker cannot read.
if TYPE_CHECKING:
    BackendName = str
else:
    BackendName = Literal[tuple(BACKENDS)]


def title_of(name: str) -> str:
    """How reports write a runtime; its name where it is unknown to this version, as in the report of another one."""
    return BACKENDS[name].title if name in BACKENDS else name


def backend_named(name: str) -> Backend:
    """The backend of that name. Raises UserError listing the known ones, MissingExtra where its package is missing."""
    if name not in BACKENDS:
        raise UserError(f"--backend {name}: unknown; known are {', '.join(BACKENDS)}")
    package = BACKENDS[name].package
    if package is not None:
        require_package(package, extra=package, needed_for=f"--backend {name}")
    return BACKENDS[name].make(None)


def backends_for(name: str, cpu: str | None) -> tuple[Backend, ...]:
    """The backend with each profile that is exact on a processor (None: this machine's), the fastest first.

    `cpu` may be the variant of a profile instead, which is then the only one. Raises UserError for a backend or
    processor that is unknown, and for a backend whose target is no processor.
    """
    known = backend_named(name).cpu_profiles
    if not known:
        if cpu is not None:
            raise UserError(f"--target {cpu} names a processor, and --backend {name} runs on none: leave --target out")
        return (backend_named(name),)
    variants = {profile.variant: (profile,) for profiles in known.values() for profile in profiles if profile.variant}
    if cpu in variants.keys() - known.keys():
        return tuple(BACKENDS[name].make(profile) for profile in variants[cpu])
    chosen = cpu or host_cpu()
    if chosen is None or chosen not in known:
        what = f"--target {cpu}: unknown" if cpu else "this machine's processor is none that artifacts are made for"
        raise UserError(f"{what}; give --target {', '.join(CPUS)}")
    return tuple(BACKENDS[name].make(profile) for profile in known[chosen])


def backend_of(name: str, variant: str, session_options: Mapping[str, str] | None = None) -> Backend:
    """The backend with the profile of that variant, as a plan or bundle names it, "" where there is but one.

    `session_options` replace the profile's own. Raises UserError for a variant that this version does not know.
    """
    backend = backend_named(name)
    if not variant:
        return backend
    profiles = [profile for profiles in backend.cpu_profiles.values() for profile in profiles]
    profile = next((profile for profile in profiles if profile.variant == variant), None)
    if profile is None:
        raise UserError(f"the profile {variant} of {name} is unknown to this version: make the bundle anew")
    own = profile.session_options if session_options is None else session_options
    return BACKENDS[name].make(replace(profile, session_options=own))
