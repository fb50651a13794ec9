"""The gates of a run: what its result must reach before it may be called validated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from backends.base import Backend, Census
from backends.device.bundle_check.same_answer import EXACT, least_share
from calibration.errors import UserError
from calibration.plan import Plan
from pipeline.bundle.bundle import Bundle
from pipeline.config.validation import ValidationConfig
from pipeline.report.gate import Gate, Judge
from pipeline.report.schema import Latency, OutputScore, Report
from pipeline.tools.confidence import PointsLost, decision, images_needed, images_to_decide
from pipeline.validation.score import Scores

# An embedding of one image in twenty may lose so many times what their mean may [ours].
WORST_TIMES = 5.0


def least_parity_for(plan: Plan, backend: Backend) -> float:
    """The share of answers, 0 to 1, that must be the same in simulation, oracle and runtime."""
    return least_share(floats=bool(backend.profile.inexact or plan.float_nodes))


def least_parity_of_bundle(bundle: Bundle, backend: Backend) -> float:
    """The same of a bundle: what its manifest says, by which its own check judges, where it says it."""
    return least_parity_for(bundle.plan, backend) if bundle.least_parity is None else bundle.least_parity


def gates_of(
    config: ValidationConfig,
    scores: Scores,
    census: Census | None,
    latency: Latency,
    *,
    least: float,
    earlier: Report | None = None,
    exact: bool = False,
) -> tuple[Gate, ...]:
    """Every gate with its limit and what was measured; None where the target itself has not been asked.

    `least`: the share of answers, 0 to 1, that must be the same in simulation, oracle and runtime (`least_parity_for`).
    `earlier` is the report of the bundle's run where the images here are its golden ones, whose number decides no
    accuracy: what that run lost is judged, unless these few images alone show that it is too much. `exact`: every
    number of the runtime must be the oracle's to the bit as well.
    """
    gates = [*_drops(config, scores, earlier), *_parities(scores, least), *_simulation(scores, least)]
    if exact:
        equal = scores.parity.exact_fraction
        gates.append(Gate(name="golden", limit=EXACT, value=equal, passed=None if equal is None else equal == EXACT))
    refused = None if census is None else float(len(census.floating))
    # Only the target itself can pass this gate: what a compiler elsewhere says is a signal.
    said_here = census is not None and not census.elsewhere and scores.accuracy.runtime is not None
    passed = refused == 0 if said_here else None
    gates.append(Gate(name="kernels", limit=0.0, value=refused, passed=passed))
    if config.min_speedup is not None:
        speedup = latency.speedup
        passed = None if speedup is None else speedup >= config.min_speedup
        gates.append(Gate(name="min-speedup", limit=config.min_speedup, value=speedup, passed=passed))
    return tuple(gates)


def check_output_names(config: ValidationConfig, names: Sequence[str], *, source: str) -> None:
    """Raise UserError where --output-max-drop names an output that a network does not have."""
    for name in config.output_limits:
        if name not in names:
            raise UserError(f"--output-max-drop {name}: {source} has no output of that name; it has {', '.join(names)}")


def with_limits_of(config: ValidationConfig, earlier: Report | None) -> ValidationConfig:
    """The limits that the run of a bundle had, where other ones were not typed."""
    if earlier is None:
        return config
    limits = {gate.name: gate.limit for gate in earlier.gates}
    typed, kept = config.output_limits, list(config.output_max_drop)
    if config.max_drop is None:
        for name, limit in limits.items():
            kind, _, output = name.partition(":")
            if kind == "max-drop" and output and output not in typed and limit != limits.get("max-drop"):
                kept.append(f"{output}={limit}")
        limit = limits.get("max-drop")
        config = replace(config, max_drop=None if limit is None else min(limit, 100.0))
    return replace(config, output_max_drop=tuple(kept))


def repetitions(scores: Scores) -> tuple[str, ...]:
    """What to say of scored images that repeat others."""
    if not scores.repeated:
        return ()
    images = scores.accuracy.images
    return (
        f"{scores.repeated} of the {images} scored images repeat others to the bit: {images - scores.repeated} count as"
        " evidence",
    )


def ungated(config: ValidationConfig) -> tuple[str, ...]:
    """What to say of outputs whose accuracy nothing judges."""
    free = [name for name, limit in config.output_limits.items() if limit is None]
    return tuple(f"output {name} has no accuracy gate: --output-max-drop {name}=none" for name in free)


def _drops(config: ValidationConfig, scores: Scores, earlier: Report | None) -> Iterator[Gate]:
    """What every output may lose: the one that the network is scored by its accuracy, each other what it agrees by."""
    judge: Judge = "oracle" if scores.accuracy.runtime is None else "runtime"
    for index, output in enumerate(scores.outputs):
        main = index == scores.main
        limit = config.output_limits.get(output.name, config.drop_limit)
        if limit is None:
            continue
        lost = scores.lost if main else scores.outputs_lost[index]
        name = "max-drop" if main else f"max-drop:{output.name}"
        gate = _drop(name, limit, lost, output.decisions, judge)
        says_nothing = scores.alike[index]
        stored = None if earlier is None else _lost_in(earlier, output, main=main)
        if earlier is not None and stored is not None and gate.passed is not False:
            gate = _drop(name, limit, stored, output.decisions, "run")
            says_nothing = any(was.says_nothing for was in earlier.gates if was.name == name)
        worst = _worst(gate, output, earlier) if output.metric == "centred-cosine" else None
        for made in (gate, worst):
            if made is not None:
                yield _undecided(made) if says_nothing and made.passed is not False else made


def _undecided(gate: Gate) -> Gate:
    """A gate that was not failed, on images of which the float network says one and the same."""
    return replace(gate, passed=None, undecided=True, says_nothing=True)


def _drop(name: str, limit: float, lost: PointsLost | None, decisions: int | None, judge: Judge) -> Gate:
    """A limit on what is lost, by the rule of `decision`."""
    if lost is None:
        needed = images_needed(limit, decisions)
        return Gate(name=name, limit=limit, value=None, passed=None, undecided=True, images_needed=needed)
    passed = decision(lost, limit, decisions)
    return Gate(
        name=name,
        limit=limit,
        value=lost.points,
        passed=passed,
        undecided=passed is None,
        images=lost.images,
        images_needed=images_to_decide(lost, limit, decisions),
        at_most=round(lost.at_most, 4),
        judged_by=judge,
    )


def _worst(mean: Gate, output: OutputScore, earlier: Report | None) -> Gate | None:
    """What the worst embeddings may lose, on the images of the mean's gate; None for runs that measured no such."""
    assert mean.limit is not None
    name, limit = mean.name.replace("max-drop", "worst", 1), min(WORST_TIMES * mean.limit, 100.0)
    worst = output.worst
    if mean.judged_by == "run" and earlier is not None:
        worst = next((entry.worst for entry in earlier.outputs if entry.name == output.name), None)
        if worst is None:
            return None
    lost = None if worst is None else round(100 * (1 - worst), 9)
    if lost is None or mean.images is None or mean.images < images_needed(mean.limit, None):
        needed = mean.images_needed
        return Gate(name=name, limit=limit, value=lost, passed=None, undecided=True, images_needed=needed)
    return Gate(name=name, limit=limit, value=lost, passed=lost <= limit, images=mean.images, judged_by=mean.judged_by)


def _lost_in(report: Report, output: OutputScore, *, main: bool) -> PointsLost | None:
    """What an output had lost in the run that made a bundle, on its images; their bounds are those that it kept.

    None where that run did not measure it, or not by the same measure.
    """
    accuracy, images = report.accuracy, report.accuracy.images
    if main and accuracy.metric == "cosine" != output.metric:
        return None
    teacher, last = accuracy.teacher, accuracy.oracle if accuracy.runtime is None else accuracy.runtime
    if not main:
        entry = next((entry for entry in report.outputs if entry.name == output.name), None)
        if entry is None or entry.metric != output.metric:
            return None
        teacher, last = entry.teacher, entry.oracle if entry.runtime is None else entry.runtime
    if teacher is None or last is None:
        return None
    points = round(100 * (teacher - last), 9)
    name = "max-drop" if main else f"max-drop:{output.name}"
    bounds = [gate.at_most for gate in report.gates if gate.name == name and gate.at_most is not None]
    # Images that repeat others did not count there.
    counted = [gate.images for gate in report.gates if gate.name == name and gate.images is not None]
    return PointsLost(points=points, at_least=-100.0, at_most=max([points, *bounds]), images=min([images, *counted]))


def _simulation(scores: Scores, least: float) -> Iterator[Gate]:
    """Whether the simulation gives the oracle's very numbers, where both compute the same integers.

    Answers may be the same though numbers are not. Nothing where the network was not simulated, as behind a bundle.
    """
    apart = [output.simulated_difference for output in scores.outputs if output.simulated_difference is not None]
    if least == EXACT and apart:
        value = max(apart)
        yield Gate(name="simulation", limit=0.0, value=value, passed=value == 0.0)


def _parities(scores: Scores, least: float) -> Iterator[Gate]:
    """Whether simulation, oracle and runtime say the same, output by output; the worst is what counts.

    Where the runtime is not here, simulation and oracle can fail this gate, and cannot pass it.
    """
    here = scores.accuracy.runtime is not None
    decided = [
        (share, least if least == EXACT else limit)
        for share, limit in zip(scores.agreements, scores.limits_with_float, strict=True)
        if share is not None
    ]
    compared = [
        (value, least)
        for output in scores.outputs
        if output.holds == "values"
        for value in (output.oracle_vs_simulated, output.runtime_vs_oracle)
        if value is not None
    ]
    values = any(output.holds == "values" for output in scores.outputs)
    kinds = [("parity", decided)] if not values or any(o.holds != "values" for o in scores.outputs) else []
    kinds += [("parity-values", compared)] if values else []
    for name, shares in kinds:
        # That which lies the furthest below its limit, or the least above it.
        value, limit = min(shares, key=lambda share: share[0] - share[1], default=(None, least))
        passed = None if value is None else value >= limit
        if not here and passed is not False:
            value = passed = None
        judge: Judge | None = None if value is None else "runtime" if here else "oracle"
        yield Gate(name=name, limit=limit, value=value, passed=passed, judged_by=judge)
