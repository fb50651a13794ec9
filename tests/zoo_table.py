"""The reviewed table of every network: what runs on integers in ONNX Runtime, what in float and why, and its figures.

    python3 -m tests.zoo_table [NETWORK ...]

writes the structure of these networks (of all) anew and the page that shows the table; what has changed is then
reviewed as a diff. The figures are those of tests/benchmarks/test_zoo_latency.py, which writes them into the same file;
the counts of parity are those of tests/backends/zoo/test_parity.py, in a file of their own.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from backends.facts.onnxruntime_rules import X64
from backends.facts.widths import Widths
from backends.placement.place import place
from calibration.capture.graph_from_module import capture
from calibration.graph.operators import WEIGHTED, kind
from calibration.rewrites.fold import fold
from calibration.rewrites.rewrite import rewritten
from tests import zoo_parity
from tests.zoo import ZOO, ZooNetwork

_ROOT = Path(__file__).resolve().parent.parent
FILE = _ROOT / "tests" / "backends" / "zoo" / "zoo_onnxruntime.json"
PAGE = _ROOT / "docs" / "zoo.md"

_HEAD = """# What runs on integers, network by network

ONNX Runtime on x86 with VNNI, W8A8; every layer and operator at the size of images that the network is published for.
`tests/backends/zoo/zoo_onnxruntime.json` holds the table; a test holds it to what a run plans, and this page to it.

Agreement, noise and speed: random weights, calibrated on 16 images and not trained, images of 128 px (noise of VGG:
224). Agreement is the share of the 16 with the float network's class; in a network with random weights all classes are
all but equal. Noise is the signal-to-noise ratio of the outputs on the 16, in brackets that of the float network when
its image alone is rounded to 256 levels: so it says what rounding does to a network that nobody trained, which may
multiply it: TinyViT's takes the 38 dB of the rounded image to 7 with every layer in float. What a run reaches is
another matter. Speed is that of the float network over ours, and in brackets that of `onnxruntime.quantization` (U8S8,
per channel) over ours, as {clock}. Above 1 is faster.
An `=` in the brackets: of each kind of kernel our file runs no more than the other one, so that what is below 1 there
is noise of the measurement.
"""
_PARITY = """
## Parity

Oracle, simulation and runtime at real depth, on {images} images of {pixels} px. Every integer that ONNX Runtime rounds
is held against what the oracle makes of the runtime's own integers before it: so a difference is counted where it
arises, under the operator that is rounded there, and what follows from it is not. The largest is one step of the grid
everywhere; a test holds that, and that of the integer kernels none differs but AveragePool, which adds up its window in
another order, so that a tie may round the other way (on these images none does). Equal outputs: the share of output
values that are the oracle's to the bit, of ONNX Runtime and of the simulation that trains. Where an integer differs by
a step, all that follows from it may.
"""
_CLOCK = "medians of interleaved runs, processor time with one thread, time on the wall with more"


def structure_of(network: ZooNetwork) -> dict[str, Any]:
    """Layers on integers and in float, and every float operator by kind and reason, of the whole network."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        torch.manual_seed(0)
        module = network.create(network.full_pixels).eval()
    images = torch.zeros(2, 3, network.full_pixels, network.full_pixels)
    folded = rewritten(fold(capture(module, images, source=network.source)), X64.rewrites_for(Widths()))
    plan = place(folded, X64, Widths())
    layers = [node for node in folded.graph.nodes if kind(node) in WEIGHTED]
    reasons = Counter((plan.kinds[node], reason) for node, reason in plan.float_nodes.items())
    return {
        "pixels": network.full_pixels,
        "integer layers": len(plan.weights),
        "float layers": len(layers) - len(plan.weights),
        "computed in float": [
            {"kind": word, "count": count, "reason": reason} for (word, reason), count in sorted(reasons.items())
        ],
    }


def read() -> dict[str, dict[str, Any]]:
    """Network -> "structure" and, where they were measured, "figures"."""
    table: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return table


def update(name: str, **parts: Any) -> None:
    """Put a network's structure or figures into the file, networks in the list's order, and write the page anew."""
    table = read() if FILE.exists() else {}
    table[name] = table.get(name, {}) | parts
    _write(FILE, table)


def update_parity(name: str, counts: dict[str, Any]) -> None:
    """Put a network's counts of parity into their file and write the page anew."""
    _write(zoo_parity.FILE, zoo_parity.read() | {name: counts})


def _write(file: Path, table: dict[str, dict[str, Any]]) -> None:
    ordered = {known: table[known] for known in ZOO if known in table}
    file.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(read(), zoo_parity.read()), encoding="utf-8")


def page(table: dict[str, dict[str, Any]], parity: dict[str, dict[str, Any]]) -> str:
    """The table as a page to read: figures first, then what is computed in float and why, then parity."""
    cases = sorted({case for row in table.values() for case in row.get("figures", {}).get("speedup", {})})
    headings = [f"batch {case.replace(',', ', threads ')}" for case in cases]
    rows = [_cells(["network", "integer layers", "operators in float", "agreement", "noise, dB", *headings])]
    rows.append(_cells(["---"] * (5 + len(cases))))
    for name, row in table.items():
        structure, figures = row["structure"], row.get("figures", {})
        equal = "=" if figures.get("no more kernels than the peer") else ""
        total = structure["integer layers"] + structure["float layers"]
        floats: Counter[str] = Counter()
        for entry in structure["computed in float"]:
            floats[entry["kind"]] += entry["count"]
        speeds = [
            f"{figures['speedup'][case]:.2f} ({figures['to peer'][case]:.2f}{equal})"
            if case in figures.get("speedup", {})
            else ""
            for case in cases
        ]
        said = ", ".join(f"{count} {word}" for word, count in floats.most_common()) or "none"
        noise = parity.get(name, {}).get("sqnr of outputs")
        shown = f"{noise['quantised']:.1f} ({noise['image alone rounded']:.1f})" if noise else ""
        agreement = f"{figures['agreement']:.0f} %" if figures else ""
        rows.append(_cells([name, f"{structure['integer layers']} of {total}", said, agreement, shown, *speeds]))
    measured = sorted(
        {f"{row['figures']['host']}, {row['figures']['date']}" for row in table.values() if "figures" in row}
    )
    lines = [_HEAD.format(clock=_CLOCK), *rows, "", *(f"Measured on {line}." for line in measured)]
    lines += ["", "## Operators in float and why", "", _cells(["operator", "reason", "networks"]), _cells(["---"] * 3)]
    for (word, reason), networks in sorted(_by_reason(table).items()):
        lines.append(_cells([word, reason, ", ".join(networks)]))
    return "\n".join([*lines, *_parity_lines(parity)]) + "\n"


def _parity_lines(parity: dict[str, dict[str, Any]]) -> list[str]:
    pixels = sorted({row["pixels"] for row in parity.values()})
    lines = _PARITY.format(images=zoo_parity.IMAGES, pixels=", ".join(map(str, pixels))).splitlines()
    heads = ["network", "integers compared", "differences arise at", "equal outputs, runtime", "simulation"]
    lines += ["", _cells(heads), _cells(["---"] * len(heads))]
    for name, row in parity.items():
        said = [f"{word} {counted['differing']} of {counted['integers']}" for word, counted in row["arising"].items()]
        shares = [_share(row["outputs"][column]) for column in ("runtime", "simulation")]
        lines.append(_cells([name, f"{row['integers']}", ", ".join(said) or "none", *shares]))
    return lines


def _share(part: float) -> str:
    return "all" if part == 1 else f"{100 * part:.2f} %"


def _by_reason(table: dict[str, dict[str, Any]]) -> dict[tuple[str, str], list[str]]:
    by_reason: dict[tuple[str, str], list[str]] = {}
    for name, row in table.items():
        for entry in row["structure"]["computed in float"]:
            by_reason.setdefault((entry["kind"], entry["reason"]), []).append(f"{name} {entry['count']}")
    return by_reason


def _cells(words: list[str]) -> str:
    return f"| {' | '.join(words)} |"


if __name__ == "__main__":
    for name in sys.argv[1:] or ZOO:
        update(name, structure=structure_of(ZOO[name]))
        print(name, flush=True)
