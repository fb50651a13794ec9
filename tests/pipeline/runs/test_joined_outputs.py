"""Boxes and scores in one tensor: which entries are lost, why, and what to write, which then passes on the runtime."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from backends.device.bundle_check.compare import same_share
from backends.device.bundle_check.manifest import OutputEntry
from backends.device.bundle_check.value_tally import Spread, ValueTally, axis_of_kinds
from pipeline.cli import main
from pipeline.networks.declared import Declared
from pipeline.networks.outputs.entries import entries_of, ranges_of
from pipeline.networks.outputs.joined import Join, join_of, lost_entries, why_lost
from pipeline.report.schema import Entries, OutputScore, Report, read_report
from pipeline.stages.teacher import load_network

NETWORKS = '''
import torch
from torch import nn

IMAGES = {"height": 32, "resize": None, "mean": (0.5,) * 3, "std": (0.25,) * 3}


class Detector(nn.Module):
    """Boxes in pixels beside scores within 1."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU())
        self.box, self.cls = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 6, 1)

    def forward(self, x):
        features = self.body(x)
        boxes, scores = self.box(features).flatten(2) * 640.0, self.cls(features).flatten(2)
        if self.way == "apart":
            return boxes, scores.sigmoid()
        if self.way == "turned":
            return torch.cat([boxes, scores.sigmoid()], dim=1).permute(0, 2, 1)
        parts = (boxes, scores.sigmoid())
        return torch.cat(parts, 1) if self.way == "named" else torch.cat((boxes, scores.sigmoid()), 1)


def made(way):
    torch.manual_seed(0)
    return Detector(way), IMAGES


def joined():
    return made("joined")


def turned():
    return made("turned")


def named():
    return made("named")


def apart():
    return made("apart")
'''


@pytest.fixture(autouse=True, scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("joined")
    (folder / "joined_nets.py").write_text(NETWORKS)
    (folder / "photos").mkdir()
    generator = np.random.default_rng(0)
    for index in range(80):
        blocks = generator.integers(0, 255, (6, 6, 3), np.uint8)
        Image.fromarray(blocks).resize((32, 32), Image.Resampling.BILINEAR).save(folder / "photos" / f"{index}.png")
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
    sys.path[:] = before


def run(network: str, kinds: str, status: int) -> Report:
    arguments = ("--data", "images:photos", "--steps", "0", "--backend", "onnxruntime", "--output-kinds", kinds)
    assert (
        main(["run", "--quiet", "--teacher", f"python:joined_nets:{network}", *arguments, "--output", network])
        == status
    )
    return read_report(Path(network) / "report.json")


def test_the_lost_entries_are_named_and_outputs_of_their_own_pass() -> None:
    report = run("joined", "output=values", 1)
    (line,) = [note for note in report.notes if "one scale serves them all" in note]
    assert line.startswith(
        "output [batch, 10, 64] holds numbers of 2 kinds along axis 1, and one scale serves them all"
    )
    assert "entries 4-9 (spread 0.0" in line and "since its step is made for entries 0-3 (spread" in line
    assert "return boxes, scores.sigmoid() instead of joining these 2 (4 + 6 entries) (joined_nets.py:" in line
    assert not [note for note in report.notes if "not measured here" in note], "no setting would help"
    scores, boxes = report.outputs[0].entries
    assert (scores.places, boxes.places) == (((4, 9),), ((0, 3),))
    assert scores.explained < 0.5 and boxes.explained > 0.99
    assert main(["validate", "joined/bundle", "--quiet", "--report", "again.json"]) == 1
    assert [n for n in read_report(Path("again.json")).notes if "one scale serves them all" in n], (
        "validate says it too"
    )
    apart = run("apart", "output_0=values,output_1=values", 0)
    assert apart.outputs[1].runtime is not None and apart.outputs[1].runtime > 0.99
    assert not [note for note in apart.notes if "one scale" in note] and apart.outputs[0].entries == ()


@pytest.mark.parametrize(
    ("network", "axis", "parts"),
    [("turned", 2, ("boxes", "scores.sigmoid()")), ("named", 1, ("flatten", "sigmoid")), ("apart", 1, None)],
)
def test_what_is_joined_is_found_through_movement_or_not_at_all(
    network: str, axis: int, parts: tuple[str, ...] | None
) -> None:
    kinds = ("output_0=values", "output_1=values") if parts is None else ("output=values",)
    graph = load_network(f"python:joined_nets:{network}", Declared(output_kinds=kinds)).folded
    join = join_of(graph, 0, axis)
    if parts is None:
        assert join is None
        return
    assert join is not None and join.sizes == (4, 6) and join.place.startswith("joined_nets.py:")
    assert len(join.parts) == 2 and (network == "named" or join.parts == parts)
    assert join_of(graph, 0, 3 - axis) is None, "the other axis is joined of nothing"


def score(*explained: float) -> OutputScore:
    kinds = [
        Entries(axis=1, places=((4 * i, 4 * i + 3),), spread=100.0**i, explained=value)
        for i, value in enumerate(explained)
    ]
    return OutputScore(
        name="y", holds="values", shape=(8, 9), decisions=None, metric="r2", teacher=1.0, simulated=0.5, oracle=0.5,
        runtime=0.5, mean_iou=None, rms_error=1.0, oracle_vs_simulated=1.0, runtime_vs_oracle=1.0, exact_fraction=1.0,
        max_difference=0.0, entries=tuple(kinds),
    )  # fmt: skip


def test_the_scale_is_blamed_only_where_the_widest_entries_are_well() -> None:
    assert [kind.places for kind in lost_entries(score(0.5, 0.999), 1.0)] == [((0, 3),)]
    assert lost_entries(score(0.5, 0.6), 1.0) == () and why_lost(score(0.5, 0.6), 1.0, None) is None
    assert lost_entries(score(0.99, 0.999), 1.0) == (), "one point lost is no more than one point"
    assert lost_entries(score(), 1.0) == ()
    unknown = why_lost(score(0.5, 0.999), 1.0, None)
    assert unknown is not None and "a slice of a tensor keeps its scale" in unknown
    long = Join(parts=("x" * 60, "y" * 60), sizes=(4, 4), place="")
    assert "return 2 tensors instead of joining these 2 (4 + 4 entries)," in str(why_lost(score(0.5, 0.999), 1.0, long))


def test_runs_of_places_by_hand() -> None:
    assert ranges_of([0, 1, 2, 5, 7, 8]) == ((0, 2), (5, 5), (7, 8)) and ranges_of([]) == ()


def explained_slowly(exact: Tensor, other: Tensor) -> float:
    """1 less squared errors over squared deviations, loop by loop over numbers."""
    wrong = moved = 0.0
    for number in range(exact[0].numel()):
        column, answer = exact.flatten(1)[:, number].tolist(), other.flatten(1)[:, number].tolist()
        mean = sum(column) / len(column)
        wrong += sum((one - two) ** 2 for one, two in zip(column, answer, strict=True))
        moved += sum((one - mean) ** 2 for one in column)
    return 1 - wrong / moved


@pytest.mark.parametrize("shape", [(7, 10, 16), (7, 16, 10), (7, 10), (7, 1), (7, 60, 70)])
def test_values_are_measured_kind_by_kind_as_loops_do(shape: tuple[int, ...]) -> None:
    """Coordinates beside scores: what explains all boxes and no score explains nothing; in batches as at once."""
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(shape, generator=generator) + 3
    kinds = [exact]
    if 10 in shape:
        axis = shape.index(10)
        exact.narrow(axis, 0, 4).mul_(1000)
        kinds = [exact.narrow(axis, 0, 4), exact.narrow(axis, 4, 6)]
    other = exact + 0.5 * torch.randn(shape, generator=generator)
    answers = [other] if len(kinds) == 1 else [other.narrow(axis, 0, 4), other.narrow(axis, 4, 6)]
    tally = ValueTally(Spread(axis_of_kinds(shape[1:])))
    for part in (slice(0, 3), slice(3, 7)):
        tally.add(exact[part], other[part])
        tally.spread.add(exact[part])
    share = same_share(other.numpy(), exact.numpy(), OutputEntry(name="y", holds="values"))
    slow = [explained_slowly(one, two) for one, two in zip(kinds, answers, strict=True)]
    assert share == pytest.approx(min(slow), abs=1e-6) and tally.fraction() == pytest.approx(min(slow), abs=1e-6)
    assert [kind.explained for kind in entries_of(tally)] == pytest.approx(
        slow[::-1] if len(slow) > 1 else [], abs=1e-6
    )
    assert share < 0.95
    assert same_share(exact.numpy(), exact.numpy(), OutputEntry(name="y", holds="values")) == 1.0
