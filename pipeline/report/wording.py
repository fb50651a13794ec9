"""The words and number formats that the terminal table and the page share."""

from __future__ import annotations

import math
from collections.abc import Mapping

from backends import title_of
from pipeline.report.fields import Data, Entries, OutputScore, Percentiles, ReportFields
from pipeline.report.gate import Gate, Status
from pipeline.tools.confidence import RULED_OUT, decidable_limit
from pipeline.tools.source_text import batch_shape

NOT_HERE = "not run here"
"""Shown for a value that could not be measured on this machine."""

QUANTISERS = {"nncf": "quantised by NNCF"}
"""Quantiser -> what is said of it; nothing of our own."""

VERDICTS: Mapping[Status, str] = {
    "validated": "validated",
    "gate-failed": "a gate failed",
    "not-validated-on-target": "not validated on target",
    "undecided": "undecided: the images cannot tell",
}

TONES: Mapping[Status, str] = {
    "validated": "good",
    "gate-failed": "bad",
    "not-validated-on-target": "open",
    "undecided": "open",
}
"""Status -> the style of its words on a page."""

GATES = {
    "max-drop": ("accuracy lost", "at most", "points"),
    "worst": ("cosine lost by the worst twentieth", "at most", "points"),
    "min-speedup": ("speed-up", "at least", "x"),
    "parity": ("same argmax everywhere", "at least", "%"),
    "parity-values": ("same values everywhere, R2", "at least", "%"),
    "simulation": ("simulated numbers off the oracle's", "at most", "of the largest"),
    "golden": ("golden outputs equal to the bit", "at least", "%"),
    "dynamic-size": ("the same at another size of images", "at least", "%"),
    "kernels": ("planned integer layers run in float", "at most", "layers"),
}
"""Gate -> what is measured, which way its limit counts, the unit shown; % shows fractions as percentages."""

_JUDGES: Mapping[str | None, str] = {"oracle": "by the oracle", "run": "in its run"}

METRICS = {
    "top1": "top-1 accuracy",
    "agreement": "same as teacher",
    "r2": "R2 to teacher",
    "centred-cosine": "centred cosine",
    "cosine": "cosine to teacher",
}

LEAST_GAIN = 1.05
"""Speed-up below which a network counts as no faster: medians of two runs on one machine differ by so much."""

MOST_RUNS = 4
"""Runs of neighbouring entries named at most."""

NAMED_OUTPUTS = 5
"""Outputs described in the terminal's table at most; the page has all."""


def percentage(fraction: float | None) -> str:
    """Return a fraction in [0, 1] as a percentage with two decimals; only 1 itself is shown as 100."""
    if fraction is None:
        return NOT_HERE
    # Rounding 0.99999 up to 100 % would claim an equality that was not found.
    rounded = round(100 * fraction, 2)
    return f"{rounded if fraction == 1 or rounded < 100 else math.floor(10000 * fraction) / 100:.2f} %"


def milliseconds(time: Percentiles | None) -> str:
    """Return the median and p90 of a time in milliseconds."""
    return NOT_HERE if time is None else f"{time.median:.3g} ms (p90 {time.p90:.3g})"


def factor(value: float | None) -> str:
    """Return a ratio as in "2.05x"."""
    return NOT_HERE if value is None else f"{value:.2f}x"


def kilobytes(count: int | None) -> str:
    """Return a size given in bytes in units of 1000 bytes, or 1,000,000 when large."""
    if count is None:
        return NOT_HERE
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def size_ratio(report: ReportFields) -> float | None:
    """Return quantised over float file size, a ratio below 1 when the file shrank."""
    if not report.size.float_bytes or report.size.quantised_bytes is None:
        return None
    return report.size.quantised_bytes / report.size.float_bytes


def gate_words(gate: Gate) -> tuple[str, str, str]:
    """Return (what is measured with its limit, the value, the outcome) of a gate."""
    name, _, output = gate.name.partition(":")
    what, direction, unit = GATES.get(name, (gate.name, "limit", ""))
    if output:
        what = f"cosine lost by the worst of {output}" if name == "worst" else f"lost by output {output}"
    limit = _gate_number(gate.limit, unit) if gate.limit is not None else "none"
    outcome = {True: "pass", False: "FAIL", None: "undecided" if gate.undecided else NOT_HERE}[gate.passed]
    if gate.judged_by in _JUDGES and not gate.undecided:
        outcome += f", {_JUDGES[gate.judged_by]}"
    return (
        f"{what}, {direction} {limit}",
        _gate_number(gate.value, unit) if gate.value is not None else "",
        outcome,
    )


def confidence_words(report: ReportFields) -> str | None:
    """Return in one line how sure the measured loss is, or None where nothing says it."""
    gate = next((gate for gate in report.gates if gate.name == "max-drop"), None)
    if gate is None or gate.value is None or gate.at_most is None:
        return None
    images = f"{gate.images} image{'' if gate.images == 1 else 's'}"
    return f"{gate.value:.2f} points on {images}; with 95 % confidence {gate.at_most:.2f} at most"


def undecided_words(report: ReportFields) -> str | None:
    """Return in one line why gates are undecided and the way out, or None where none is."""
    gates = [gate for gate in report.gates if gate.undecided]
    if not gates:
        return None
    if idle := [gate for gate in gates if gate.says_nothing]:
        return _idle_words(report, idle)
    gate = max(gates, key=lambda gate: gate.images_needed or 0)
    if gate.images is None:
        return (
            "there is no float network to compare with: lay the run's float.onnx beside the bundle's folder, or leave"
            " --eval-data out"
        )
    few = f"{gate.images} image{'' if gate.images == 1 else 's'}"
    more = f" hold more out (--held-out-images {gate.images_needed})," if _can_hold_out(report, gate) else ""
    limit = f"{gate.limit:g} point{'' if gate.limit == 1 else 's'}"
    measured = "" if gate.value is None or not gate.value else f" where {gate.value:.2f} are lost"
    return (
        f"{few} cannot decide a limit of {limit}{measured}, {gate.images_needed} can:"
        f" give them to faqd validate (--eval-data KIND:REST, in Python images; labels are not needed),{more} or"
        f" allow --max-drop"
        f" {_least_limit(gate)}"
    )


def _idle_words(report: ReportFields, gates: list[Gate]) -> str:
    """Return in one line which outputs are the same on all images, and the ways out."""
    main = scored_output(report)
    of_gates = [gate.name.partition(":")[2] or (main.name if main is not None else "the output") for gate in gates]
    names = list(dict.fromkeys(of_gates))
    return (
        f"the float network gives one and the same {', '.join(names)} for all of these images, so that agreement with"
        " it says nothing: give images that it tells apart (faqd validate, --eval-data KIND:REST), check"
        f" --weights, --mean and --std, or leave the output without a gate (--output-max-drop {names[0]}=none)"
    )


def _can_hold_out(report: ReportFields, gate: Gate) -> bool:
    """Say whether a run on the same unlabelled images could hold out as many as a gate needs, and score them."""
    data = report.data
    if data is None or data.generated is not None or report.accuracy.metric == "top1":
        return False
    return data.images - data.unreadable > (gate.images_needed or 0)


def _least_limit(gate: Gate) -> str:
    """Return the smallest limit that a gate's images can decide, as a user would type it."""
    shown = max(decidable_limit(gate.images or 1), gate.value or 0.0, (gate.at_most or 0.0) / RULED_OUT)
    return f"{math.ceil(10 * shown) / 10:g}" if shown < 1 else f"{math.ceil(shown):g}"


def speed_words(report: ReportFields) -> str | None:
    """Return in one line that the quantised network is no faster than the float one, or None where it is faster."""
    speedup = report.latency.speedup
    if speedup is None or speedup >= LEAST_GAIN or report.backend == "reference":
        return None
    how = "SLOWER than" if speedup < 1 / LEAST_GAIN else "NO FASTER than"
    smaller = size_ratio(report)
    left = f"; what is gained is size alone ({factor(smaller)})" if smaller is not None and smaller < 1 else ""
    layers = "layers listed as float above, " if report.kernels.float_layers else ""
    return (
        f"{how} float on this machine ({factor(speedup)}){left}. Ways out: {layers}another"
        " --threads or --batch, a processor with integer instructions (faqd doctor); --min-speedup makes this a gate"
    )


def _gate_number(value: float, unit: str) -> str:
    if unit == "%":
        return percentage(value) if 0 <= value <= 1 else f"{value:g}"
    if unit in ("layers", "of the largest"):
        return f"{value:.3g}" if unit != "layers" else f"{value:g}"
    return f"{value:.2f}{unit}" if unit == "x" else f"{value:.2f} {unit}".rstrip()


def fact(value: str | int | float | bool | None) -> str:
    """Return a fact about the host as text."""
    if value is None:
        return "unknown"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def grid(report: ReportFields) -> str:
    """Return the widths of weights and activations as in "W4A8"."""
    return f"W{report.bits.weights}A{report.bits.activations}"


def runtime_name(report: ReportFields) -> str:
    """Return the runtime's own name."""
    return title_of(report.backend)


def target_words(report: ReportFields) -> str | None:
    """Return the processor that the artifact is for and whether it is this machine's, or None where it has none."""
    if report.target is None:
        return None
    here = report.host.get("target")
    if report.target == here:
        return f"{report.target}, the processor here"
    return f"{report.target}; the processor here is {fact(here)}"


def parity_words(report: ReportFields) -> str:
    """Return in one line how far the runtime's outputs are those of the integer oracle."""
    parity = report.parity
    words = []
    if parity.argmax_agreement is not None:
        words.append(f"same argmax {percentage(parity.argmax_agreement)}")
    if parity.exact_fraction is not None:
        words.append(f"outputs equal to the bit {percentage(parity.exact_fraction)}")
    if parity.max_difference is not None:
        words.append(f"largest difference {parity.max_difference:.3g}")
    return ", ".join(words) or NOT_HERE


def images_words(data: Data) -> str:
    """Return how many unlabelled images were used, and of how many where some could not be read."""
    of_all = f" of {data.images}" if data.unreadable else ""
    return f"{data.images - data.unreadable}{of_all} unlabelled images"


def metric_words(report: ReportFields) -> str:
    """Return what the accuracy columns hold, as a row's heading."""
    main = scored_output(report)
    if main is not None and main.decisions != 1:
        if report.accuracy.metric == "top1":
            return "pixels as labels"
        if report.accuracy.metric == "agreement":
            return "pixels as teacher" if len(main.shape) == 3 else "decided as teacher"
    return METRICS[report.accuracy.metric]


def metric_sentence(report: ReportFields) -> str:
    """Return what the accuracy columns hold, as the beginning of a sentence."""
    main, metric = scored_output(report), report.accuracy.metric
    if metric == "top1":
        return "Top-1 accuracy" if main is None or main.decisions == 1 else "Pixels with their label's class"
    if metric == "centred-cosine":
        return (
            "Mean cosine similarity with the float teacher's embedding of the same image, its mean embedding taken from"
            " both"
        )
    if metric == "cosine":
        return "Mean cosine similarity with the float teacher's embedding of the same image"
    if metric == "r2":
        return "Share explained of the variance of the float teacher's values between images (R2)"
    if main is None or main.decisions == 1:
        return "Same first choice as the float teacher"
    places = "pixels" if len(main.shape) == 3 else "decisions"
    return (
        f"Of the {main.decisions} {places} of output {main.name} in each image, those decided as by the float teacher,"
    )


def scored_output(report: ReportFields) -> OutputScore | None:
    """Return the output that the accuracy is about: the first that holds classes, else labels, else the first."""
    order = {"classes": 0, "labels": 1, "values": 2}
    return min(report.outputs, key=lambda output: order[output.holds], default=None)


def output_words(output: OutputScore) -> str:
    """Return in one line what an output is and how far the artifact gives what the teacher gives."""
    last = output.runtime if output.runtime is not None else output.oracle
    scores = {"r2": "R2", "cosine": "cosine", "centred-cosine": "centred cosine", "agreement": "same as teacher"}
    what = "embedding" if "cosine" in output.metric else output.holds
    words = f"{what} {shape_words(output)}"
    if last is not None:
        words += f", {scores[output.metric]} {percentage(last)}"
    if output.worst is not None:
        words += f", of the worst twentieth {percentage(output.worst)}"
    if output.cosine is not None:
        words += f"; plain cosine {percentage(output.cosine)}"
    if output.mean_iou is not None:
        words += f", mean IoU {percentage(output.mean_iou)}"
    if output.rms_error is not None:
        words += f", rms error {output.rms_error:.3g}"
    if output.entries:
        words += "; of it " + ", ".join(f"{entry_words(kind)} {percentage(kind.explained)}" for kind in output.entries)
    return words


def shape_words(output: OutputScore) -> str:
    """Return an output's shape as in "[batch, 84, 8400]"."""
    return batch_shape(output.shape)


def entry_words(kind: Entries) -> str:
    """Return which entries hold numbers of one kind, as in "entries 4-83 (spread 0.05)"."""
    shown = [f"{first}-{last}" if last > first else f"{first}" for first, last in kind.places[:MOST_RUNS]]
    more = f" and {len(kind.places) - MOST_RUNS} more runs" if len(kind.places) > MOST_RUNS else ""
    several = len(kind.places) > 1 or kind.places[0][0] != kind.places[0][1]
    return f"{'entries' if several else 'entry'} {', '.join(shown)}{more} (spread {kind.spread:.2g})"


def is_plain_classifier(report: ReportFields) -> bool:
    """Return whether one class per image is all that the network says, so that the accuracies tell everything."""
    return all(output.decisions == 1 for output in report.outputs) and len(report.outputs) < 2


def kernel_words(report: ReportFields) -> str:
    """Return in one line how many weighted layers run on integer and on float kernels."""
    kernels = report.kernels
    if kernels.integer is None or kernels.float is None:
        return NOT_HERE
    layers = kernels.integer + kernels.float
    return f"{kernels.integer} of {layers} weighted layers integer, {kernels.float} float"


def training_words(report: ReportFields) -> str | None:
    """Return in one line what distillation did, or None when it did not run."""
    distillation = report.distillation
    if distillation is None:
        return None
    if distillation.steps == 0:
        return "none: calibrated only"
    early = "" if distillation.planned_steps is None else f" of {distillation.planned_steps}"
    words = f"{distillation.steps}{early} steps, learning rate {distillation.learning_rate:g}"
    if distillation.loss_calibrated is not None and distillation.loss_final is not None:
        words += f", held-out loss {distillation.loss_calibrated:.3g} -> {distillation.loss_final:.3g}"
    if distillation.backoffs:
        words += f", rate lowered {distillation.backoffs} time{'' if distillation.backoffs == 1 else 's'}"
    if distillation.diverged:
        words += ", DIVERGED"
    return f"{words}; {distillation.chosen} weights kept"


def way(report: ReportFields) -> str:
    """Return who quantised and who taught, as ", ..." after the runtime's name; empty where both go without saying."""
    words = [QUANTISERS[report.quantiser]] if report.quantiser in QUANTISERS else []
    if report.teacher != report.student:
        words.append(f"taught by {report.teacher}")
    return "".join(f", {word}" for word in words)


def scores(report: ReportFields, *, of_sample: bool = False) -> list[tuple[str, float | None]]:
    """Return the accuracy columns in order, (heading, fraction), of all images or of the sample that all stages saw."""
    accuracy, sample, training = report.accuracy, report.sample, report.distillation
    scored = sample if of_sample and sample is not None else accuracy
    columns = [("float teacher", scored.teacher)]
    if training is not None:
        calibrated = training.accuracy_calibrated if sample is None or not of_sample else sample.calibrated
        columns.append(("calibrated only", calibrated))
    # A bundle holds no simulation, and other tools' files have none.
    if (accuracy if sample is None else sample).simulated is not None:
        columns.append(("simulated", scored.simulated))
    return [*columns, ("oracle", scored.oracle), ("runtime", scored.runtime)]


def headline(report: ReportFields) -> str:
    """Return the result in one sentence."""
    accuracy = report.accuracy
    teacher = percentage(accuracy.teacher)
    if report.status == "not-validated-on-target":
        built = f"Built for {runtime_name(report)}, {grid(report)}, but not validated on it"
        best = (
            f"Simulated {percentage(accuracy.simulated)}"
            if accuracy.simulated is not None
            else f"Oracle {percentage(accuracy.oracle)}"
        )
        return f"{built}. {best}, float teacher {teacher}."
    score = f"{percentage(accuracy.runtime)} on {runtime_name(report)} (float teacher {teacher})"
    extras = []
    if report.latency.speedup is not None:
        extras.append(f"{factor(report.latency.speedup)} the speed of float")
    if (ratio := size_ratio(report)) is not None:
        extras.append(f"{factor(ratio)} its size")
    words = ", ".join([f"{grid(report)}: {score}", *extras]) + "."
    if report.status == "undecided":
        words += f" Undecided: {undecided_words(report)}."
    if report.status == "gate-failed":
        failed = ", ".join(gate_words(gate)[0] for gate in report.gates if gate.passed is False)
        words += f" Failed: {failed}."
    return words
