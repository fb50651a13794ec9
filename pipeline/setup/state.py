"""The beginning of a run in its folder: what may be there already, and what a killed run left to go on with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from calibration.errors import UserError
from pipeline.config import EngineConfig, RunConfig, ValidationConfig, flags
from pipeline.setup.decisive import IDENTIFIED, decides
from pipeline.setup.identity import path_identity
from pipeline.setup.left_in_folder import drop_training, finished_parts, holds_its_bundle, holds_work
from pipeline.setup.machine.circumstances import versions
from pipeline.setup.own_files import OF_A_RUN, SETTINGS, check_of_a_run, check_replaceable
from pipeline.setup.recorded import Recorded
from pipeline.setup.resumption import (
    Finished,
    changed_keys,
    check_changes,
    check_left_out,
    check_same_inputs,
    hashes_of_inputs,
    same_files,
    typed_or_not,
)
from pipeline.setup.run_folder import RunFolder
from pipeline.setup.run_identity import identity_of
from pipeline.setup.settings_of_run import Settings, settings_asked_for
from pipeline.setup.settled import BY_INPUTS
from pipeline.tools.atomic import clear_unfinished, directory, writable
from pipeline.tools.threads import instruction_set


def is_finished(config: RunConfig) -> bool:
    """Whether a run that goes on has nothing left to do, so that its report is that of the run before."""
    goes_on = config.output.resume and not config.output.restart_training
    return goes_on and holds_its_bundle(RunFolder(root=config.folder))


def open_run_folder(config: RunConfig) -> RunFolder:
    """The output folder of a run, which is as it was: `begin` makes room when every input has been checked.

    Raises UserError when it holds another run's results that may not be replaced, when there is nothing to resume, a
    setting differs that decides what is finished there, and when other versions of faqd or torch than began it are to
    go on with it.
    """
    folder = RunFolder(root=config.folder)
    if config.output.resume:
        _check_resumable(folder, config)
        return folder
    check_of_a_run(folder.root)
    if not config.output.overwrite:
        if folder.bundle.exists():
            raise UserError(
                f"{folder.bundle} exists already: add --overwrite to replace it, or choose another --output"
            )
        if holds_work(folder):
            raise UserError(
                f"{folder.root} holds an interrupted run: add --resume to go on, or --overwrite to start anew"
            )
    check_replaceable(folder.root)
    return folder


def begin(
    folder: RunFolder, config: RunConfig, inputs: Mapping[str, str], settled: Mapping[str, Any]
) -> tuple[str, ...]:
    """Make the folder ready for the stages, now that nothing is wrong with the inputs; lines of what goes.

    Without --resume the state of an earlier run goes. With it, the settings that it goes on with take the place of
    those that it was begun with, once networks and images are known to be those that the finished parts were made from.

    Args:
        folder: of the run.
        config: of the run.
        inputs: what each of `pipeline.setup.decisive.INPUTS` holds.
        settled: the settings that these settle (see `pipeline.setup.settled`).

    Raises:
        UserError: they are others, or the folder cannot be written.
    """
    now = settings_asked_for(config, settled)
    output, lines, before = config.output, list[str](), dict[str, str]()
    processors: tuple[str, ...] = (instruction_set(),)
    if output.resume:
        recorded = folder.recorded()
        now, processors = _with_threads_of(recorded.settings, now), recorded.processors
        if not folder.trained.exists() and processors[-1:] != (instruction_set(),):
            processors += (instruction_set(),)
        finished = finished_parts(folder, restart_training=output.restart_training)
        changed = changed_keys(recorded.settings, now)
        check_same_inputs(recorded.inputs, inputs, changed, now.typed, finished)
        check_changes(recorded.settings, now, finished)
        parts = recorded.identity_in(folder.settings).parts
        before = {part.name: parts[part.name] for part in finished}
    contents = hashes_of_inputs(now.typed)
    circumstances = {**_versions(), "processor": instruction_set()}
    recorded = Recorded(
        settings=now,
        begun_with=_versions(),
        inputs=inputs,
        contents=contents,
        identity=identity_of(now, inputs, contents.values(), circumstances, kept=before).to_json(),
        processors=processors,
    )
    if output.restart_training:
        # Before the settings are those of a training that has not begun.
        lines += filter(None, [drop_training(folder)])
    if output.resume:
        recorded.save(folder.settings)
        return tuple(lines)
    check_replaceable(folder.root)  # as it is now, after all that was read
    with directory(folder.state, overwrite=True) as state:
        recorded.save(state / SETTINGS)
    return tuple(lines)


def _with_threads_of(before: Settings, now: Settings) -> Settings:
    """The settings with the threads that a run was begun with, where no others are typed."""
    key = "training-threads"
    if now.typed.get(key) is not None or key not in before.settled:
        return now
    return replace(now, settled={**now.settled, key: before.settled[key]})


def clear(folder: RunFolder) -> None:
    """Take away what a killed run was just writing, and put back what it had just moved aside."""
    with writable(folder.root):
        clear_unfinished(folder.root, OF_A_RUN)
    with writable(folder.state):
        clear_unfinished(folder.state)


def _versions() -> dict[str, str]:
    """What a resumed run must share with its beginning, to end with the bytes of one that was not interrupted."""
    installed = versions()
    return {name: installed[name] for name in ("faqd", "torch")}


def _check_resumable(folder: RunFolder, config: RunConfig) -> None:
    if not folder.settings.is_file():
        raise UserError(f"--resume: {folder.root} holds no run to go on with; leave --resume out to start one")
    recorded, now, restart = folder.recorded(), settings_asked_for(config), config.output.restart_training
    before, is_done = recorded.settings, holds_its_bundle(folder) and not restart
    finished = finished_parts(folder, restart_training=restart)
    changed = changed_keys(before, now)
    refused = changed if is_done else [key for key in changed if _decides_one_of(finished, key)]
    check_left_out(before, now, settings_asked_for(RunConfig()).typed, refused)
    if is_done:
        _check_nothing_changed(folder, recorded, now, changed)
        _check_contents(folder, recorded.contents)
        return
    check_changes(before, now, finished, later=BY_INPUTS)
    if recorded.begun_with != (running := _versions()):
        first, second = (
            " and ".join(f"{name} {its}" for name, its in used.items()) for used in (recorded.begun_with, running)
        )
        raise UserError(
            f"--resume: the run in {folder.root} was begun with {first or 'an older faqd'}, this is {second}, which may"
            " end it with other weights: go on with those versions, or start anew with --overwrite"
        )


def _decides_one_of(finished: Collection[Finished], key: str) -> bool:
    """Whether a setting, whose value is known before any input is read, decides something that is finished.

    Steps among them, which are typed more often than left to the images.
    """
    return (key == "steps" or key not in BY_INPUTS) and any(decides(key, part.name) for part in finished)


def _check_nothing_changed(folder: RunFolder, recorded: Recorded, now: Settings, changed: Collection[str]) -> None:
    """Raise UserError where a finished run is to go on with another setting; the line says what does that otherwise."""
    before = recorded.settings
    for key in changed:
        was, is_now = before.typed.get(key), now.typed.get(key)
        if key in IDENTIFIED and same_files(was, is_now, recorded.contents):
            continue
        other = "make another beside it with --output"
        if key in flags.flags(ValidationConfig) or key in flags.flags(EngineConfig):
            other = f"score it otherwise with faqd validate {folder.bundle}"
        elif decides(key, "training") and not any(decides(key, name) for name in ("float student", "calibration")):
            other = "train it otherwise with --restart-training, which keeps the calibration"
        raise UserError(
            f"--resume: --{key} was {typed_or_not(was)} and is {typed_or_not(is_now)} now, and the run in"
            f" {folder.root} is finished: {other}, or start anew with --overwrite"
        )


def _check_contents(folder: RunFolder, contents: Mapping[str, str]) -> None:
    """Raise UserError where a file that a finished run was made from holds something else now; one may be gone."""
    for path, held in contents.items():
        if path_identity(Path(path)) not in (None, held):
            raise UserError(
                f"--resume: {path} holds something else than when the run in {folder.root} was made from it, which is"
                " finished: start anew with --overwrite, or make another run beside it with --output"
            )
