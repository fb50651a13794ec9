"""The command line: quick to start, one line per mistake, the exit statuses of the README."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from calibration.errors import UserError
from pipeline import __version__
from pipeline.cli import app, main
from pipeline.config import EngineConfig, RunConfig, ValidationConfig
from pipeline.report.gate import Gate
from pipeline.report.schema import Report, read_report
from pipeline.tools.atomic import write_text
from pipeline.tools.progress import Progress


@pytest.fixture(autouse=True)
def library_warnings_stay_warnings() -> Iterator[None]:
    """Undo what the command line does to the process: it sends warnings to the log."""
    yield
    logging.captureWarnings(False)


def python(*arguments: str, repository: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(repository), "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=60,
        check=False,
    )


def test_the_command_line_starts_without_torch(repository: Path) -> None:
    heavy = "{'torch', 'onnx', 'onnxruntime', 'jinja2'}"
    code = f"import sys, pipeline.cli; print(sorted({heavy} & set(sys.modules)))"
    done = python("-c", code, repository=repository)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_a_mistake_is_one_line_and_status_2(repository: Path, tmp_path: Path) -> None:
    done = python("-m", "pipeline", "run", "--bits", "5", repository=repository, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == 'error: invalid value "5" for --bits. Choose from: 8, 4, 3, 2, 1.\n'
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["backends.py", "calibration/__init__.py"])
def test_a_file_that_hides_a_package_of_ours_is_named(name: str, repository: Path, tmp_path: Path) -> None:
    stranger = tmp_path / name
    stranger.parent.mkdir(exist_ok=True)
    stranger.write_text("raise SystemExit('the stranger was run')\n", encoding="utf-8")
    done = python("-m", "pipeline", "--version", repository=repository, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"faqd: {stranger} hides faqd's own package")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--bitz", "4"], "unknown option: --bitz. Did you mean --bits?"),
        (["run", "--letterbox"], "unknown option: --letterbox. Did you mean --fit letterbox?"),
        (["run", "--backend", "tensorrtt"], 'Choose from: "onnxruntime", "tensorrt", "openvino", "reference".'),
        (["run", "--image-size", "big"], "--image-size 'big': must be pixels, such as 224, or WIDTHxHEIGHT"),
        (["run", "--mean", "a,b"], "--mean a,b: must be numbers"),
        (["run", "--weights"], "--weights requires an argument"),
        (["run", "resnet18"], 'unexpected argument "resnet18"'),
        (["run", "--steps", "10.5"], "--steps 10.5: must be a whole number"),
        (["run", "--max-drop", "5%"], "--max-drop 5%: must be a number"),
        (["validate", "b", "--threads", "two"], "--threads two: must be a whole number"),
        (["validate", "b", "--threads", "1.9"], "--threads 1.9: must be a whole number"),
        (["run", "--parity-images", "some"], "--parity-images some: must be a whole number or all"),
        (["validate", "b", "--parity-images", "1.5"], "--parity-images 1.5: must be a whole number or all"),
        (["run", "--learning-rate", "0"], "--learning-rate 0.0: must be greater than 0"),
        (["run", "--quiet", "-v"], "--verbose and --quiet contradict each other"),
        (["run", "--config", "absent.toml"], "--config absent.toml: No such file or directory"),
        (["validate"], "BUNDLE requires an argument"),
        (["rum"], 'unknown command "rum". Did you mean "run"?'),
    ],
)
def test_mistakes_are_named(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_word_for_a_number_in_a_file_is_named_with_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('min-speedup = "2x"\n', encoding="utf-8")
    assert main(["run", "--config", str(file)]) == 2
    assert capsys.readouterr().err == f"error: --config {file}: --min-speedup 2x: must be a number\n"


def parsed(*arguments: str) -> RunConfig:
    _, bound, _ = app.parse_args(list(arguments), exit_on_error=False, print_error=False)
    config = bound.arguments.get("config", RunConfig())
    assert isinstance(config, RunConfig)
    return config


def test_flags_reach_their_fields() -> None:
    config = parsed(
        *(
            "run",
            "--teacher",
            "cifar:resnet20",
            "--weights",
            "w.pth",
            "--mean",
            "0.5,0.4",
            ".3",
            "--std",
            "1,1,1",
        ),
        *("--data", "npz:a#b", "--bits", "4", "--range", "percentile", "--taps", "layer1,layer2", "--resume"),
        *("--student", "cifar:resnet32", "--student-weights", "s.pth", "--output", "out", "--seed", "3"),
    )
    assert config.teacher.weights == (Path("w.pth"),)
    assert config.preprocessing.mean == (0.5, 0.4, 0.3)
    assert config.quantisation.bits == 4
    assert config.quantisation.range_method == "percentile"
    assert config.distillation.taps == ("layer1", "layer2")
    assert config.student.weights == Path("s.pth")
    assert config.output.resume
    assert config.folder == Path("out")
    assert config.execution.seed == 3


def test_several_teachers_are_named_one_by_one(tmp_path: Path) -> None:
    teachers = ("--teacher", "cifar:resnet20", "--teacher", "python:a.b:c", "--weights", "w,1.pth", "--weights", "own")
    config = parsed("run", *teachers, "--data", "npz:a#b").teacher
    assert (config.source, config.sources) == ("cifar:resnet20", ("cifar:resnet20", "python:a.b:c"))
    assert config.weights == (Path("w,1.pth"), None)
    file = tmp_path / "settings.toml"
    file.write_text('teacher = ["cifar:resnet20", "python:a.b:c"]\nweights = ["w,1.pth", "own"]\n', encoding="utf-8")
    assert parsed("run", "--config", str(file), "--data", "npz:a#b").teacher == config
    file.write_text('teacher = "python:a.b:c"\n', encoding="utf-8")
    assert parsed("run", "--config", str(file)).teacher.sources == ("python:a.b:c",)


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("bits = 4\nseed = 9\nmean = [0.5]\nstd = [0.25]\nresume = true\nopset = 21\n", encoding="utf-8")
    config = parsed("run", "--config", str(file), "--seed", "1", "--no-resume")
    assert config.quantisation.bits == 4
    assert config.execution.seed == 1
    assert config.preprocessing.mean == (0.5,)
    assert not config.output.resume


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("bitz = 4", "unknown key 'bitz', did you mean bits?"),
        ("bits = 5", "bits is 5: must be 8, 4, 3, 2 or 1"),
        ('bits = "5"', 'invalid value "5" for'),
    ],
)
def test_mistakes_in_the_file_name_it(
    content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(content, encoding="utf-8")
    assert main(["run", "--config", str(file)]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert str(file) in err
    assert err.count("\n") == 1


def test_version_and_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "onnxruntime" in out
    assert "tensorrt-rtx" in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Report]], None]:
    """Put a stand-in for the chain under the command line, whose own doing is tested here."""

    def install(result: Callable[..., Report]) -> None:
        module = types.ModuleType("pipeline.run")
        vars(module).update(run=result, validate_bundle=result)
        monkeypatch.setitem(sys.modules, "pipeline.run", module)

    return install


def test_the_exit_status_is_the_reports(
    chain: Any, make_report: Callable[..., Report], elsewhere: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = make_report(status="gate-failed", gates=(Gate(name="max-drop", limit=1.0, value=2.0, passed=False),))
    gate = Gate(name="max-drop", limit=1.0, value=0.0, passed=None, undecided=True, images=9, images_needed=299)
    few = make_report(status="undecided", gates=(gate,))
    for report, status, words in (
        (make_report(), 0, "validated (exit status 0)"),
        (failed, 1, "FAIL"),
        (elsewhere, 3, "python3 artifacts/digits-onnxruntime-w8a8/bundle/check.py"),
        (few, 4, "faqd validate artifacts/digits-onnxruntime-w8a8/bundle --eval-data KIND:REST"),
    ):

        def finished(config: RunConfig, progress: Progress, report: Report = report) -> Report:
            with progress.stage("teacher"):
                progress.step(1, 2, loss=0.5)
            return report

        chain(finished)
        assert main(["run"]) == status
        out, err = capsys.readouterr()
        assert words in out
        assert max(map(len, out.splitlines())) <= 100
        assert err.startswith("teacher ")
        assert main(["run", "--quiet"]) == status
        assert capsys.readouterr().err == ""


def test_validate_hands_over_the_bundle_and_writes_the_report(
    chain: Any, make_report: Callable[..., Report], tmp_path: Path
) -> None:
    seen: list[Any] = []

    def validated(
        bundle: Path,
        config: ValidationConfig,
        engine: EngineConfig,
        progress: Progress,
        *,
        emulate: str | None,
        key: Path | None,
    ) -> Report:
        seen.extend([bundle, config, engine, emulate, key])
        return make_report()

    chain(validated)
    file = tmp_path / "made" / "report.json"
    flags = [
        "--threads",
        "2",
        "--batches",
        "1,2,4",
        "--emulate",
        "arm64",
        "--key",
        "a",
        "--report",
        str(file),
        "--quiet",
    ]
    assert main(["validate", "some/bundle", *flags]) == 0
    engine = EngineConfig(batches=(1, 2, 4))
    assert seen == [Path("some/bundle"), ValidationConfig(threads=2), engine, "arm64", Path("a")]
    assert read_report(file) == make_report()


@pytest.mark.parametrize(
    ("started", "program"),
    [("/usr/bin/faqd", "faqd"), ("/home/me/faqd/pipeline/__main__.py", "python3 -m pipeline")],
)
def test_an_interruption_is_one_line_that_says_how_to_go_on(
    started: str,
    program: str,
    chain: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = tmp_path / "out" / "state" / "settings.json"
    begins = False

    def interrupted(config: RunConfig, progress: Progress) -> Report:
        if begins:
            write_text(settings, "{}")
        with progress.stage("distil"):
            raise KeyboardInterrupt

    chain(interrupted)
    monkeypatch.setattr(sys, "argv", [started])
    typed = f"run --overwrite --output {tmp_path / 'out'} --data 'images:a b'"
    anew = f"interrupted before anything was kept: start again with {program} {typed}\n"
    arguments = ["run", "--overwrite", "--output", str(tmp_path / "out"), "--data", "images:a b"]
    assert main(arguments) == 130
    assert capsys.readouterr().err == anew
    for _ in range(2):
        # What lies there of another run is nothing to go on with; what this one has begun is.
        begins = True
        assert main(arguments) == 130
        line = f"interrupted: resume with {program} {typed.replace(' --overwrite', '')} --resume\n"
        assert capsys.readouterr().err == line
        begins = False
        assert main(arguments) == 130
        assert capsys.readouterr().err == anew


def test_a_result_is_shown_though_its_file_cannot_be_written(
    chain: Any, make_report: Callable[..., Report], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place"

    def validated(*_: object, **__: object) -> Report:
        place.write_text("a file where a folder was to be")
        return make_report()

    chain(validated)
    assert main(["validate", "some/bundle", "--report", str(place / "report.json"), "--quiet"]) == 2
    shown = capsys.readouterr()
    assert "validated (exit status 0)" in shown.out
    assert shown.err.startswith(f"error: cannot write {place / 'report.json'}: ") and shown.err.count("\n") == 1


def test_mistakes_found_by_the_chain_are_one_line_and_bugs_keep_their_traceback(
    chain: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def mistaken(config: RunConfig, progress: Progress) -> Report:
        raise UserError("the folder [photos] holds no image")

    def broken(config: RunConfig, progress: Progress) -> Report:
        raise ZeroDivisionError("ours")

    chain(mistaken)
    assert main(["run"]) == 2
    assert capsys.readouterr().err == "error: the folder [photos] holds no image\n"
    chain(broken)
    with pytest.raises(ZeroDivisionError, match="ours"):
        main(["run"])
