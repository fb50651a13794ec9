"""The beginning of a run in its folder: what may be there already, and what a killed run left to go on with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from calibration.errors import UserError, is_out_of_memory, out_of_memory_line
from pipeline.config import EngineConfig, RunConfig, ValidationConfig, flags
from pipeline.setup.identity import path_identity
from pipeline.setup.machine.circumstances import versions
from pipeline.setup.own_files import OF_A_RUN, SETTINGS, check_of_a_run, check_replaceable
from pipeline.setup.resumption import (
    IDENTIFIED,
    Settings,
    changed_keys,
    check_changes,
    check_left_out,
    check_same_inputs,
    decides,
    hashes_of_inputs,
    same_files,
    typed_or_not,
)
from pipeline.setup.run_folder import (
    BEGUN_WITH,
    CONTENTS,
    IDENTITY,
    INPUTS_HELD,
    PROCESSORS,
    SETTLED,
    RunFolder,
)
from pipeline.setup.run_identity import identity_of
from pipeline.setup.settings import settings_asked_for
from pipeline.setup.settled import BY_INPUTS
from pipeline.tools.atomic import NoRoom, clear_unfinished, directory, writable
from pipeline.tools.kept import Kept
from pipeline.tools.threads import instruction_set


def is_finished(config: RunConfig) -> bool:
    """Whether a run that goes on has nothing left to do, so that its report is that of the run before."""
    goes_on = config.output.resume and not config.output.restart_training
    return goes_on and RunFolder(root=config.folder).is_finished()


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
        if folder.holds_work():
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
        inputs: what each of `pipeline.setup.resumption.INPUTS` holds.
        settled: the settings that these settle (see `pipeline.setup.settled`).

    Raises:
        UserError: they are others, or the folder cannot be written.
    """
    now = settings_asked_for(config, settled)
    restart, lines, before = config.output.restart_training, list[str](), dict[str, str]()
    processors = [instruction_set()]
    if config.output.resume:
        kept, record = folder.kept()
        now, processors = _with_threads_of(kept, now), [*record.get(PROCESSORS, [])]
        if not folder.is_trained() and processors[-1:] != [instruction_set()]:
            processors.append(instruction_set())
        finished = folder.finished(restart_training=restart)
        changed = changed_keys(kept, now)
        check_same_inputs(record.get(INPUTS_HELD, {}), inputs, changed, now.typed, finished)
        check_changes(kept, now, finished)
        parts = folder.identity().parts
        before = {part.name: parts[part.name] for part in finished}
    contents = hashes_of_inputs(now.typed)
    circumstances = {**_versions(), "processor": instruction_set()}
    identity = identity_of(now, inputs, contents.values(), circumstances, kept=before)
    recorded = {
        BEGUN_WITH: _versions(),
        INPUTS_HELD: dict(inputs),
        CONTENTS: contents,
        IDENTITY: identity.to_json(),
        SETTLED: now.settled,
        PROCESSORS: processors,
    }
    if restart:
        # Before the settings are those of a training that has not begun.
        lines += filter(None, [folder.drop_training()])
    if config.output.resume:
        Kept(folder.settings).save_json({**now.typed, **recorded})
        return tuple(lines)
    check_replaceable(folder.root)  # as it is now, after all that was read
    with directory(folder.state, overwrite=True) as state:
        Kept(state / SETTINGS).save_json({**now.typed, **recorded})
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


@contextlib.contextmanager
def told_to_resume(folder: RunFolder, *, overwrite: bool) -> Iterator[None]:
    """Say in the line of a full disk or memory how to go on, where something is kept that would be lost otherwise."""
    try:
        yield
    except NoRoom as error:
        if not folder.holds_work() or folder.is_finished():
            raise
        instead = " in place of --overwrite" if overwrite else ""
        raise UserError(
            f"cannot write {error.path}: {error.reason}: make room there, then go on from what is finished with"
            f" --resume{instead}"
        ) from error
    except UserError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        kept = f"; then add --resume{' in place of --overwrite' if overwrite else ''}: what is finished is kept"
        raise UserError(out_of_memory_line(error) + (kept if folder.holds_work() else "")) from error


def _versions() -> dict[str, str]:
    """What a resumed run must share with its beginning, to end with the bytes of one that was not interrupted."""
    installed = versions()
    return {name: installed[name] for name in ("faqd", "torch")}


def _check_resumable(folder: RunFolder, config: RunConfig) -> None:
    if not folder.settings.is_file():
        raise UserError(f"--resume: {folder.root} holds no run to go on with; leave --resume out to start one")
    (before, record), now = folder.kept(), settings_asked_for(config)
    begun, restart = record.get(BEGUN_WITH, {}), config.output.restart_training
    finished = folder.finished(restart_training=restart)
    changed = changed_keys(before, now)
    if not folder.is_finished() or restart:
        changed = [key for key in changed if key not in BY_INPUTS and any(decides(key, part.name) for part in finished)]
    check_left_out(before, now, settings_asked_for(RunConfig()).typed, changed)
    if folder.is_finished() and not restart:
        changed = [
            key
            for key in changed_keys(before, now)
            if key not in IDENTIFIED
            or not same_files(before.typed.get(key), now.typed.get(key), record.get(CONTENTS, {}))
        ]
        if changed:
            key = changed[0]
            other = "make another beside it with --output"
            if key in flags.flags(ValidationConfig) or key in flags.flags(EngineConfig):
                other = f"score it otherwise with faqd validate {folder.bundle}"
            elif not any(decides(key, name) for name in ("float student", "calibration")) and decides(key, "training"):
                other = "train it otherwise with --restart-training, which keeps the calibration"
            was, is_now = typed_or_not(before.typed.get(key)), typed_or_not(now.typed.get(key))
            raise UserError(
                f"--resume: --{key} was {was} and is {is_now} now, and the run in {folder.root} is finished: {other},"
                " or start anew with --overwrite"
            )
        _check_contents(folder, record.get(CONTENTS, {}))
        return
    check_changes(before, now, finished, later=BY_INPUTS)
    if begun != (running := _versions()):
        first, second = (" and ".join(f"{name} {its}" for name, its in used.items()) for used in (begun, running))
        raise UserError(
            f"--resume: the run in {folder.root} was begun with {first or 'an older faqd'}, this is {second}, which may"
            " end it with other weights: go on with those versions, or start anew with --overwrite"
        )


def _check_contents(folder: RunFolder, contents: Mapping[str, str]) -> None:
    """Raise UserError where a file that a finished run was made from holds something else now; one may be gone."""
    for path, held in contents.items():
        if path_identity(Path(path)) not in (None, held):
            raise UserError(
                f"--resume: {path} holds something else than when the run in {folder.root} was made from it, which is"
                " finished: start anew with --overwrite, or make another run beside it with --output"
            )
