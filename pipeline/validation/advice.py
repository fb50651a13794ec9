"""What to do about a failed gate: first what this very run has measured, then what is worth trying, cheapest first."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from backends import backends_for
from pipeline.config.quantisation import QuantisationConfig
from pipeline.networks.outputs.joined import lost_entries
from pipeline.report.gate import Gate
from pipeline.report.schema import Report
from pipeline.report.wording import scored_output

#: Bits of weights -> the next wider ones that are worth a run of their own.
_WIDER = {4: 8, 3: 4, 2: 4, 1: 2}
_TRAINING = "training: --strategy distil, without --steps 0"
# Layers named at most.
_NAMED_LAYERS = 3
# Below this number of images, more of them are worth more than another setting [ours].
_FEW_IMAGES = 512


def advice(asked: QuantisationConfig, report: Report, *, bundle: Path | None, variant: str = "") -> tuple[str, ...]:
    """One line for each failed gate that something can be done about; nothing where none failed.

    `asked`: what the artifact is; `bundle`: its folder, None where the artifact is in memory alone; `variant`: of the
    profile that was taken.
    """
    lines = (_line(asked, report, gate, bundle, variant) for gate in report.gates if gate.passed is False)
    return tuple(line for line in lines if line is not None)


def advice_on_bundle(bundle: Path, report: Report, run: Report | None) -> tuple[str, ...]:
    """The same for a gate that a finished bundle fails on a machine or on images other than its run's.

    `report`: what was found; `run`: what the run that made it had found, None where it kept no report.
    """
    lines = list[str]()
    for gate in report.gates:
        name, _, which = gate.name.partition(":")
        if gate.passed is not False:
            continue
        if (line := _of_runtime(gate, report, bundle)) is not None:
            lines.append(line)
        if name in ("max-drop", "worst"):
            output = next((entry for entry in report.outputs if entry.name == which), scored_output(report))
            if output is not None and gate.limit is not None and lost_entries(output, gate.limit):
                continue
            of = f"the gate of output {which}" if which else "the accuracy gate"
            lines.append(f"for {of}, another faqd run, cheapest first: {'; '.join(_ways_of_another_run(report, run))}")
    return tuple(dict.fromkeys(lines))


def _ways_of_another_run(report: Report, run: Report | None) -> Iterator[str]:
    """Flags of a run that may help, as far as the report of the one that made a bundle says what it had."""
    if report.quantiser not in (None, "faqd"):
        yield "--quantiser faqd, which corrects and trains"
        return
    if run is not None and run.distillation is not None and run.distillation.steps == 0:
        yield _TRAINING
    if report.bits.activations < 8:
        yield f"--activation-bits 8 instead of {report.bits.activations}"
    if report.bits.weights in _WIDER:
        yield f"--bits {_WIDER[report.bits.weights]} instead of {report.bits.weights}"
    yield "another --range (mse, minmax, percentile)"
    yield "images for --data that are like those to be judged"


def _line(asked: QuantisationConfig, report: Report, gate: Gate, bundle: Path | None, variant: str) -> str | None:
    name, _, which = gate.name.partition(":")
    if name == "max-drop" and (measured := None if which else _measured(report, gate)) is not None:
        return measured
    if name in ("max-drop", "worst"):
        output = next((entry for entry in report.outputs if entry.name == which), scored_output(report))
        if output is not None and gate.limit is not None and lost_entries(output, gate.limit):
            return None  # no setting helps where one scale serves two kinds of numbers, and that is said already
        return _untried(asked, report, variant, f"the gate of output {which}" if which else "the accuracy gate")
    return _of_runtime(gate, report, bundle)


def _of_runtime(gate: Gate, report: Report, bundle: Path | None) -> str | None:
    """What to do where the runtime does not do what it should: the same for a run and for its bundle."""
    if gate.name.startswith("parity") or gate.name == "golden":
        if bundle is None:
            return "for the parity gate: faqd.compare, of what faqd.write_bundle writes, names what differs first"
        return f"for the parity gate: faqd compare {shlex.quote(str(bundle))} names what differs first"
    if gate.name == "simulation":
        others = [f"{o.name} by {o.simulated_difference:.2g}" for o in report.outputs if o.simulated_difference]
        return (
            f"for the gate of simulated numbers: {', '.join(others)} of the largest value, where simulation and oracle"
            " compute the same integers: what was trained is not quite what is deployed; the scores of oracle and"
            " runtime hold; please report it"
        )
    if gate.name == "kernels":
        names = [layer.name for layer in report.layers if layer.weight_bits is not None and layer.integer is False]
        shown = ", ".join(names[:_NAMED_LAYERS]) + (
            f" and {more} more" if (more := len(names) - _NAMED_LAYERS) > 0 else ""
        )
        return (
            f"for the kernels gate: {shown} are stored as integers and computed in float by this runtime; try another"
            " version of it (faqd doctor says which is here), and please report it"
        )
    if gate.name == "dynamic-size":
        return (
            "for the gate at another size: leave --dynamic-size out and make a file for each size (--image-size), and"
            " please report it"
        )
    if gate.name == "min-speedup":
        return (
            "for the speed-up gate: another --threads or --batch, a processor with integer instructions (faqd doctor),"
            " a smaller --min-speedup"
        )
    return None


def _measured(report: Report, gate: Gate) -> str | None:
    """The calibrated network, where training went on and it was better by the gate's measure."""
    trained, teacher = report.distillation, report.accuracy.teacher
    if trained is None or trained.chosen != "trained":
        return None
    calibrated = trained.accuracy_calibrated
    if report.sample is not None:
        teacher, calibrated = report.sample.teacher, report.sample.calibrated
    if teacher is None or calibrated is None or gate.limit is None:
        return None
    lost = 100 * (teacher - calibrated)
    if lost > gate.limit + 1e-9:
        return None
    where = "the same images" if report.sample is None else f"{report.sample.images} of the images"
    return (
        f"for the accuracy gate: calibrated only passes, --steps 0: it lost {lost:.2f} points in this run, simulated on"
        f" {where}, though its held-out loss is the higher one"
    )


def _untried(asked: QuantisationConfig, report: Report, variant: str, which: str) -> str | None:
    ways = [*_other_profiles(asked, variant), *_ways(asked, report)]
    return f"for {which}, not measured here, cheapest first: {'; '.join(ways)}" if ways else None


def _other_profiles(asked: QuantisationConfig, variant: str) -> Iterator[str]:
    """The slower profiles of the target, which cost time alone; a note says how the calibrated students compared."""
    profiles = [backend.profile for backend in backends_for(asked.backend, asked.target)]
    names = [profile.variant for profile in profiles]
    if variant in names:
        yield from (f"--target {name}, slower than {variant}" for name in names[names.index(variant) + 1 :])


def _ways(widths: QuantisationConfig, report: Report) -> Iterator[str]:
    """Flags that may help, from those that cost a layer some bits to those that cost the user more."""
    if not widths.trains:
        yield "--quantiser faqd, which corrects and trains"
        return
    for flag, bits in (("first", widths.first_bits), ("last", widths.last_bits), ("depthwise", widths.depthwise_bits)):
        if bits < 8:
            yield f"--{flag}-bits 8 instead of {bits}"
    if report.distillation is not None and report.distillation.steps == 0:
        yield _TRAINING
    if widths.activation_bits < 8:
        yield f"--activation-bits 8 instead of {widths.activation_bits}"
    if widths.bits in _WIDER:
        yield f"--bits {_WIDER[widths.bits]} instead of {widths.bits}"
    elif widths.range_method == "auto":
        yield "another --range (mse, minmax, percentile)"
    if report.data is not None and report.data.generated is None:
        used = report.data.images - report.data.unreadable
        if used < _FEW_IMAGES:
            yield f"more images than the {used} of --data"
