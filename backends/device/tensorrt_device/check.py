"""The check of a TensorRT bundle on its device: build or load the engine, look into it, run it, compare, measure.

Exit status: 0 all is well, 1 a comparison failed, 2 a mistake that one line names, 130 interrupted; 3 never (something
always ran).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle_check.compare import compared, golden_line
from ..bundle_check.ending import ended, say
from ..bundle_check.errors import DeviceError
from ..bundle_check.golden import check_gives, read_golden, read_layers
from ..bundle_check.images import open_images, scored
from ..bundle_check.manifest import check_made_for, check_outside, read_manifest, remark, write_whole
from ..bundle_check.signature import read_key
from ..bundle_check.stored import DamagedError, parse_json, read_whole
from .build import HARDWARE, BuiltEngine, EngineOptions, build_engine, engine_facts
from .compare import sampled, sqnr_db
from .cuda import Cuda
from .engine import loaded_engine
from .kernels import EngineCensus, census, parse_inspection
from .sdk import load_sdk, product

#: Least time between two lines of progress, seconds.
_PATIENCE = 5.0
_MOST_RECORD = 1 << 20


def timing_cache() -> Path:
    """Where kernel timings are kept between builds unless the user names another file."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "faqd" / "tensorrt-timing.cache"


def main(arguments: Sequence[str], folder: Path) -> int:
    """Check the bundle in `folder`; prints what comes out, returns the exit status."""
    chosen = _parser(folder).parse_args(list(arguments))
    return ended(lambda: check(chosen.bundle, _options(chosen), chosen, say=say), chosen.report)


def _parser(folder: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="check.py",
        description="Build the bundle's TensorRT engine on this device, look into it, run it and compare.",
        epilog="Exit status: 0 all is well, 1 a comparison failed, 2 a mistake in the input or on this device,"
        " 130 interrupted.",
    )
    add = parser.add_argument
    add("bundle", nargs="?", type=Path, default=folder, help="folder of the bundle; default: where this file lies")
    add("--engine", type=Path, help="engine file: loaded if it is there (its record FILE.json beside it), else written")
    add(
        "--images",
        metavar="FOLDER or FILE.npz#IMAGES[,LABELS]",
        help="run images: a folder (needs Pillow), or uint8 [N, C, H, W] of the input's size; scored where there are"
        " labels [N] (of maps [N, H, W]) or folders with the classes' names",
    )
    add("--batch", type=int, default=1, help="images per inference in the latency measurement; default 1")
    add("--batches", metavar="MIN,OPT,MAX", help="batches the engine takes; default: that of --batch alone")
    add("--workspace-mib", type=int, help="memory that kernels may use, MiB; default: all")
    add("--optimisation-level", type=int, help="0 to 5, how much the builder tries; default: the SDK's own")
    add("--hardware-compatibility", choices=list(HARDWARE), default="none", help="other GPUs that may load the engine")
    add("--version-compatible", action="store_true", help="later versions of the SDK may load the engine")
    add(
        "--timing-cache",
        type=Path,
        default=timing_cache(),
        help="kernel timings of earlier builds; default %(default)s",
    )
    add("--no-layers", action="store_true", help="skip the second build that compares layer by layer")
    add("--key", type=Path, metavar="FILE", help="the key that the bundle is signed by; such a bundle needs it")
    add("--report", type=Path, metavar="FILE.json", help="write all figures there")
    return parser


def _options(chosen: argparse.Namespace) -> EngineOptions:
    if chosen.batch < 1:
        raise DeviceError(f"--batch {chosen.batch}: must be 1 or more")
    batches = (chosen.batch,) * 3
    if chosen.batches is not None:
        try:
            batches = tuple(int(part) for part in chosen.batches.split(","))  # type: ignore[assignment]  # checked below
        except ValueError:
            raise DeviceError(f"--batches {chosen.batches}: must be three whole numbers, MIN,OPT,MAX") from None
    options = EngineOptions(
        batches=batches,
        workspace_mib=chosen.workspace_mib,
        level=chosen.optimisation_level,
        hardware=chosen.hardware_compatibility,
        version_compatible=chosen.version_compatible,
        timing_cache=chosen.timing_cache,
    )
    if not batches[0] <= chosen.batch <= batches[2]:
        raise DeviceError(f"--batch {chosen.batch} lies outside of --batches {chosen.batches}")
    return options


def check(
    bundle: Path, options: EngineOptions, chosen: argparse.Namespace, *, say: Callable[[str], None]
) -> dict[str, Any]:
    """All figures of one bundle on this device; raises DeviceError for what the user can mend."""
    places = {"--engine": chosen.engine, "--report": chosen.report, "--timing-cache": options.timing_cache}
    check_outside(bundle, places)
    manifest = read_manifest(bundle, key=None if chosen.key is None else read_key(chosen.key))
    check_made_for(manifest, bundle, ("tensorrt",))
    if (line := remark(manifest)) is not None:
        say(f"note               {line}")
    inputs, expected = read_golden(bundle, manifest)
    sdk, cuda = load_sdk(), Cuda()
    model = (bundle / "model.onnx").read_bytes()
    facts = engine_facts(sdk, cuda.device_name(), cuda.compute_capability())
    say(f"device             {facts['gpu']}, compute capability {facts['compute']}, {product(sdk)}")
    _make_folder(options.timing_cache)
    plan, record = _engine(sdk, model, options, facts, chosen.engine, say)
    planned = manifest.kernels
    layers = [entry.layer for entry in planned.layers("plan") if not entry.weight_only]
    report: dict[str, Any] = {"format": 1, "device": facts, "engine": record}
    where = str(chosen.engine or "the engine")
    with loaded_engine(
        sdk, plan, cuda, where=where, facts=record.get("facts"), version_compatible=options.version_compatible
    ) as engine:
        outputs = engine.run(inputs)
        check_gives(outputs, expected)
        products = planned_products(planned.kinds, planned.float_nodes)
        kernels = census(parse_inspection(engine.inspection()), layers, products)
        say(kernel_line(kernels))
        report["kernels"] = asdict(kernels)
        report["golden"] = {
            entry.name: compared(outputs[entry.name], expected[entry.name], entry, manifest.least, exact=manifest.exact)
            | {"sqnr_db": sqnr_db(expected[entry.name], outputs[entry.name])}
            for entry in manifest.outputs
        }
        for name, golden in report["golden"].items():
            noise = "" if golden["sqnr_db"] is None else f", {golden['sqnr_db']:.1f} dB"
            say(golden_line("engine vs oracle", name, golden) + noise)
        if chosen.images is not None:
            images = open_images(chosen.images, bundle, manifest)
            report["accuracy"] = scored(images, engine.run, manifest.outputs, say)
            del report["accuracy"]["outputs"]
        batch = min(max(chosen.batch, engine.smallest), engine.largest)  # a file may fix its batch size
        latency = engine.latency(np.resize(inputs, (batch, *inputs.shape[1:])))
        report["latency"] = asdict(latency)
        way = "one CUDA graph" if latency.graph else "kernel by kernel: a layer cannot be captured as a graph"
        say(
            f"latency            {latency.median_ms:.4f} ms (p90 {latency.p90_ms:.4f}), batch {latency.batch},"
            f" on the device between CUDA events, {way}"
        )
    if not chosen.no_layers and "layers.npz" in manifest.files:
        report["layers"] = _layers(sdk, cuda, bundle, model, options, inputs, say)
    same = all(golden["passed"] for golden in report["golden"].values())
    report["passed"] = same and not kernels.floating
    return report


def _make_folder(file: Path | None) -> None:
    try:
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(f"cannot write {file}: {error.strerror or error}; name another --timing-cache") from error


def _engine(
    sdk: Any,
    model: bytes,
    options: EngineOptions,
    facts: dict[str, str],
    path: Path | None,
    say: Callable[[str], None],
) -> tuple[bytes, dict[str, Any]]:
    """The serialised engine and the record of what it was built from: loaded where the file is there, else built."""
    built_from = {
        "model": hashlib.sha256(model).hexdigest(),
        "options": {key: value for key, value in asdict(options).items() if key != "timing_cache"},
    }
    built_from = json.loads(json.dumps(built_from))
    record_file = None if path is None else path.with_name(f"{path.name}.json")
    if path is not None and path.is_file():
        record = _record(record_file, built_from, path)
        say(f"engine             {path}, {path.stat().st_size / 1e6:.2f} MB, loaded")
        return path.read_bytes(), record
    built = build_engine(sdk, model, options, step=_Patient(say))
    for note in built.notes:
        say(f"note               {note}")
    say(f"engine             {len(built.plan) / 1e6:.2f} MB, built in {built.seconds:.1f} s")
    record = {**built_from, "facts": facts, "seconds": built.seconds, "bytes": len(built.plan)}
    if path is not None and record_file is not None:
        write_whole(path, built.plan)
        write_whole(record_file, (json.dumps(record, indent=1) + "\n").encode())
    return built.plan, record


def _record(record_file: Path | None, built_from: dict[str, Any], path: Path) -> dict[str, Any]:
    """What is known of an engine file; raises DeviceError when it was built from something else."""
    if record_file is None or not record_file.is_file():
        return {}
    try:
        record = parse_json(read_whole(record_file, most=_MOST_RECORD), record_file)
        if not isinstance(record, dict) or not isinstance(record.get("facts", {}), dict):
            raise DamagedError(f"{record_file} is no record of an engine")
    except DamagedError as error:
        raise DeviceError(f"{error}: remove it and {path}, and this command builds the engine anew") from error
    for key, what in (("model", "another model"), ("options", "other options")):
        if record.get(key) != built_from[key]:
            raise DeviceError(f"{path} was built from {what}: remove it, and this command builds it anew")
    return record


class _Patient:
    """Progress of a build as few lines."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._last = say, time.monotonic()

    def __call__(self, phase: str, done: int, total: int) -> None:
        if time.monotonic() - self._last >= _PATIENCE:
            self._last = time.monotonic()
            self._say(f"building           {phase}: {done} of {total}")


def planned_products(kinds: Mapping[str, str], float_nodes: Mapping[str, str]) -> list[str]:
    """Products of two activations that a plan has on integers, by its kinds of nodes and its float ones."""
    return [name for name, kind in kinds.items() if kind == "matmul" and name not in float_nodes]


def kernel_line(census: EngineCensus) -> str:
    """The census as the line that a user reads."""
    total = len(census.integer) + len(census.floating)
    text = (
        f"kernels            {len(census.integer)} of {total} planned layers int8; {census.kernels} kernels,"
        f" {census.fused} of them fused, {census.reformats} reformat copies ({census.integer_reformats} of int8)"
    )
    if census.int4_products:
        text += f"; products of int4 weights: {census.int4_products}"
    if products := len(census.integer_products) + len(census.float_products):
        text += f"; products of two activations: {len(census.integer_products)} of {products} int8"
    not_int8 = (*census.floating, *census.float_products)
    return text if not not_int8 else f"{text}; not int8: {', '.join(not_int8)}"


def _layers(
    sdk: Any,
    cuda: Cuda,
    bundle: Path,
    model: bytes,
    options: EngineOptions,
    inputs: NDArray[np.float32],
    say: Callable[[str], None],
) -> dict[str, float | None]:
    """Signal to noise of every layer's output against the oracle's, of an engine that writes them all.

    Written outputs stop TensorRT from fusing over them, so this engine is another one than the timed one.
    """
    names, tensors, references = read_layers(bundle / "layers.npz")
    count = len(references[0]) if references else 0
    alone = replace(options, batches=(1, 1, max(count, 1)))
    built: BuiltEngine = build_engine(sdk, model, alone, outputs=tensors, step=_Patient(say))
    with loaded_engine(sdk, built.plan, cuda, version_compatible=options.version_compatible) as engine:
        outputs = engine.run(inputs[:count])
    noise = {
        name: sqnr_db(reference, sampled(outputs[tensor]))
        for name, tensor, reference in zip(names, tensors, references, strict=True)
    }
    known = sorted((value, name) for name, value in noise.items() if value is not None)
    worst = ", ".join(f"{name} {value:.1f} dB" for value, name in known[:3])
    say(f"layers vs oracle   {len(noise)} compared, the noisiest {worst or 'none'}")
    return noise
