"""A stand-in for TensorRT's Python package and the CUDA runtime, for what no machine without a GPU can run.

It has the names that TensorRT 10.16's and 11.4's bindings have and nothing more, keeps their order of calls (a tensor
has no shape before the input has one, nothing runs before every tensor has an address), and computes with the
standard's own evaluator. It shows that our code asks for the right things in the right order, not that TensorRT
answers as we think.
"""

from __future__ import annotations

import ctypes
import enum
import json
import types
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from tests.backends.device.cuda_stand_in import FakeCuda


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = 0, 1, 2


class CreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


#: Enumerations and those of their names that are used; 10.0 has no SAME_COMPUTE_CAPABILITY.
ENUMERATIONS = {
    "ProfilingVerbosity": ("LAYER_NAMES_ONLY", "NONE", "DETAILED"),
    "MemoryPoolType": ("WORKSPACE",),
    "LayerInformationFormat": ("ONELINE", "JSON"),
    "BuilderFlag": ("VERSION_COMPATIBLE",),
    "HardwareCompatibilityLevel": ("NONE", "AMPERE_PLUS"),
}


class Dims(tuple[int, ...]):
    """A shape, as the SDK's own type is one: a sequence."""


def stand_in(
    cuda: FakeCuda, *, version: str = "10.3.0", gpu: str = "8.7", capturable: bool = True, refuses: str = ""
) -> Any:
    """A module `tensorrt` of that version on that GPU; `refuses`: what its builder says instead of building."""
    sdk: Any = types.ModuleType("tensorrt")
    sdk.__version__ = version
    sdk.TensorIOMode = TensorIOMode
    for kind, names in ENUMERATIONS.items():
        setattr(sdk, kind, enum.Enum(kind, names))
    sdk.NetworkDefinitionCreationFlag = CreationFlag
    sdk.nptype = lambda dtype: dtype
    sdk.ILogger = type("ILogger", (), {"__init__": lambda self: None})
    sdk.IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda self: None})
    sdk.built = []

    class Builder:
        def __init__(self, log: Any) -> None:
            self.log = log

        def create_network(self, flags: int) -> Any:
            assert flags == 2, "strongly typed"
            return Network()

        def create_builder_config(self) -> Any:
            return Config()

        def create_optimization_profile(self) -> Any:
            return Profile()

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            if refuses:
                self.log.log(1, refuses)
                return None
            if config.progress_monitor is not None:
                monitor = config.progress_monitor
                monitor.phase_start("Building", None, 2)
                monitor.phase_start("Tactics", "Building", 9)
                assert monitor.step_complete("Building", 0)
                monitor.phase_finish("Tactics")
                monitor.phase_finish("Building")
            sdk.built.append(config)
            plan = {
                "version": version,
                "gpu": gpu,
                "shapes": config.profile.shapes if config.profile else None,
                "outputs": [tensor.name for tensor in network.marked],
                "model": network.model.hex(),
            }
            return json.dumps(plan).encode()

    class Profile:
        def __init__(self) -> None:
            self.shapes: Any = None

        def set_shape(self, name: str, smallest: Any, preferred: Any, largest: Any) -> None:
            self.shapes = [list(smallest), list(preferred), list(largest)]

    class Cache:
        def __init__(self, content: bytes) -> None:
            self.content = content

        def serialize(self) -> bytes:
            return f"timings {gpu}".encode()

    class Config:
        def __init__(self) -> None:
            self.profile: Any = None
            self.progress_monitor: Any = None
            self.cache: Any = None
            self.pools: dict[Any, int] = {}
            self.flags: list[Any] = []

        def add_optimization_profile(self, profile: Any) -> int:
            self.profile = profile
            return 0

        def create_timing_cache(self, content: bytes) -> Any:
            return Cache(content)

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            if cache.content not in (b"", f"timings {gpu}".encode()):
                return False
            self.cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return self.cache

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            self.pools[pool] = size

        def set_flag(self, flag: Any) -> None:
            self.flags.append(flag)

    class Tensor:
        def __init__(self, name: str, shape: tuple[int, ...] = ()) -> None:
            self.name, self.shape = name, Dims(shape)

    class Layer:
        def __init__(self, names: list[str]) -> None:
            self.tensors = [Tensor(name) for name in names]

        @property
        def num_outputs(self) -> int:
            return len(self.tensors)

        def get_output(self, index: int) -> Any:
            return self.tensors[index]

    class Network:
        def __init__(self) -> None:
            self.model, self.layers, self.inputs, self.marked = b"", list[Any](), list[Any](), list[Any]()

        num_layers = property(lambda self: len(self.layers))
        num_inputs = property(lambda self: len(self.inputs))
        num_outputs = property(lambda self: len(self.marked))

        def get_layer(self, index: int) -> Any:
            return self.layers[index]

        def get_input(self, index: int) -> Any:
            return self.inputs[index]

        def get_output(self, index: int) -> Any:
            return self.marked[index]

        def mark_output(self, tensor: Any) -> None:
            self.marked.append(tensor)

    class OnnxParser:
        num_errors = 0

        def __init__(self, network: Any, log: Any) -> None:
            self.network = network

        def parse(self, content: bytes) -> bool:
            graph = onnx.load_model_from_string(content).graph
            self.network.model = content
            self.network.layers = [Layer(list(node.output)) for node in graph.node]
            for entry in graph.input:
                sizes = tuple(
                    size.dim_value if size.HasField("dim_value") else -1 for size in entry.type.tensor_type.shape.dim
                )
                self.network.inputs.append(Tensor(entry.name, sizes))
            self.network.marked = [Tensor(entry.name) for entry in graph.output]
            return True

    class Runtime:
        def __init__(self, log: Any) -> None:
            self.log, self.engine_host_code_allowed = log, False

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            plan = json.loads(content)
            if plan["gpu"] != gpu:
                text = f"expecting compute {gpu} got compute {plan['gpu']}, please rebuild."
                self.log.log(1, f"The engine plan file is generated on an incompatible device, {text}")
                return None
            if plan["version"] != version:
                text = f"expecting library version {version} got {plan['version']}, please rebuild."
                self.log.log(1, f"The engine plan file is not compatible with this version of TensorRT, {text}")
                return None
            return Engine(plan)

    class Engine:
        def __init__(self, plan: Any) -> None:
            self.plan, self.model = plan, onnx.load_model_from_string(bytes.fromhex(plan["model"]))
            self.names = [self.model.graph.input[0].name, *plan["outputs"]]

        num_io_tensors = property(lambda self: len(self.names))

        def get_tensor_name(self, index: int) -> str:
            return str(self.names[index])

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return TensorIOMode.INPUT if name == self.names[0] else TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            types = {entry.name: entry.type.tensor_type.elem_type for entry in self.model.graph.output}
            return onnx.helper.tensor_dtype_to_np_dtype(types.get(name, onnx.TensorProto.FLOAT))

        def get_tensor_shape(self, name: str) -> Any:
            shape = [
                size.dim_value if size.HasField("dim_value") else -1
                for size in self.model.graph.input[0].type.tensor_type.shape.dim
            ]
            return Dims(shape)

        def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
            return [Dims(shape) for shape in self.plan["shapes"]]

        def create_execution_context(self) -> Any:
            return Context(self)

        def create_engine_inspector(self) -> Any:
            return Inspector(self)

    class Inspector:
        def __init__(self, engine: Any) -> None:
            self.engine, self.execution_context = engine, None

        def get_engine_information(self, form: Any) -> str:
            assert form is sdk.LayerInformationFormat.JSON and self.execution_context is not None
            is_old = version.startswith("10.")
            word = {"Format/Datatype": "Row major Int8 format"} if is_old else {"Datatype": "Int8", "Format": "Linear"}
            layers = [
                {
                    "Name": node.name,
                    "LayerType": "CaskConvolution",
                    "Inputs": [{"Name": "x", "Dimensions": [1], **word}],
                    "Weights": {"Type": "Int8", "Count": 1},
                    "Metadata": f"[ONNX Layer: {node.name}]",
                }
                for node in self.engine.model.graph.node
                if node.op_type in ("Conv", "Gemm", "MatMul")
            ]
            return json.dumps({"Layers": layers})

    class Context:
        def __init__(self, engine: Any) -> None:
            self.engine, self.addresses = engine, dict[str, int]()
            self.shape: tuple[int, ...] | None = None
            model = onnx.ModelProto()
            model.CopyFrom(engine.model)
            known = {entry.name for entry in model.graph.output}
            model.graph.output.extend(
                onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
                for name in engine.names[1:]
                if name not in known
            )
            self.evaluator = ReferenceEvaluator(model)
            self.last: tuple[bytes, list[Any]] = (b"", [])

        def set_input_shape(self, name: str, shape: Any) -> bool:
            smallest, _, largest = self.engine.plan["shapes"] or [list(shape)] * 3
            if not smallest[0] <= shape[0] <= largest[0]:
                return False
            self.shape = tuple(shape)
            values = self._computed(np.zeros(shape, np.float32))
            self.shapes = {key: np.shape(value) for key, value in zip(self._names(), values, strict=True)}
            return True

        def _computed(self, images: Any) -> list[Any]:
            if self.last[0] != images.tobytes():  # the evaluator is slow, and a latency asks for one result often
                self.last = images.tobytes(), list(self.evaluator.run(None, {self.engine.names[0]: images}))
            return self.last[1]

        def _names(self) -> list[str]:
            return list(self.evaluator.output_names)

        def get_tensor_shape(self, name: str) -> Any:
            assert self.shape is not None, "no shape before the input has one"
            return Dims(self.shapes[name])

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return True

        def execute_async_v3(self, stream: int) -> bool:
            assert stream in cuda.alive and set(self.addresses) == set(self.engine.names)
            if cuda.recording is not None and not capturable:
                return True  # nothing is recorded
            shape, addresses = self.shape, dict(self.addresses)

            def work() -> None:
                assert shape is not None
                images = np.empty(shape, np.float32)
                ctypes.memmove(images.ctypes.data, addresses[self.engine.names[0]], images.nbytes)
                for name, value in zip(self._names(), self._computed(images), strict=True):
                    whole = np.ascontiguousarray(value, self.engine.get_tensor_dtype(name))
                    ctypes.memmove(addresses[name], whole.ctypes.data, whole.nbytes)
                cuda.clock += 0.25

            cuda.do(work)
            return True

    sdk.Builder, sdk.OnnxParser, sdk.Runtime = Builder, OnnxParser, Runtime
    return sdk
