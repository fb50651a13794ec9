"""What goes into a bundle beside the model, so that one command on the device proves it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from backends import BACKENDS
from backends.base import Backend
from backends.device import bundle_check
from backends.onnx_file.serialised import Serialised, parsed
from calibration.plan import Plan
from pipeline.images import device_preprocess

#: The command on every device: python3 check.py.
CHECK = "check.py"
#: From image files to the model's input, as the run did it; a module and a command.
PREPROCESS = "preprocess.py"
#: The folder of all that it runs.
PACKAGE = "faqd_device"
LAYERS = "layers.npz"
#: Images whose layers are compared on the device.
_LAYER_IMAGES = 4

_HERE = Path(__file__).parent


def device_files(backend: Backend, model: Serialised, plan: Plan, images: Tensor) -> dict[str, bytes]:
    """The device's files by path below the bundle; `images` are the golden inputs float32 [B, C, H, W]."""
    files = {PREPROCESS: Path(str(device_preprocess.__file__)).read_bytes(), **check_files(backend.name)}
    if BACKENDS[backend.name].compares_layers:
        from backends.oracle.layer_samples import oracle_layers

        files[LAYERS] = oracle_layers(parsed(model), plan, images[:_LAYER_IMAGES])
    return files


def check_files(backend: str) -> dict[str, bytes]:
    """The check that a bundle of a backend brings along, by path: one program, and the packages that it runs."""
    own, shared = BACKENDS[backend].device_check, Path(str(bundle_check.__file__)).parent
    named = f'"""What check.py runs."""\n\nCHECK = "{own}"\n'
    files = {f"{PACKAGE}/__init__.py": named.encode(), CHECK: (_HERE / "device_check.py").read_bytes()}
    for package in dict.fromkeys((shared, shared.with_name(own))):
        files |= {f"{PACKAGE}/{package.name}/{path.name}": path.read_bytes() for path in sorted(package.glob("*.py"))}
    return files
