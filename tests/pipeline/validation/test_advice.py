"""Advice about failed gates: what was measured is said to pass, nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import RunConfig
from pipeline.report.gate import Gate
from pipeline.report.schema import Accuracy, Bits, Report
from pipeline.validation.advice import advice as advice_on_run
from pipeline.validation.advice import advice_on_bundle

FAILED = Gate(name="max-drop", limit=1.0, value=1.4, passed=False)


def report_of(make_report: Callable[..., Report], *, calibrated: float, **more: Any) -> Report:
    accuracy = Accuracy(metric="top1", images=500, teacher=0.86, simulated=0.844, oracle=0.844, runtime=0.844)
    report = make_report(status="gate-failed", gates=(FAILED,), accuracy=accuracy)
    assert report.distillation is not None
    training = replace(report.distillation, accuracy_calibrated=calibrated, **more)
    return replace(report, distillation=training)


def advice(config: RunConfig, report: Report, *, bundle: Path | None = Path("out/bundle")) -> tuple[str, ...]:
    return advice_on_run(config.quantisation, report, bundle=bundle)


def config(**settings: Any) -> RunConfig:
    return RunConfig.from_json({key.replace("_", "-"): value for key, value in settings.items()})


def test_a_way_that_this_run_measured_is_said_to_pass(make_report: Callable[..., Report]) -> None:
    (line,) = advice(config(bits=4), report_of(make_report, calibrated=0.858))
    assert "calibrated only passes, --steps 0: it lost 0.20 points in this run" in line


@pytest.mark.parametrize(("calibrated", "chosen"), [(0.8499, "trained"), (0.858, "calibrated")])
def test_nothing_else_is(calibrated: float, chosen: str, make_report: Callable[..., Report]) -> None:
    settings = config(bits=4, first_bits=4, backend="reference", activation_bits=4)
    (line,) = advice(settings, report_of(make_report, calibrated=calibrated, chosen=chosen))
    assert "passes" not in line
    assert line == (
        "for the accuracy gate, not measured here, cheapest first: --first-bits 8 instead of 4; "
        "--activation-bits 8 instead of 4; --bits 8 instead of 4"
    )


def test_the_least_loss_that_passes_is_the_limit_itself(make_report: Callable[..., Report]) -> None:
    (line,) = advice(config(bits=4), report_of(make_report, calibrated=0.85))
    assert "it lost 1.00 points" in line


def test_each_setting_has_its_own_ways(make_report: Callable[..., Report]) -> None:
    untrained = report_of(make_report, calibrated=0.844, chosen="calibrated", steps=0)
    assert "training: --strategy distil, without --steps 0; another --range" in advice(config(steps=0), untrained)[0]
    assert "--quantiser faqd" in advice(config(quantiser="nncf"), replace(untrained, distillation=None))[0]
    assert untrained.data is not None
    few = replace(untrained, data=replace(untrained.data, images=96, unreadable=3))
    assert "more images than the 93 of --data" in advice(config(), few)[0]
    parity = replace(untrained, gates=(Gate(name="parity", limit=1.0, value=0.9, passed=False),))
    assert "faqd compare out/bundle names" in advice(config(), parity)[0]
    assert "faqd.compare, of what faqd.write_bundle writes" in advice(config(), parity, bundle=None)[0]


def test_a_slower_profile_of_the_target_is_named_first(make_report: Callable[..., Report]) -> None:
    report, asked = report_of(make_report, calibrated=0.844, chosen="calibrated"), config(target="x86-avx2")
    (line,) = advice_on_run(asked.quantisation, report, bundle=None, variant="x86-avx2-limited")
    assert "cheapest first: --target x86-avx2-precise, slower than x86-avx2-limited; " in line
    for target, variant in (("x86-avx2", "x86-avx2-precise"), ("x86-avx2-limited", "x86-avx2-limited")):
        (line,) = advice_on_run(config(target=target).quantisation, report, bundle=None, variant=variant)
        assert "--target" not in line


def test_gates_that_pass_need_none(make_report: Callable[..., Report]) -> None:
    assert advice(config(), make_report()) == ()


def test_a_bundle_that_fails_elsewhere_is_told_what_another_run_may_change(make_report: Callable[..., Report]) -> None:
    gates = (
        replace(FAILED, name="max-drop:boxes"),
        replace(FAILED, name="max-drop:scores", value=0.5, passed=True),
        Gate(name="parity-values", limit=1.0, value=0.9, passed=False),
    )
    run = report_of(make_report, calibrated=0.844, chosen="calibrated", steps=0)
    report = replace(run, gates=gates, bits=Bits(weights=4, activations=8), distillation=None)
    assert advice_on_bundle(Path("some/bundle"), report, run) == (
        "for the gate of output boxes, another faqd run, cheapest first: training: --strategy distil, without --steps"
        " 0; --bits 8 instead of 4; another --range (mse, minmax, percentile); images for --data that are like those to"
        " be judged",
        "for the parity gate: faqd compare some/bundle names what differs first",
    )
    (line, _) = advice_on_bundle(Path("b"), report, None)
    assert "training" not in line and "--bits 8" in line
    assert advice_on_bundle(Path("b"), replace(report, gates=gates[1:2], status="validated"), run) == ()
