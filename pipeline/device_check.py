"""Check a bundle on the machine where it will run; needs numpy and onnxruntime only.

Every bundle holds a copy of this file. Usage: python check.py [BUNDLE]; the folder of the file by default. Exit
status: 0 every golden input gets the golden argmax, 1 not, 2 the bundle is damaged.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def damaged_files(bundle: Path) -> list[str]:
    """Return the names of files that are missing or differ from the manifest's SHA-256."""
    hashes = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["files"]
    return [
        name
        for name, expected in hashes.items()
        if not (bundle / name).is_file() or hashlib.sha256((bundle / name).read_bytes()).hexdigest() != expected
    ]


def main(bundle: Path) -> int:
    """Check one bundle, print what was found and return the exit status."""
    if not (bundle / "manifest.json").is_file():
        print(f"error: {bundle} is no bundle: it has no manifest.json", file=sys.stderr)
        return 2
    if damaged := damaged_files(bundle):
        print(f"error: {bundle} is damaged: {', '.join(damaged)}", file=sys.stderr)
        return 2
    with np.load(bundle / "golden.npz", allow_pickle=False) as golden:
        inputs, expected = golden["inputs"], golden["outputs"]
    session = onnxruntime.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: inputs})[0]
    same = int((outputs.argmax(1) == expected.argmax(1)).sum())
    total = expected.argmax(1).size
    equal = float((outputs == expected).mean())
    difference = float(np.abs(outputs.astype(np.float64) - expected).max())
    print(f"argmax {same} of {total}, equal outputs {equal:.6f}, largest difference {difference:g}")
    return 0 if same == total else 1


if __name__ == "__main__":
    if len(sys.argv) > 2:
        print("usage: python check.py [BUNDLE]", file=sys.stderr)
        raise SystemExit(2)
    raise SystemExit(main(Path(sys.argv[1]) if len(sys.argv) == 2 else Path(__file__).resolve().parent))
