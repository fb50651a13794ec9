"""Names of files, layers and classes are shown wherever they are printed, and are never obeyed."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.table import Column, Table
from rich.text import Text

from backends.device.bundle_check.ending import ended, say
from backends.device.bundle_check.errors import DeviceError
from calibration.errors import UserError
from pipeline.report.comparison import ComparedTensor, ComparisonReport, render_comparison
from pipeline.report.html import page
from pipeline.report.printed_table import render_report
from pipeline.report.schema import Data, FloatLayer, Kernels, Report
from pipeline.tools.printing import PlainConsole, console, json_text, plain
from pipeline.tools.progress import LineProgress, TerminalProgress

#: A colour, a window title, a line drawn over, a direction turned around, bytes that are no text, markup, an emoji.
NASTY = "a[red]\x1b[31m\x1b]0;t\x07b\rc\nd\u202egpj\udcff[/]linear:A:B\x9b2J"
SHOWN = "a[red]␛[31m␛]0;t␇b␍c␊d\ufffdgpj\ufffd[/]linear:A:B\ufffd2J"
#: What must never come out, whoever printed it.
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\U0001f170]")


def test_foreign_text_is_one_line_as_long_as_it_was() -> None:
    assert plain(NASTY) == SHOWN
    assert len(SHOWN) == len(NASTY)
    assert plain("Größe 図 :smile: [bold]") == "Größe 図 :smile: [bold]"


def test_a_mistake_is_plain_wherever_it_is_printed() -> None:
    assert str(UserError(f"--data {NASTY}")) == "--data " + SHOWN.replace("␍", " ").replace("␊", " ")


def test_json_says_the_same_and_holds_nothing_that_a_terminal_obeys() -> None:
    text = json_text({NASTY: [NASTY, "Größe 図"]}, indent=1)
    assert json.loads(text) == {NASTY: [NASTY, "Größe 図"]}
    assert not OBEYED.search(text) and "Größe 図" in text
    text.encode("utf-8")  # halves of characters, of names of files that are no text, too


def test_the_check_on_a_device_obeys_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> dict[str, object]:
        say(f"output {NASTY}")
        raise DeviceError(f"class {NASTY}")

    assert ended(refuse, None) == 2
    out, error = capsys.readouterr()
    assert not OBEYED.search(out.removesuffix("\n")) and not OBEYED.search(error.removesuffix("\n"))
    assert out.startswith("output a[red]") and error.startswith("error: class a[red]")


@pytest.mark.parametrize("of", [str, Text])
def test_a_console_obeys_nothing_in_text(of: Callable[[str], str | Text]) -> None:
    written = io.StringIO()
    out = PlainConsole(file=written, width=200, markup=False, emoji=False, highlight=False)
    table = Table(Column(of("head\x1b[1m")), box=None)
    table.add_row(of(NASTY))
    out.print(of(NASTY))
    out.print(table)
    assert not OBEYED.search(written.getvalue())
    assert "linear:A:B" in written.getvalue() and "[red]␛[31m" in written.getvalue()


def test_styles_stay_in_their_places() -> None:
    written = io.StringIO()
    out = PlainConsole(file=written, force_terminal=True, color_system="standard", width=80)
    out.print(Text("\x1b") + Text("red", style="red") + Text("\x07"))
    assert written.getvalue() == "␛\x1b[31mred\x1b[0m\n"  # rich itself leaves the bell out


@pytest.fixture
def nasty(make_report: Callable[..., Report]) -> Report:
    return make_report(
        teacher=NASTY,
        student=NASTY,
        notes=(NASTY,),
        data=Data(images=3, unreadable=1, unreadable_names=(NASTY,)),
        kernels=Kernels(integer=19, float=1, float_layers=(FloatLayer(name=NASTY, reason=NASTY),)),
    )


def test_a_report_shows_names_in_its_table_and_page(nasty: Report) -> None:
    written = io.StringIO()
    PlainConsole(file=written, width=200, markup=False, emoji=False).print(render_report(nasty))
    assert not OBEYED.search(written.getvalue())
    assert written.getvalue().count(SHOWN) == 5
    shown = page(nasty)
    assert not OBEYED.search(shown)
    assert shown.count(SHOWN) >= 5
    shown.encode("utf-8")


def test_a_comparison_shows_names() -> None:
    tensor = ComparedTensor(
        name=NASTY, node=NASTY, operators=(NASTY,), elements=9, differing=1, largest=1, own=1, own_largest=1, ties=0,
        example=NASTY, why=NASTY,
    )  # fmt: skip
    report = ComparisonReport(
        here=NASTY, there="b", images=1, tolerance=0, first=NASTY, tensors=(tensor, tensor), outputs=(), notes=(NASTY,)
    )
    written = io.StringIO()
    PlainConsole(file=written, width=500, markup=False, emoji=False).print(render_comparison(report))
    assert not OBEYED.search(written.getvalue())
    assert "linear:A:B" in written.getvalue()


def test_progress_shows_names() -> None:
    lines: list[str] = []
    LineProgress(lines.append).say(NASTY)
    assert lines == [SHOWN]
    written = io.StringIO()
    TerminalProgress(PlainConsole(file=written, width=200)).say(NASTY)
    assert written.getvalue() == f"{SHOWN}\n"


def test_errors_logs_and_help_show_names(capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.cli import Talk, _configure_talk, app, main

    assert main(["run", "--teacher", f"{NASTY}:x", "--data", "linear:A:B"]) == 2
    assert main([NASTY]) == 2
    _configure_talk(Talk())
    logging.getLogger("library").warning("%s", NASTY.replace("\n", ""))
    logging.captureWarnings(False)
    app(["run", "--help"], exit_on_error=False)
    out, err = capsys.readouterr()
    assert not OBEYED.search(out) and not OBEYED.search(err)
    assert err.count("linear:A:B") >= 2 and "linear:A:B" in out


def test_a_terminal_without_unicode_gets_escapes_instead_of_a_traceback(repository: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(repository), "PYTHONIOENCODING": "ascii"}
    line = [sys.executable, "-m", "pipeline", "run", "--config", "größe.toml"]
    done = subprocess.run(line, env=environment, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == rb"error: --config gr\xf6\xdfe.toml: No such file or directory" + b"\n"


def test_only_one_place_makes_consoles(repository: Path) -> None:
    made = [
        str(path.relative_to(repository))
        for folder in ("pipeline", "backends", "calibration")
        for path in (repository / folder).rglob("*.py")
        if re.search(r"(?<!Plain)Console\(", path.read_text(encoding="utf-8")) and path.name != "printing.py"
    ]
    assert made == []  # `PlainConsole` has another name
    assert type(console()) is PlainConsole
