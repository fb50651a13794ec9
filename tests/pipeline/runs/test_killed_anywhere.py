"""A run that is killed just before any call that changes a file ends with the right bytes, or says truly what to do."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.command_line import TINY, Ended, command
from tests.crash_points import watched

WATCHED = (*TINY, "--quiet", "--steps", "2")
FIRST, OTHER = ("--seed", "0"), ("--seed", "1", "--overwrite")


@dataclass(frozen=True, kw_only=True)
class Killed:
    """The states that a process leaves which is killed at any point of one run, and that run's own results."""

    states: tuple[Path, ...]
    results: dict[str, bytes]


def results_of(folder: Path) -> dict[str, bytes]:
    """What is the same in every run of one seed."""
    names = ("bundle/model.onnx", "bundle/golden.npz", "float.onnx", "state/trained.safetensors")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture
def run(tiny_desk: Path) -> Callable[..., Ended]:
    """Run the tiny network into a folder, with more flags."""
    return lambda folder, *flags: command(*WATCHED, *flags, "--output", str(folder), cwd=tiny_desk)


@pytest.fixture(scope="module")
def killed(tiny_desk: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Killed]:
    """By flags: a first run, and one with another seed that takes its place; both watched from beginning to end."""
    root = tmp_path_factory.mktemp("killed")
    folder, points = root / "run", dict[tuple[str, ...], Killed]()
    for flags in (FIRST, OTHER):
        with watched(folder, root / flags[1]) as watch:
            done = command(*WATCHED, *flags, "--output", str(folder), cwd=tiny_desk)
        assert done.status == 0, done.err
        assert watch.points > 100
        points[flags] = Killed(states=tuple(representative(watch.states)), results=results_of(folder))
    assert points[FIRST].results != points[OTHER].results
    return points


def representative(states: Sequence[Path]) -> list[Path]:
    """Of the states that differ in temporary files alone, or in the seconds so far, the last one."""
    last = dict[tuple[object, ...], Path]()
    for state in states:
        files = sorted(path for path in state.rglob("*") if path.is_file()) if state.exists() else []
        whole = [path for path in files if not re.search(r"\.part|\.lock|seconds\.json", str(path))]
        last[(state.exists(), *((path.relative_to(state), path.stat().st_ino) for path in whole))] = state
    return list(last.values())


def copied(state: Path, folder: Path) -> Path:
    """A copy of a state, to go on from."""
    if state.exists():
        shutil.copytree(state, folder)
    return folder


def check_whole(folder: Path, results: dict[str, bytes]) -> None:
    """Results are those of the run that was not interrupted, everything is of one run, and nothing else is left."""
    assert results_of(folder) == results
    run = json.loads((folder / "bundle" / "manifest.json").read_text())["run"]
    assert json.loads((folder / "state" / "settings.json").read_text())["identity"]["run"] == run
    for name in ("report.json", "report.html"):
        assert (folder / name).read_bytes() == (folder / "bundle" / name).read_bytes()
    assert json.loads((folder / "report.json").read_text())["run"] == run
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
    assert sorted(path.name for path in folder.iterdir()) == [
        "bundle",
        "float.onnx",
        "report.html",
        "report.json",
        "state",
    ]
    assert sorted(path.name for path in (folder / "state").iterdir()) == [
        "prepared.json",
        "seconds.json",
        "settings.json",
        "trained.safetensors",
    ]


def test_a_first_run_goes_on_from_anywhere(
    killed: dict[tuple[str, ...], Killed], run: Callable[..., Ended], tmp_path: Path
) -> None:
    begun = 0
    for number, state in enumerate(killed[FIRST].states):
        folder = tmp_path / str(number)
        done = run(copied(state, folder), "--resume")
        if done.status != 0:
            assert "holds no run to go on with; leave --resume out to start one" in done.refusal
            assert not begun, "a later state has more than this one"
            assert run(folder).status == 0
        else:
            begun += 1
        check_whole(folder, killed[FIRST].results)
        shutil.rmtree(folder)
    assert begun >= 8


def test_a_run_that_replaces_another_goes_on_from_anywhere(
    killed: dict[tuple[str, ...], Killed], run: Callable[..., Ended], tmp_path: Path
) -> None:
    """Until it has begun, the folder is the first run's, finished; from then on the second's, never half of each."""
    first, second = killed[FIRST].results, killed[OTHER].results
    replaced, begun = 0, 0
    for number, state in enumerate(killed[OTHER].states):
        folder = tmp_path / str(number)
        done = run(copied(state, folder), "--seed", "1", "--resume")
        if done.status == 0:
            begun += 1
        else:
            assert "--seed was 0 and is 1 now, and the run in" in done.refusal and "is finished" in done.refusal
            assert not begun
            replaced += 1
            assert run(folder, "--resume").status == 0
        check_whole(folder, second if begun else first)
        shutil.rmtree(folder)
    assert replaced >= 1 and begun >= 8


def test_a_run_that_goes_on_goes_on_from_anywhere(
    killed: dict[tuple[str, ...], Killed], run: Callable[..., Ended], tmp_path: Path
) -> None:
    """Killed, gone on with and killed again: here where the calibration alone was there, and only at new states."""
    first = killed[FIRST]
    calibrated = next(state for state in first.states if (state / "state" / "prepared.json").exists())
    shutil.copytree(calibrated, tmp_path / "run")
    with watched(tmp_path / "run", tmp_path / "points") as watch:
        assert run(tmp_path / "run", "--resume").status == 0
    check_whole(tmp_path / "run", first.results)
    begun = [state for state in representative(watch.states) if not (state / "bundle").exists()]
    for number, state in enumerate(begun):
        folder = tmp_path / str(number)
        assert run(copied(state, folder), "--resume").status == 0
        check_whole(folder, first.results)
    assert len(begun) >= 4


@pytest.mark.benchmark
@pytest.mark.parametrize("flags", [FIRST, OTHER], ids=["begins", "replaces"])
def test_every_single_point(flags: tuple[str, ...], run: Callable[..., Ended], tmp_path: Path) -> None:
    """All states, those that differ in temporary files alone among them: some minutes."""
    folder, results = tmp_path / "run", dict[str, dict[str, bytes]]()
    for seed in (FIRST, OTHER) if flags == OTHER else (FIRST,):
        with watched(folder, tmp_path / seed[1]) as watch:
            assert run(folder, *seed).status == 0
        results[seed[1]] = results_of(folder)
    outcomes = Counter[str]()
    for number, state in enumerate(watch.states):
        place = tmp_path / f"again{number}"
        done = run(copied(state, place), *flags[:2], "--resume")
        outcomes["went on" if done.status == 0 else re.sub(r"/\S+", "DIR", done.refusal)[:60]] += 1
        if done.status == 0:
            check_whole(place, results[flags[1]])
        else:
            assert run(place, *flags).status == 0
        shutil.rmtree(place)
    print(f"{watch.points} calls, {len(watch.states)} states: {dict(outcomes)}")


def test_at_any_point_there_is_a_bundle_with_its_own_float_model(killed: dict[tuple[str, ...], Killed]) -> None:
    """While one run replaces another: a bundle is always there, and validates; the other's float model is refused."""
    for state in killed[OTHER].states:
        done = command("validate", str(state / "bundle"), "--quiet")
        assert done.status == 0 or "is not the float network of this bundle's run" in done.refusal
