"""Every method side by side: methods x widths x seeds with the whole command, as a table and a plot.

    FAQD_BENCHMARK_OUTPUT=DIR python3 -m pytest -m benchmark tests/benchmarks/test_methods.py -s [-k "w4a8 and seed0"]

Every run is kept in DIR/methods.jsonl when it has ended and is not repeated: an interrupted benchmark goes on when
started again, and `-n 2` runs two at a time. FAQD_METHODS_STEPS gives all runs that many steps of 64 images (250 by
default, the same for each); FAQD_METHODS_NETWORK=digits takes the embedded example instead of ResNet-20 on the shared
sample, to try the benchmark itself. The last step's weights count; nothing but the score reads a label. What a step
costs is measured apart (`-k cost`, one process on a machine that does nothing else), as the runs may share theirs.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import faqd

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Columns, Results, Row

pytestmark = pytest.mark.benchmark

NETWORK = os.environ.get("FAQD_METHODS_NETWORK", "resnet20")
STEPS = int(os.environ.get("FAQD_METHODS_STEPS") or 250)
BATCH = 64
SEEDS = (0, 1, 2)
ORACLE = ("--backend", "reference")
WIDTHS: dict[str, tuple[str, ...]] = {
    "w8a8": ("--bits", "8"),
    "w4a8": ("--bits", "4"),
    "w2a8": ("--bits", "2"),
    "w4a4": ("--bits", "4", "--activation-bits", "4", *ORACLE),
    "w2a2": ("--bits", "2", "--activation-bits", "2", *ORACLE),
}
PTQ, LOGITS = "calibrated only", "logits"
METHODS: dict[str, tuple[str, ...]] = {
    PTQ: ("--affinity", "none", "--steps", "0"),
    LOGITS: ("--affinity", "none"),
    "faqd": ("--affinity", "auto"),
    "ffa": ("--affinity", "ffa"),
    "sp": ("--affinity", "sp"),
    "rkd-d": ("--affinity", "rkd-d"),
    "rkd-a": ("--affinity", "rkd-a"),
    "pkt": ("--affinity", "pkt"),
    "gslr, label-free": ("--affinity", "none", "--logit-weight", "linear:1:0", "--class-weight", "linear:0:1"),
    "speq": ("--affinity", "none", "--speq-weight", "1"),
    "feed": ("--affinity", "none", "--feed-weight", "0.1"),
    "feed, two generations": ("--affinity", "none", "--feed-weight", "0.1", "--generations", "2"),
    "sakd": ("--affinity", "none", "--sakd-weight", "0.1"),
    "image-free": ("--affinity", "none", "--data", "none", "--generator-steps", "250", "--generated-images", "3072"),
    # How weights and scales learn, by the logits alone.
    "BatchNorm kept": ("--affinity", "none", "--batch-norm", "kept"),
    "folded first": ("--affinity", "none", "--batch-norm", "folded"),
    "FAQD's weight grids": ("--affinity", "none", "--weight-grids", "faqd"),
    "PACT": ("--affinity", "none", "--activation-grids", "pact"),
}
# What is left out: FAQD's formulas are for 4, 2 and 1 bits; images are generated for the width that has a goal without
# any, as it takes longer than all else; of the two ways with BatchNorm one is what `logits` does.
LEFT_OUT = {("w8a8", "FAQD's weight grids")}
LEFT_OUT |= {(w, "image-free") for w in WIDTHS if w != "w4a8"}
LEFT_OUT |= {(w, "BatchNorm kept" if w.startswith("w2") else "folded first") for w in WIDTHS}
RUNS = [(w, m) for w in WIDTHS for m in METHODS if (w, m) not in LEFT_OUT]
FLOOR = "methods_floor"  # the rows of the benchmark of that name
SAME = {"network": NETWORK, "steps": STEPS, "batch": BATCH}
COST_STEPS = (4, 44)
# What the issue of the methods asks of ResNet-20 without labels, percent; None: nothing.
GOALS: Mapping[str, float] = {"w4a8": 92.0, "w2a8": 90.8, "w4a4": 91.2, "w2a2": 87.5}

COLUMNS: Columns = {
    "widths": lambda row: row["widths"],
    "method": lambda row: row["method"],
    "seeds": lambda row: len(row["scores"]),
    "top-1, %": lambda row: _spread(row["scores"]),
    "drop from float, points": lambda row: _spread([row["teacher"] - score for score in row["scores"]]),
    "change to logits, points": lambda row: _spread(row["changes"]) if row["changes"] else None,
    "goal": lambda row: GOALS.get(row["widths"]) if NETWORK == "resnet20" else None,
    "ms per step": lambda row: f"{row['step_ms']:.0f}" if row["step_ms"] else None,
    "layers at 8 bits": lambda row: ", ".join(row["wide"]) or None,
}


# The seed varies slowest: a benchmark that was stopped early has whole comparisons.
@pytest.mark.parametrize(("widths", "method"), RUNS)
@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed{seed}")
def test_methods(
    seed: int,
    widths: str,
    method: str,
    request: pytest.FixtureRequest,
    results: Results,
    repository: Path,
    tmp_path: Path,
) -> None:
    key = {**SAME, "widths": widths, "method": method, "seed": seed}
    if results.find(key) is None:
        report = _run(request, widths, method, seed, repository, tmp_path)
        assert report.distillation is not None
        results.add(
            key,
            teacher=100 * (report.accuracy.teacher or 0.0),
            score=100 * (report.accuracy.runtime or 0.0),
            chosen=report.distillation.chosen,
            wide=[layer.name for layer in report.layers if layer.weight_bits == 8 and widths != "w8a8"],
        )
    _publish(results)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in (PTQ, "image-free", "folded first")])
def test_cost(
    method: str,
    request: pytest.FixtureRequest,
    results: Results,
    repository: Path,
    tmp_path: Path,
) -> None:
    """What one more step of a method costs: a run of some steps less a run of few, W4A8."""
    seconds = {}
    for steps in COST_STEPS:
        report = _run(request, "w4a8", method, 0, repository, tmp_path / str(steps), steps=steps, threads=2)
        seconds[steps] = report.seconds["distil"]
    few, some = COST_STEPS
    step_ms = 1000 * (seconds[some] - seconds[few]) / (some - few)
    results.add({"network": NETWORK, "batch": BATCH, "cost": method}, step_ms=step_ms)
    _publish(results)


def _publish(results: Results) -> None:
    rows = results.newest()
    kept = [row for row in rows if all(row["key"].get(name) == value for name, value in SAME.items())]
    costs = {row["key"]["cost"]: row["step_ms"] for row in rows if "cost" in row["key"]}
    floor = [row for row in results.beside(FLOOR).newest() if row["key"]["network"] == NETWORK]
    lines = _lines(kept, costs, floor)
    results.publish(
        f"Methods side by side: {NETWORK}, {STEPS} steps of {BATCH} images each",
        COLUMNS,
        lines,
        notes=[
            "mean over the seeds +- sample standard deviation; the last step's weights; label-free",
            "top-1 on the runtime (W4A4 and W2A2: on the integer oracle, deployable on no runtime of today)",
            "change to logits: to logits alone with the same widths and seed",
            "ms per step: W4A8, two threads, measured apart, one run after another; two generations take two steps",
        ],
    )
    (results.folder / "methods.svg").write_text(_plot(lines), encoding="utf-8")


def _run(
    request: pytest.FixtureRequest,
    widths: str,
    method: str,
    seed: int,
    repository: Path,
    folder: Path,
    *,
    steps: int = STEPS,
    threads: int = 1,
) -> faqd.Report:
    """Run the command; its report."""
    flags = {"--steps": str(steps)} | ({} if method == PTQ else {"--batch-size": str(BATCH)})
    command = [sys.executable, "-m", "pipeline", "run", "--seed", str(seed), "--output", str(folder / "run")]
    if NETWORK != "digits":
        cifar = request.getfixturevalue("cifar")
        command += ["--teacher", f"cifar:{NETWORK}", "--weights", str(cifar.weights(NETWORK))]
        command += ["--data", cifar.unlabelled] if method != "image-free" else []
        command += ["--eval-data", cifar.test]
    else:
        command += ["--eval-data", "digits"]
    # A flag that is given twice is refused: the method's own wins.
    shared = [part for flag, value in flags.items() if flag not in METHODS[method] for part in (flag, value)]
    command += [*WIDTHS[widths], "--max-drop", "100", *shared, *METHODS[method]]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    finished = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode in (0, 1), finished.stderr
    report = faqd.read_bundle(folder / "run" / "bundle").report
    assert report is not None
    return report


def _lines(rows: Sequence[Row], costs: Mapping[str, float], floor: Sequence[Row]) -> list[Row]:
    """One row per widths and method, figures as lists over the seeds; what other tools reach without training first."""
    runs = {(row["key"]["widths"], row["key"]["method"], row["key"]["seed"]): row for row in rows}
    lines = []
    teacher = next((row["teacher"] for row in rows), 0.0)
    for widths in WIDTHS:
        others = [row for row in floor if row["key"]["widths"] == widths]
        for tool in dict.fromkeys(row["key"]["tool"] for row in others):
            own = [row for row in others if row["key"]["tool"] == tool]
            lines.append(
                {
                    "widths": widths,
                    "method": tool,
                    "teacher": teacher,
                    "scores": [row["score"] for row in own],
                    "changes": [],
                    "step_ms": None,
                    "wide": ["first and last"] if widths != "w8a8" else [],
                    "circumstances": [row["circumstances"] for row in own],
                }
            )
        for method in METHODS:
            by_seed = {seed: runs[widths, method, seed] for seed in SEEDS if (widths, method, seed) in runs}
            if not by_seed or (widths, method) in LEFT_OUT:
                continue
            bases = {seed: runs.get((widths, LOGITS, seed)) for seed in by_seed}
            lines.append(
                {
                    "widths": widths,
                    "method": method,
                    "teacher": next(iter(by_seed.values()))["teacher"],
                    "scores": [row["score"] for row in by_seed.values()],
                    "changes": [
                        row["score"] - base["score"]
                        for seed, row in by_seed.items()
                        if (base := bases[seed]) is not None and method not in (LOGITS, PTQ)
                    ],
                    "step_ms": costs.get(method),
                    "wide": next(iter(by_seed.values()))["wide"],
                    "circumstances": [row["circumstances"] for row in by_seed.values()],
                }
            )
    return lines


def _plot(lines: Sequence[Row]) -> str:
    """Top-1 by widths (left) and by cost of a step (right), one mark per method with its spread, as SVG.

    A dashed line is the best of other tools without training. What scores less than half is left out.
    """
    shown = [line for line in lines if statistics.mean(line["scores"]) > 50]
    low: float = min(min(line["scores"]) for line in shown) - 1
    high: float = max(max(line["scores"]) for line in shown) + 1
    widest = max((line["step_ms"] for line in shown if line["step_ms"]), default=1.0)
    methods, marks = list(METHODS), []

    def height(score: float) -> float:
        return 460 - 420 * (score - low) / (high - low)

    for score in range(int(low) + 1, int(high) + 1):
        marks.append(f'<text x="50" y="{height(score) + 4:.1f}" text-anchor="end">{score}</text>')
        marks.append(f'<path d="M55 {height(score):.1f}H1210" stroke="#ddd"/>')
    for position, widths in enumerate(WIDTHS):
        left, own = 60 + 170 * position, [line for line in shown if line["widths"] == widths]
        floor = [statistics.mean(line["scores"]) for line in own if line["method"] not in METHODS]
        if floor:
            y = height(max(floor))
            marks.append(f'<path d="M{left} {y:.1f}h155" stroke="#888" stroke-dasharray="4"/>')
        marks.append(f'<text x="{left + 77}" y="485" text-anchor="middle">{widths}</text>')
        for line in own:
            if line["method"] not in METHODS:
                continue
            number, score = methods.index(line["method"]), statistics.mean(line["scores"])
            colour, y = f"hsl({360 * number / len(methods):.0f} 70% 45%)", height(score)
            half = height(score) - height(score + _deviation(line["scores"]))
            title = f"<title>{line['method']}, {widths}: {_spread(line['scores'])} %</title>"
            places = [left + 8 * number + 5.0]
            if line["step_ms"]:
                places.append(960 + 240 * line["step_ms"] / widest)
            for x in places:
                marks.append(f'<path d="M{x:.1f} {y - half:.1f}v{2 * half:.1f}" stroke="{colour}"/>')
                marks.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">{title}</circle>')
    for index, method in enumerate(methods):
        colour = f"hsl({360 * index / len(methods):.0f} 70% 45%)"
        marks.append(f'<text x="1230" y="{40 + 24 * index}" fill="{colour}">{method}</text>')
    marks.append(f'<text x="1080" y="485" text-anchor="middle">ms per step, 0 to {widest:.0f}</text>')
    marks.append('<text x="60" y="20">top-1, %: mean and standard deviation; dashed: other tools, untrained</text>')
    size = 'width="1400" height="500"'
    return "\n".join(
        [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">', *marks, "</svg>\n"]
    )


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} +- {statistics.stdev(values):.2f}" if len(values) > 1 else mean
