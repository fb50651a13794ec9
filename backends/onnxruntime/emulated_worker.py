"""A session of ONNX Runtime behind two pipes: run by the Python of an emulated processor, with numpy and nothing else.

Each message is its length as eight bytes and an npz: first model and options, answered by the optimised graph, then
images, answered by the outputs, until the input ends.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_LENGTH = struct.Struct("<Q")


def send(stream: BinaryIO, arrays: dict[str, Any]) -> None:
    """Write one message."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    stream.write(_LENGTH.pack(buffer.tell()) + buffer.getvalue())
    stream.flush()


def receive(stream: BinaryIO) -> dict[str, Any] | None:
    """Read one message, or None where the stream has ended."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    with np.load(io.BytesIO(stream.read(_LENGTH.unpack(head)[0])), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def main(requests: BinaryIO, answers: BinaryIO) -> None:
    """Load the model of the first message and run all that follow."""
    import onnxruntime

    first = receive(requests)
    assert first is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    for name, value in json.loads(bytes(first["options"])).items():
        options.add_session_config_entry(name, value)
    with tempfile.TemporaryDirectory(prefix="faqd-emulated-") as folder:
        path = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(path)
        session = onnxruntime.InferenceSession(bytes(first["model"]), options, providers=["CPUExecutionProvider"])
        send(answers, {"optimised": np.frombuffer(path.read_bytes(), np.uint8)})
    entry = session.get_inputs()[0].name
    while (message := receive(requests)) is not None:
        outputs = session.run(None, {entry: message["images"]})
        send(answers, {str(index): output for index, output in enumerate(outputs)})


if __name__ == "__main__":
    main(sys.stdin.buffer, sys.stdout.buffer)
