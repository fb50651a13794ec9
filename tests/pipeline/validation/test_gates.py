"""Every gate can pass, can fail, and says when it can do neither."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backends.base import Census
from backends.device.bundle_check.same_answer import WITH_FLOAT
from calibration.errors import UserError
from calibration.plan import Plan
from pipeline.config import ValidationConfig
from pipeline.networks.outputs.meaning import Output
from pipeline.report.gate import Gate, verdict
from pipeline.report.schema import Accuracy, Latency, Report
from pipeline.validation.gates import check_output_names, gates_of, ungated, with_limits_of
from pipeline.validation.other_size import gate_of_other_size
from pipeline.validation.score import ScoredImages, Scores, no_latency, score

CLASSES = Output(name="scores", holds="classes", axis=1, shape=(4,))
BOXES = Output(name="boxes", holds="values", axis=1, shape=(4, 6))
MASK = Output(name="mask", holds="classes", axis=1, shape=(4, 8, 8))
PLAN = Plan(backend="reference", activations=(), weights=())
INTEGER = Census(integer=("conv",), floating=())


def drawn(output: Output, images: int) -> Tensor:
    return torch.randn(images, *output.shape, generator=torch.Generator().manual_seed(len(output.shape)))


def scored(
    outputs: tuple[Output, ...],
    images: int,
    *,
    runtime: Callable[[list[Tensor]], list[Tensor]] | None = lambda values: values,
    oracle: Callable[[list[Tensor]], list[Tensor]] = lambda values: values,
    labels: bool = False,
) -> Scores:
    """Scores of a teacher's drawn outputs against what oracle and runtime make of them."""
    teacher = [drawn(output, images) for output in outputs]
    exact = oracle([values.clone() for values in teacher])
    columns = {"target": teacher, "teacher": teacher, "simulated": exact, "oracle": exact}
    if runtime is not None:
        columns["runtime"] = runtime([values.clone() for values in exact])
    right = teacher[0].argmax(1).numpy() if labels else None
    batch = ScoredImages(images=torch.arange(images)[:, None], labels=right)
    made = {name: lambda _, values=values: values for name, values in columns.items()}
    return score(made, [batch], outputs, step=lambda done: None)


def gates(scores: Scores, **settings: Any) -> dict[str, Gate]:
    """The gates by name, of a network without float operators on the exact backend."""
    census, latency = settings.pop("census", INTEGER), settings.pop("latency", no_latency(1, 1))
    earlier = settings.pop("earlier", None)
    config = ValidationConfig(**settings)
    made = gates_of(config, scores, census, latency, least=1.0, earlier=earlier)
    return {gate.name: gate for gate in made}


def wrong(count: int) -> Callable[[list[Tensor]], list[Tensor]]:
    """Another class for the first so many images, in every output of classes."""
    return lambda values: [torch.cat([v[:count].roll(1, 1), v[count:]]) if v.dim() != 3 else v for v in values]


def noisy(share: float) -> Callable[[list[Tensor]], list[Tensor]]:
    """Noise of that share of the variance on boxes."""

    def add(values: list[Tensor]) -> list[Tensor]:
        noise = torch.Generator().manual_seed(9)
        return [
            v + share**0.5 * torch.randn(v.shape, generator=noise) if v.dim() == 3 else v
            for v in values
        ]  # fmt: skip

    return add


@pytest.mark.parametrize("labels", [False, True])
def test_accuracy_passes_and_fails(labels: bool) -> None:
    for lost, passed in ((0, True), (3, True), (4, None), (5, False)):
        gate = gates(scored((CLASSES,), 400, oracle=wrong(lost), labels=labels))["max-drop"]
        assert (gate.passed, gate.value, gate.undecided) == (passed, lost / 4, passed is None)
        assert (gate.images, gate.judged_by) == (400, "runtime")
        assert gate.images_needed is not None and (gate.images_needed > 400) == (passed is None)
        assert gate.at_most is not None and gate.at_most > lost / 4


def test_too_few_images_decide_nothing_unless_they_show_that_it_is_bad() -> None:
    for images, lost in ((1, 0), (9, 0), (9, 1), (298, 0)):
        gate = gates(scored((CLASSES,), images, oracle=wrong(lost)))["max-drop"]
        assert gate.undecided and gate.passed is None and gate.images_needed == 299
    gate = gates(scored((CLASSES,), 9, oracle=wrong(6)))["max-drop"]
    assert gate.passed is False, "two thirds of nine are beyond chance"
    assert gates(scored((CLASSES,), 9, oracle=wrong(1)), max_drop=30.0)["max-drop"].passed is True
    assert gates(scored((CLASSES,), 1), max_drop=100.0)["max-drop"].passed is True
    assert gates(scored((MASK,), 7))["max-drop"].undecided and gates(scored((MASK,), 8))["max-drop"].passed


def test_an_undecided_gate_is_a_status_of_its_own() -> None:
    undecided = Gate(name="max-drop", limit=1.0, value=0.0, passed=None, undecided=True)
    passed = Gate(name="parity", limit=1.0, value=1.0, passed=True)
    assert verdict([undecided, passed], on_target=True) == "undecided"
    assert verdict([undecided, replace(passed, passed=False)], on_target=True) == "gate-failed"
    assert verdict([undecided, passed], on_target=False) == "not-validated-on-target"
    with pytest.raises(ValueError, match="cannot be both"):
        Gate(name="max-drop", limit=1.0, value=0.0, passed=True, undecided=True)


def test_every_output_has_a_gate() -> None:
    """A detector whose classes are right and whose boxes explain 83 % does not pass."""
    judged = gates(scored((CLASSES, BOXES, MASK), 400, oracle=noisy(0.17)))
    assert {name: gate.passed for name, gate in judged.items()} == {
        "max-drop": True, "max-drop:boxes": False, "max-drop:mask": True, "parity": True, "parity-values": True,
        "simulation": True, "kernels": True,
    }  # fmt: skip
    assert judged["max-drop:boxes"].value == pytest.approx(17, abs=1.5)
    assert gates(scored((CLASSES, BOXES), 400, oracle=noisy(0.005)))["max-drop:boxes"].passed is True
    assert gates(scored((CLASSES, MASK), 400, oracle=wrong(40)), max_drop=100.0, output_max_drop=("mask=1",))[
        "max-drop:mask"
    ].passed is False  # fmt: skip


def test_outputs_have_limits_of_their_own_or_say_that_they_have_none() -> None:
    scores = scored((CLASSES, BOXES), 400, oracle=noisy(0.17))
    assert gates(scores, output_max_drop=("boxes=20",))["max-drop:boxes"].passed is True
    assert "max-drop:boxes" not in gates(scores, output_max_drop=("boxes=none",))
    config = ValidationConfig(output_max_drop=("boxes=none", "scores=2"))
    assert ungated(config) == ("output boxes has no accuracy gate: --output-max-drop boxes=none",)
    assert gates(scores, output_max_drop=("scores=2",))["max-drop"].limit == 2
    with pytest.raises(UserError, match="--output-max-drop boxes: net has no output of that name; it has scores"):
        check_output_names(config, ["scores"], source="net")
    for pair in ("boxes", "=1", "boxes=-1", "boxes=101", "boxes=nan", "boxes=a"):
        with pytest.raises(UserError, match=f"--output-max-drop {pair}: must be NAME=POINTS"):
            ValidationConfig(output_max_drop=(pair,))


def test_numbers_that_never_vary_are_measured_by_their_own_power() -> None:
    """Constants of a file have no variance to explain, and a rounding of theirs is no failure."""
    constant = Output(name="anchors", holds="values", axis=1, shape=(6,))

    def score_of(error: float) -> float | None:
        columns = {"target": 3.0, "teacher": 3.0, "oracle": 3.0 + error}
        made = {name: lambda _, value=value: [torch.full((9, 6), value)] for name, value in columns.items()}
        batch = ScoredImages(images=torch.arange(9)[:, None], labels=None)
        return score(made, [batch], (constant,), step=lambda done: None).outputs[0].oracle

    assert score_of(0.01) == pytest.approx(1 - (0.01 / 3) ** 2, abs=1e-6)
    assert score_of(3.0) == pytest.approx(0, abs=1e-6)


def test_where_the_runtime_is_absent_the_oracle_is_judged_and_named() -> None:
    judged = gates(scored((CLASSES,), 400, runtime=None, oracle=wrong(224)), census=None)
    assert judged["max-drop"].passed is False and judged["max-drop"].judged_by == "oracle"
    assert judged["max-drop"].value == 56, "44 % where the float network has 100"
    good = gates(scored((CLASSES,), 400, runtime=None), census=None)
    assert good["max-drop"].passed is True and good["max-drop"].judged_by == "oracle"
    assert good["parity"].passed is None and good["kernels"].passed is None
    assert verdict(list(good.values()), on_target=False) == "not-validated-on-target"


def test_parity_fails_by_any_output() -> None:
    """One of 400 classes differs between oracle and runtime; a large map beside it does not hide that."""
    judged = gates(scored((CLASSES, MASK), 400, runtime=lambda v: [wrong(1)([v[0]])[0], v[1]]))
    assert judged["parity"].passed is False and judged["parity"].value == 399 / 400
    assert judged["parity"].judged_by == "runtime" and judged["parity"].limit == 1.0
    judged = gates(scored((CLASSES, BOXES), 400, runtime=noisy(0.02)))
    assert judged["parity"].passed is True and judged["parity-values"].passed is False
    assert [name for name in gates(scored((BOXES,), 400)) if name.startswith("parity")] == ["parity-values"]
    scores = scored((CLASSES,), 400, runtime=None)
    apart = gates(replace(scores, agreements=(0.5,)))["parity"]
    assert (apart.passed, apart.judged_by) == (False, "oracle"), "simulation and oracle can fail it alone"


def test_kernels_and_speed_fail() -> None:
    scores = scored((CLASSES,), 400)
    gate = gates(scores, census=Census(integer=("a",), floating=("b", "c")))["kernels"]
    assert (gate.passed, gate.value) == (False, 2)
    assert gates(scores, census=replace(INTEGER, elsewhere=True))["kernels"].passed is None
    for speedup, passed in ((1.4, False), (1.5, True), (None, None)):
        latency = replace(no_latency(1, 1), speedup=speedup)
        assert gates(scores, latency=latency, min_speedup=1.5)["min-speedup"].passed is passed
    assert "min-speedup" not in gates(scores, latency=Latency(**vars(no_latency(1, 1)) | {"speedup": 0.5}))


def test_another_size_fails_where_the_runtime_answers_otherwise() -> None:
    images = torch.randn(4, 4, 6, 9, generator=torch.Generator().manual_seed(0))
    output = Output(name="y", holds="classes", axis=1, shape=(4, -1, -1))
    for channels, passed in (([0, 1, 2, 3], True), ([1, 2, 3, 0], False)):
        runtime = partial(lambda order, x: [x[:, order].relu()], channels)
        gate, said = gate_of_other_size(lambda x: [x.relu()], runtime, (output,), images, 1.0)
        assert gate.passed is passed and said is not None and "at 9x6 px, 4 images" in said
    gate, said = gate_of_other_size(lambda x: [x], None, (output,), images, 1.0)
    assert gate.passed is None and said is None


def test_at_another_size_constants_explain_nothing() -> None:
    """Boxes on a grid of hundreds of pixels, moved by one: a tenth of the grid's deviation is no tolerance for that."""
    images = torch.randn(4, 1, 6, 9, generator=torch.Generator().manual_seed(0))
    grid = 10.0 * torch.arange(54.0).reshape(6, 9)
    output = Output(name="boxes", holds="values", axis=1, shape=(1, -1, -1))

    def gate(runtime: Callable[[Tensor], Tensor]) -> Gate:
        return gate_of_other_size(lambda x: [x + grid], lambda x: [runtime(x) + grid], (output,), images, WITH_FLOAT)[0]

    assert gate(lambda x: x).value == 1.0
    assert gate(torch.zeros_like).passed is False, "one answer for every image"
    assert gate(lambda x: 0.95 * x).passed is True and gate(lambda x: 0.85 * x).passed is False


def test_golden_images_repeat_the_runs_verdict_and_can_fail_alone(make_report: Callable[..., Report]) -> None:
    """Sixteen golden images show that the runtime is the oracle; what is lost is what the run measured on 1017."""
    earlier = make_report()
    few = scored((CLASSES,), 16)
    gate = gates(few, earlier=earlier)["max-drop"]
    assert (gate.passed, gate.judged_by, gate.images) == (True, "run", 1017)
    assert gate.value == pytest.approx(-0.49)
    accuracy = Accuracy(metric="top1", images=1017, teacher=0.9, simulated=0.8, oracle=0.8, runtime=None)
    worse = make_report(
        accuracy=accuracy, status="gate-failed", gates=(Gate(name="max-drop", limit=1.0, value=10.0, passed=False),)
    )
    assert gates(few, earlier=worse)["max-drop"].passed is False
    broken = gates(scored((CLASSES,), 16, runtime=wrong(12)), earlier=earlier)["max-drop"]
    assert (broken.passed, broken.judged_by) == (False, "runtime")
    nine = make_report(
        accuracy=replace(accuracy, images=9, oracle=0.9),
        status="not-validated-on-target",
        gates=(Gate(name="max-drop", limit=1.0, value=0.0, passed=None, undecided=True),),
    )
    assert gates(few, earlier=nine)["max-drop"].undecided, "a run that was undecided stays so on golden images"


def test_of_another_output_too_the_runtime_of_the_run_is_judged_and_its_oracle_where_there_was_none(
    make_report: Callable[..., Report],
) -> None:
    """Boxes of which the run's runtime explained 90 % and its oracle all; the golden images here explain all."""
    few, entry = scored((CLASSES, BOXES), 16), scored((CLASSES, BOXES), 16).outputs[1]
    for runtime, value in ((0.9, 10.0), (None, 0.0)):
        earlier = make_report(outputs=(replace(entry, teacher=1.0, oracle=1.0, runtime=runtime),))
        gate = gates(few, earlier=earlier)["max-drop:boxes"]
        assert (gate.value, gate.judged_by, gate.passed) == (value, "run", not value)


def test_every_batch_is_told_of_by_the_images_until_then() -> None:
    told: list[int] = []
    batches = [ScoredImages(images=torch.arange(5)[place, None], labels=None) for place in (slice(0, 3), slice(3, 5))]
    columns = {
        name: lambda images: [torch.cat([images, -images], 1).float()] for name in ("target", "teacher", "oracle")
    }
    score(columns, batches, (replace(CLASSES, shape=(2,)),), step=told.append)
    assert told == [3, 5]


def test_a_bundles_limits_are_those_of_its_run_unless_others_are_typed(make_report: Callable[..., Report]) -> None:
    limits = (
        Gate(name="max-drop", limit=5.0, value=0.0, passed=True),
        Gate(name="max-drop:boxes", limit=9.0, value=0.0, passed=True),
    )
    earlier = make_report(gates=limits)
    assert with_limits_of(ValidationConfig(), earlier).drop_limit == 5.0
    assert with_limits_of(ValidationConfig(), earlier).output_limits == {"boxes": 9.0}
    assert with_limits_of(ValidationConfig(max_drop=2.0), earlier).drop_limit == 2.0
    assert with_limits_of(ValidationConfig(max_drop=2.0), earlier).output_limits == {}
    assert with_limits_of(ValidationConfig(output_max_drop=("boxes=3",)), earlier).output_limits == {"boxes": 3.0}
    assert with_limits_of(ValidationConfig(), None).drop_limit == 1.0


def test_without_a_teacher_nothing_is_decided() -> None:
    outputs = {"oracle": drawn(CLASSES, 400), "runtime": drawn(CLASSES, 400)}
    made = {name: lambda _, values=values: [values] for name, values in outputs.items()}
    batch = ScoredImages(images=torch.arange(400)[:, None], labels=np.zeros(400, np.int64))
    gate = gates(score(made, [batch], (CLASSES,), step=lambda done: None))["max-drop"]
    assert gate.undecided and gate.value is None and gate.images is None
