"""What goes into a bundle beside the model, so that one command on the device proves it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from backends.base import Backend
from backends.serialised import Serialised, parsed
from calibration.plan import Plan

#: The command on every device: python3 check.py.
CHECK = "check.py"
#: From image files to the model's input, as the run did it; a module and a command.
PREPROCESS = "preprocess.py"
LAYERS = "layers.npz"
#: Images whose layers are compared on the device.
_LAYER_IMAGES = 4

_HERE = Path(__file__).parent


def device_files(backend: Backend, model: Serialised, plan: Plan, images: Tensor) -> dict[str, bytes]:
    """The device's files by path below the bundle; `images` are the golden inputs float32 [B, C, H, W]."""
    files = {PREPROCESS: (_HERE / "device_preprocess.py").read_bytes()}
    if backend.name != "tensorrt":
        return {**files, CHECK: (_HERE / "device_check.py").read_bytes()}
    from backends import tensorrt_device
    from backends.tensorrt_layers import oracle_layers

    package = Path(str(tensorrt_device.__file__)).parent
    files |= {f"{package.name}/{path.name}": path.read_bytes() for path in sorted(package.glob("*.py"))}
    files[CHECK] = (_HERE / "device_check_tensorrt.py").read_bytes()
    files[LAYERS] = oracle_layers(parsed(model), plan, images[:_LAYER_IMAGES])
    return files
