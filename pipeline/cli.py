"""The command line: run, validate, compare, doctor; the one place that prints, configures logs and ends with a status.

Importing it is quick: torch and the stages are imported by the commands that need them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts.config
from cyclopts import (
    App,
    Argument,
    ArgumentCollection,
    CycloptsError,
    Group,
    Parameter,
)
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from backends import BACKENDS
from backends.device.bundle_check import records
from calibration.errors import UserError
from pipeline import __version__
from pipeline.config import ENGINE_GROUP, EngineConfig, RunConfig, ValidationConfig
from pipeline.config.compare import CompareConfig
from pipeline.config.file import read_toml
from pipeline.config.flag_meaning import NEEDS, check_meanings, meaningful
from pipeline.config.flags import check_whole_numbers
from pipeline.config.recipes import all_recipes, recipe_named
from pipeline.config.run import default_settings
from pipeline.tools import interruption
from pipeline.tools.endings import USER_MISTAKE, ending_of, leaving_is_a_mistake
from pipeline.tools.memory import lasting_imports
from pipeline.tools.printing import console, plain, take_any_text
from pipeline.tools.progress import progress_on
from pipeline.tools.streams import flush_results, messages_may_fail
from pipeline.tools.wrong_flags import mistake_of

if TYPE_CHECKING:
    from pipeline.report.schema import Report

"""128 + SIGPIPE, as shells count it."""

_ONCE = ("--overwrite", "--resume", "--restart-training")
"""Flags that a command to go on with does not repeat: what they were to do has been done."""

TABLE_COLUMNS = 100
"""Width that every table fits, characters."""


@dataclass(frozen=True, kw_only=True)
class Talk:
    """How much is said on standard error."""

    verbose: Annotated[
        bool, Parameter(name=("--verbose", "-v"), negative=(), help="Say more, library warnings included.")
    ] = False
    quiet: Annotated[bool, Parameter(negative=(), help="Say nothing but the result and errors.")] = False


_TALK = Parameter(name="*", group=Group.create_ordered("Talk"))
_BUNDLE = Parameter(help="Folder DIR/bundle that a run has made.")
_KEY = Parameter(metavar="FILE", help="File of the key that signs the bundle: 16 bytes or more.")
_QUIETLY = Talk()
_DEFAULT_RUN = RunConfig()
_DEFAULT_VALIDATION = ValidationConfig()
_DEFAULT_ENGINE = EngineConfig()
_DEFAULT_COMPARISON = CompareConfig()


def _settings_from_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Give every flag that was not typed the value of the file named by --config, else of the recipe.

    What of a recipe no longer means anything beside the typed flags is left out; what was typed so is refused.
    """
    typed = {argument.name.removeprefix("--"): argument for argument in arguments if argument.tokens}
    layers: list[tuple[dict[str, Any], str]] = []
    own: dict[str, Any] = {}
    if "config" in typed:
        source = typed["config"].tokens[0].value
        own |= read_toml(Path(source))
        layers.append((dict(own), source))
    asked = _converted({key: argument for key, argument in typed.items() if key in NEEDS})
    own |= asked
    together = default_settings()
    if "recipe" in typed:
        recipe = recipe_named(typed["recipe"].tokens[0].value)
        settled = own | {key: argument.tokens for key, argument in typed.items()}
        if missing := recipe.missing(settled):
            raise UserError(f"--recipe {recipe.name} ({recipe.title}) needs {missing}: see faqd run --help")
        settings = meaningful(recipe.settings, own, together)
        layers.append((settings, f"recipe {recipe.name}"))
        together |= settings
    if commands == ("run",):
        check_meanings(together | own, asked)
    for settings, source in layers:
        cyclopts.config.Dict(settings, source=source, use_commands_as_keys=False)(app, commands, arguments)
    check_whole_numbers(arguments)


def _converted(typed: Mapping[str, Argument]) -> dict[str, Any]:
    """The values of typed flags as JSON has them; those that are no values are left to the parser's own line."""
    values: dict[str, Any] = {}
    for key, argument in typed.items():
        with contextlib.suppress(CycloptsError):
            values[key] = records.to_json(argument.convert())
    return values


app = App(
    name="faqd",
    help="Quantise a vision network without labels, and prove on its runtime that it still works.",
    version=__version__,
    version_flags=["--version"],
    config=_settings_from_file,
    help_format="plaintext",
    console=console(),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)


@app.command(sort_key=1)
def run(
    *,
    config: Annotated[RunConfig, Parameter(name="*")] = _DEFAULT_RUN,
    config_file: Annotated[
        Path | None,
        Parameter(name="--config", metavar="FILE.toml", help="Settings: flags without dashes as keys; flags win."),
    ] = None,
    recipe: Annotated[
        str | None, Parameter(metavar="NAME", help="Settings of a paper's method, see faqd recipes; flags win.")
    ] = None,
    talk: Annotated[Talk, _TALK] = _QUIETLY,
) -> int:
    """Quantise, distil, convert and validate a network; without flags, the embedded digits.

    Exit status: 0 all gates passed on the runtime, 1 a gate failed, 2 a mistake in the input, 3 not validated here,
    4 undecided (too few images), 130 interrupted.
    """
    progress = progress_on(_configure_talk(talk), quiet=talk.quiet)
    with lasting_imports():
        from pipeline.run import run as run_pipeline
        from pipeline.setup.left_in_folder import beginning
        from pipeline.setup.run_folder import RunFolder
        from pipeline.setup.state import is_finished

    interruption.work_begins()
    bundle, out = config.folder / "bundle", console(wrapped=False)
    finished = is_finished(config)
    folder = RunFolder(root=config.folder)
    before = beginning(folder)
    try:
        report = run_pipeline(config, progress)
    except KeyboardInterrupt as stopped:
        raise _Interrupted(begun=beginning(folder) != before) from stopped
    status = _show(report)
    if finished:
        out.print(
            f"{bundle} is finished already: the report is that run's; files of weights and images are as they were,"
            " the network's code was not read again: where that is another now, give --overwrite instead of --resume"
        )
    out.print(f"bundle: {bundle}")
    out.print(f"report: {config.folder / 'report.html'}")
    if report.status == "not-validated-on-target":
        out.print(f"on the target, run: {_command_on_target(bundle)}")
        if report.target in BACKENDS[report.backend].emulated:
            out.print(f"or here, emulated: faqd validate {shlex.quote(str(bundle))} --emulate {report.target}")
    if report.status == "undecided":
        out.print(f"to decide, run: faqd validate {shlex.quote(str(bundle))} --eval-data KIND:REST")
    return status


@app.command(sort_key=2)
def validate(
    bundle: Annotated[Path, _BUNDLE],
    /,
    *,
    config: Annotated[ValidationConfig, Parameter(name="*")] = _DEFAULT_VALIDATION,
    engine: Annotated[EngineConfig, Parameter(name="*", group=ENGINE_GROUP)] = _DEFAULT_ENGINE,
    emulate: Annotated[
        Literal["x86-avx2", "arm64"] | None,
        Parameter(help="Run ONNX Runtime on this processor, emulated by QEMU, instead of the one here."),
    ] = None,
    key: Annotated[Path | None, _KEY] = None,
    report_file: Annotated[
        Path | None, Parameter(name="--report", metavar="FILE.json", help="Write the report there as well.")
    ] = None,
    talk: Annotated[Talk, _TALK] = _QUIETLY,
) -> int:
    """Validate an existing bundle on this machine's runtime, or an emulated one. Exit status as of run."""
    progress = progress_on(_configure_talk(talk), quiet=talk.quiet)
    with lasting_imports():
        from pipeline.run import validate_bundle
        from pipeline.tools.atomic import check_place, write_text

    interruption.work_begins()
    if report_file is not None:
        check_place(report_file, flag="--report")
    report = validate_bundle(bundle, config, engine, progress, emulate=emulate, key=key)
    # Shown before it is written: a disk that is full by now shall not cost the user what took so long.
    status = _show(report)
    if report_file is not None:
        write_text(report_file, report.to_text(), flag="--report")
    return status


@app.command(sort_key=8)
def recipes() -> int:
    """List the recipes for `faqd run --recipe NAME`: each method, where it is from, and what of it is ours."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for recipe in all_recipes():
        settings = " ".join(f"--{key} {value}" for key, value in recipe.settings.items())
        needs = recipe.missing({})
        table.add_row(recipe.name, f"{recipe.title}.{f' It needs {needs}.' if needs else ''}")
        table.add_row("", f"source: {recipe.source}; ours: {recipe.ours}")
        table.add_row("", settings, end_section=True)
    console(width=TABLE_COLUMNS).print(table)
    return 0


@app.command(sort_key=3)
def compare(
    bundle: Annotated[Path, _BUNDLE],
    /,
    *,
    config: Annotated[CompareConfig, Parameter(name="*")] = _DEFAULT_COMPARISON,
    key: Annotated[Path | None, _KEY] = None,
    report_file: Annotated[
        Path | None, Parameter(name="--report", metavar="FILE.json", help="Write what was found there as well.")
    ] = None,
    talk: Annotated[Talk, _TALK] = _QUIETLY,
) -> int:
    """Compare a bundle's integers with its runtime's, or with another model's, tensor by tensor.

    Exit status: 0 every integer is equal (within --tolerance), 1 one differs, 2 a mistake in the input.
    """
    progress = progress_on(_configure_talk(talk), quiet=talk.quiet)
    with lasting_imports():
        from pipeline.report.comparison import render_comparison
        from pipeline.run import compare as compare_models
        from pipeline.tools.atomic import check_place, write_text

    interruption.work_begins()
    if report_file is not None:
        check_place(report_file, flag="--report")
    comparison = compare_models(bundle, config, progress, key=key)
    console(width=TABLE_COLUMNS).print(render_comparison(comparison))
    if report_file is not None:
        write_text(report_file, comparison.to_text(), flag="--report")
    return comparison.exit_status


@app.command(name="sign", sort_key=5)
def sign_by_key(
    bundle: Annotated[Path, _BUNDLE],
    /,
    *,
    key: Annotated[Path, _KEY],
    old_key: Annotated[
        Path | None,
        Parameter(metavar="FILE", help="File of the key that signs the bundle so far, where --key is another."),
    ] = None,
) -> int:
    """Sign a bundle with a key that its device shares; from then on it is read with that key alone."""
    from pipeline.bundle.bundle import sign_bundle

    interruption.work_begins()
    sign_bundle(bundle, key=key, old_key=old_key)
    console(wrapped=False).print(plain(f"signed: {bundle}; on the device: python3 check.py --key FILE"))
    return 0


@app.command(sort_key=4)
def doctor() -> int:
    """Say what this machine offers: versions, integer instructions, GPU, optional packages."""
    from pipeline.setup.machine.doctor import examine

    interruption.work_begins()
    findings = examine()
    table = Table(box=None, show_header=False, pad_edge=False)
    topic = ""
    for finding in findings:
        fix = f"-> {finding.fix}" if finding.fix else ""
        table.add_row(finding.topic if finding.topic != topic else "", finding.name, finding.value, fix)
        topic = finding.topic
    console(width=TABLE_COLUMNS).print(table)
    return USER_MISTAKE if any(finding.needed and finding.fix for finding in findings) else 0


@app.command(sort_key=9)
def emulation(
    cpu: Annotated[Literal["x86-avx2", "arm64"], Parameter(help="Processor that bundles are to be checked on.")], /
) -> int:
    """Make what validate --emulate needs, from Debian's and Python's packages; nothing of this machine changes."""
    from backends.onnxruntime.emulation_setup import make_environment

    interruption.work_begins()
    out = console(wrapped=False)
    folder = make_environment(cpu, lambda line: out.print(line))
    out.print(f"ready: {folder or 'this Python and the emulator are all that it needs'}")
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the exit status.

    A user's mistake is one line on standard error and status 2; a bug of ours keeps its traceback.
    """
    # Before torch is imported: threads of OpenMP that wait by spinning make a training step five times slower as
    # soon as anything else runs on the machine; sleeping ones cost 10 to 15 % where nothing does (measured, 2 cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    take_any_text()
    with messages_may_fail(), leaving_is_a_mistake():
        return _main(arguments)


def _main(arguments: Sequence[str]) -> int:
    errors = console(stderr=True, wrapped=False)
    _configure_talk(Talk())  # what libraries log and warn of is shown plainly by every command, whether it talks or not
    interruption.leave_at_once(_interrupted_line(arguments, begun=False))
    try:
        status = app(list(arguments), exit_on_error=False, print_error=False)
        flush_results()
    except CycloptsError as error:
        errors.print(plain(f"error: {mistake_of(error)}"))
        return USER_MISTAKE
    except KeyboardInterrupt as stopped:
        begun = isinstance(stopped, _Interrupted) and stopped.begun
        errors.print(_interrupted_line(arguments, begun=begun))
        return interruption.STATUS
    except Exception as error:
        ending = ending_of(error, lambda line: errors.print(plain(line)))
        if ending is None:
            raise
        return ending
    finally:
        interruption.work_begins()
    return status if isinstance(status, int) else 0


class _Interrupted(KeyboardInterrupt):
    """A run that was interrupted; `begun`: its folder is its own already, so that --resume goes on with it."""

    def __init__(self, *, begun: bool) -> None:
        super().__init__()
        self.begun = begun


def _interrupted_line(arguments: Sequence[str], *, begun: bool) -> str:
    if not arguments or arguments[0] != "run":
        return "interrupted"
    started_as_module = Path(sys.argv[0]).parts[-2:] == ("pipeline", "__main__.py")
    program = "python3 -m pipeline" if started_as_module else "faqd"
    if not begun:
        return f"interrupted before anything was kept: start again with {program} {shlex.join(arguments)}"
    kept = [argument for argument in arguments if argument not in _ONCE]
    return f"interrupted: resume with {program} {shlex.join([*kept, '--resume'])}"


def _configure_talk(talk: Talk) -> Console:
    """Send log records and library warnings to standard error and return its console."""
    if talk.verbose and talk.quiet:
        raise UserError("--verbose and --quiet contradict each other: give one of them")
    errors = console(stderr=True)
    level = logging.ERROR if talk.quiet else logging.INFO if talk.verbose else logging.WARNING
    handler = RichHandler(console=errors, show_path=False, show_time=False, markup=False)
    logging.basicConfig(level=level, handlers=[handler], format="%(message)s", force=True)
    logging.captureWarnings(True)
    # Libraries warn their own developers; a user who wants to see it asks with -v.
    logging.getLogger("py.warnings").setLevel(logging.WARNING if talk.verbose else logging.ERROR)
    return errors


def _command_on_target(bundle: Path) -> str:
    """What proves the bundle on its device; devices seldom have torch: the bundle brings its check."""
    return f"python3 {shlex.quote(str(bundle / 'check.py'))}"


def _show(report: Report) -> int:
    from pipeline.report.printed_table import render_report

    console(width=TABLE_COLUMNS).print(render_report(report))
    return report.exit_status
