"""The check of a bundle for ONNX Runtime or OpenVINO on its device: hashes, golden outputs, latency, a user's images.

Exit status: 0 every output is as it should be, 1 one is not, 2 a mistake that one line names, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .compare import compared, golden_line
from .ending import ended, say
from .errors import DeviceError
from .golden import check_gives, check_takes, read_golden
from .images import open_images, scored
from .manifest import check_made_for, check_outside, read_manifest, remark, write_whole
from .runtimes import latency, load, run_all, suits
from .signature import read_key

BACKENDS = ("onnxruntime", "openvino", "reference")


def main(arguments: Sequence[str], folder: Path) -> int:
    """Check the bundle in `folder`; prints what came out, returns the exit status."""
    chosen = _parser(folder).parse_args(list(arguments))
    return ended(lambda: check(chosen, say=say), chosen.report)


def _parser(folder: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="check.py",
        description="Run the bundle's golden inputs on this device's runtime and compare every output.",
        epilog="Exit status: 0 every output is as it should be, 1 one is not, 2 a mistake in the input or on this"
        " device, 130 interrupted.",
    )
    add = parser.add_argument
    add("bundle", nargs="?", type=Path, default=folder, help="folder of the bundle; default: where this file lies")
    add(
        "--images",
        metavar="FOLDER or FILE.npz#IMAGES[,LABELS]",
        help="run images: a folder (needs Pillow), or uint8 [N, C, H, W] of the input's size; scored where there are"
        " labels [N] (of maps [N, H, W]) or folders with the classes' names",
    )
    add("--outputs", type=Path, metavar="FILE.npz", help="write every output for --images there")
    add("--batch", type=int, default=1, help="images per call in the latency measurement; default 1")
    add("--threads", type=int, default=1, help="threads of the runtime; default 1")
    add("--key", type=Path, metavar="FILE", help="the key that the bundle is signed by; such a bundle needs it")
    add("--report", type=Path, metavar="FILE.json", help="write all figures there")
    return parser


def check(chosen: argparse.Namespace, *, say: Callable[[str], None]) -> dict[str, Any]:
    """All figures of one bundle on this device; raises DeviceError for what the user can mend."""
    for flag in ("batch", "threads"):
        if getattr(chosen, flag) < 1:
            raise DeviceError(f"--{flag} {getattr(chosen, flag)}: must be 1 or more")
    if chosen.outputs is not None and chosen.images is None:
        raise DeviceError(f"--outputs {chosen.outputs} needs --images, whose outputs are written")
    bundle: Path = chosen.bundle
    check_outside(bundle, {"--outputs": chosen.outputs, "--report": chosen.report})
    manifest = read_manifest(bundle, key=None if chosen.key is None else read_key(chosen.key))
    check_made_for(manifest, bundle, BACKENDS)
    if (line := remark(manifest)) is not None:
        say(f"note               {line}")
    inputs, expected = read_golden(bundle, manifest)
    session, runtime = load(bundle / "model.onnx", manifest, chosen.threads)
    say(f"device             {platform.machine()}, {runtime}")
    exact = manifest.exact and suits(manifest.target)
    if manifest.target:
        elsewhere = ": its integers are other ones here, so answers are compared" if manifest.exact != exact else ""
        say(f"made for           {manifest.target}{elsewhere}")
    check_takes(session, inputs)
    outputs = run_all(session, inputs)
    check_gives(outputs, expected)
    report: dict[str, Any] = {"format": 1, "device": {"machine": platform.machine(), "runtime": runtime}, "golden": {}}
    for entry in manifest.outputs:
        name = entry.name
        report["golden"][name] = compared(outputs[name], expected[name], entry, manifest.least, exact=exact)
        say(golden_line("runtime vs oracle", name, report["golden"][name]))
    report["latency"] = {**latency(session, inputs, chosen.batch), "threads": chosen.threads}
    say(
        f"latency            {report['latency']['median_ms']:.4g} ms (p90 {report['latency']['p90_ms']:.4g}), batch"
        f" {report['latency']['batch']}, threads {chosen.threads}"
    )
    if chosen.images is not None:
        images = open_images(chosen.images, bundle, manifest)
        report["accuracy"] = scored(images, lambda batch: run_all(session, batch), manifest.outputs, say)
        values = report["accuracy"].pop("outputs")
        if chosen.outputs is not None:
            content = io.BytesIO()
            np.savez(content, names=np.array(images.names), **values)
            write_whole(chosen.outputs, content.getvalue())
    report["passed"] = all(entry["passed"] for entry in report["golden"].values())
    return report


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], Path(__file__).absolute().parents[2]))
