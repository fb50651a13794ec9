"""Check a bundle on the machine where it will run; needs numpy and the runtime (onnxruntime or openvino) only.

Every bundle holds a copy of this file. Usage: python check.py [BUNDLE]; the folder of the file by default. Exit
status: 0 every output of every golden input is the golden one (classes: has its argmax; values: explains all but a
thousandth of its variance), 1 not, 2 the bundle is damaged.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

# Of the variance of values, what a runtime's float operations may leave unexplained.
LARGEST_UNEXPLAINED = 1e-3


def damaged_files(bundle: Path) -> list[str]:
    """Return the names of files that are missing or differ from the manifest's SHA-256."""
    hashes = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["files"]
    return [
        name
        for name, expected in hashes.items()
        if not (bundle / name).is_file() or hashlib.sha256((bundle / name).read_bytes()).hexdigest() != expected
    ]


def edited(manifest: dict[str, Any]) -> bool:
    """Return whether a manifest differs from what its own hash was made of."""
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return manifest.get("format", 0) >= 3 and manifest.get("sha256") != digest


class OpenVINOSession:
    """A model compiled by OpenVINO as faqd compiles it, with those methods of a session of ONNX Runtime used here."""

    def __init__(self, path: Path) -> None:
        # The package sends an event when it is imported, unless the one that sends is missing.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as Python documents it
        import openvino

        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        self.compiled = openvino.compile_model(str(path), "CPU", options)

    def get_inputs(self) -> list[SimpleNamespace]:
        """Return name and shape of every input; free sizes are no numbers."""
        return [_described(port) for port in self.compiled.inputs]

    def get_outputs(self) -> list[SimpleNamespace]:
        """Return name and shape of every output, in the file's order."""
        return [_described(port) for port in self.compiled.outputs]

    def run(self, _: None, inputs: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
        """Return all outputs, in the file's order."""
        return [np.array(value) for value in self.compiled(inputs).to_tuple()]


def _described(port: Any) -> SimpleNamespace:
    sizes = [size.get_length() if size.is_static else None for size in port.partial_shape]
    return SimpleNamespace(name=port.any_name, shape=sizes)


def load(model: Path, backend: str | None, session_options: dict[str, str]) -> Any:
    """Return a session of the runtime that the bundle was made for, with the options that the manifest asks for."""
    if backend == "openvino":
        return OpenVINOSession(model)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    for name, value in session_options.items():
        options.add_session_config_entry(name, value)
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def run_all(session: Any, inputs: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return every output by name; inputs are filled up by repetition where the model has a batch size of its own."""
    entry = session.get_inputs()[0]
    size = entry.shape[0] if isinstance(entry.shape[0], int) else len(inputs)
    parts = []
    for start in range(0, len(inputs), size):
        part = inputs[start : start + size]
        found = session.run(None, {entry.name: np.resize(part, (size, *part.shape[1:]))})
        parts.append([values[: len(part)] for values in found])
    names = [output.name for output in session.get_outputs()]
    return {name: np.concatenate(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)}


def same_answers(
    output: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], holds: str, axis: int
) -> tuple[int, int]:
    """Return how many of the output's answers are the expected ones, and how many there are; values are one answer."""
    if holds == "values":
        error = np.square(output.astype(np.float64) - expected).sum()
        variance = np.square(expected - expected.mean(dtype=np.float64)).sum()
        return int(error <= LARGEST_UNEXPLAINED * variance), 1
    answers = [values.argmax(axis) if holds == "classes" else values > 0 for values in (output, expected)]
    return int((answers[0] == answers[1]).sum()), answers[1].size


def main(bundle: Path) -> int:
    """Check one bundle, print a line per output and return the exit status."""
    if not (bundle / "manifest.json").is_file():
        print(f"error: {bundle} is no bundle: it has no manifest.json", file=sys.stderr)
        return 2
    if damaged := damaged_files(bundle):
        print(f"error: {bundle} is damaged: {', '.join(damaged)}", file=sys.stderr)
        return 2
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    if edited(manifest):
        print(f"error: {bundle / 'manifest.json'} was changed after the run: copy the bundle anew", file=sys.stderr)
        return 2
    if manifest.get("format", 0) < 3:
        print(f"note: of format {manifest.get('format')}, made before manifests were hashed: an edit would not show")
    session = load(bundle / "model.onnx", manifest.get("backend"), manifest.get("session_options", {}))
    everything_same = True
    with np.load(bundle / "golden.npz", allow_pickle=False) as golden:
        outputs = run_all(session, golden["inputs"])
        for entry in manifest["outputs"]:
            output, expected = outputs[entry["name"]], golden[f"outputs.{entry['name']}"]
            same, total = same_answers(output, expected, entry["holds"], entry.get("class_axis", 1))
            word = {"classes": "argmax", "labels": "yes or no"}.get(entry["holds"], "values")
            equal = float((output == expected).mean())
            difference = float(np.abs(output.astype(np.float64) - expected).max())
            print(f"{entry['name']}: {word} {same} of {total}, equal {equal:.6f}, largest difference {difference:g}")
            everything_same &= same >= manifest.get("least_parity", 1.0) * total
    return 0 if everything_same else 1


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print("usage: python check.py [BUNDLE]", file=sys.stderr)
        raise SystemExit(2)
    raise SystemExit(main(Path(sys.argv[1]) if len(sys.argv) == 2 else Path(__file__).resolve().parent))
