"""The gates of a run: what its result must reach before it may be called validated."""

from __future__ import annotations

from backends.base import Backend, Census
from calibration.plan import Plan
from pipeline.config import ValidationConfig
from pipeline.report.schema import Gate, Latency
from pipeline.stages.validate import Scores

# Float operations inside a network may round a last bit differently on two runtimes, so argmax ties can fall apart.
PARITY_WITH_FLOAT = 0.99


def least_parity(plan: Plan, backend: Backend) -> float:
    """The least agreement of simulation, oracle and runtime, 0 to 1."""
    return PARITY_WITH_FLOAT if backend.profile.inexact or plan.float_nodes else 1.0


def gates_of(
    config: ValidationConfig,
    scores: Scores,
    census: Census | None,
    latency: Latency,
    plan: Plan,
    backend: Backend,
) -> tuple[Gate, ...]:
    """Every gate with its limit and what was found; None where the target itself has not been asked."""
    accuracy, parity, gates = scores.accuracy, scores.parity, []
    if accuracy.teacher is not None:
        final = accuracy.runtime
        drop = None if final is None else round(100 * (accuracy.teacher - final), 9)
        passed = None if drop is None else drop <= config.max_drop
        gates.append(Gate(name="max-drop", limit=config.max_drop, value=drop, passed=passed))
    least = least_parity(plan, backend)
    found, name = parity.argmax_agreement, "parity"
    if all(output.holds == "values" for output in scores.outputs):
        compared = [
            value for output in scores.outputs for value in (output.oracle_vs_simulated, output.runtime_vs_oracle)
        ]
        name, found = "parity-values", min((value for value in compared if value is not None), default=None)
        found = None if accuracy.runtime is None else found
    gates.append(Gate(name=name, limit=least, value=found, passed=None if found is None else found >= least))
    refused = None if census is None else float(len(census.floating))
    # Only the target itself can pass this gate: what a compiler elsewhere says is a signal.
    said_here = census is not None and not census.elsewhere and accuracy.runtime is not None
    passed = refused == 0 if said_here else None
    gates.append(Gate(name="kernels", limit=0.0, value=refused, passed=passed))
    if config.min_speedup is not None:
        speedup = latency.speedup
        passed = None if speedup is None else speedup >= config.min_speedup
        gates.append(Gate(name="min-speedup", limit=config.min_speedup, value=speedup, passed=passed))
    return tuple(gates)
