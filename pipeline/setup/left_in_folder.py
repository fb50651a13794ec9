"""What an earlier run has left in a folder, judged by its files: what is finished, what is begun, what is lacking."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from backends.device.bundle_check.stored import DamagedError, digest_of_file, read_whole
from backends.onnx_file.serialised import DATA_SUFFIX
from pipeline.artifacts import FLOAT_MODEL
from pipeline.bundle.bundle import REPORT, float_digest, run_of
from pipeline.distillation.training.learner import Place
from pipeline.setup.folder_lock import LOCK
from pipeline.setup.own_files import OF_A_RUN, PAGE
from pipeline.setup.resumption import Finished
from pipeline.setup.run_folder import RunFolder
from pipeline.tools.atomic import remove, unfinished, writable, write_bytes
from pipeline.tools.kept import Kept
from pipeline.tools.source_text import counted

_MOST_REPORT: Final = 1 << 28


def beginning(folder: RunFolder) -> tuple[int, int] | None:
    """Which run a folder belongs to, a mark that changes where one begins or goes on; None where none has."""
    try:
        status = folder.settings.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def holds_work(folder: RunFolder) -> bool:
    """Whether an earlier run has left more than its settings and its times."""
    others = (folder.settings, folder.seconds)
    return folder.settings.exists() and any(kept not in others for kept in folder.state.iterdir())


def holds_its_bundle(folder: RunFolder) -> bool:
    """Whether the bundle that is there is of the run that the settings are of, which is finished then."""
    if not folder.settings.is_file() or not folder.bundle.exists():
        return False
    return folder.recorded().run == run_of(folder.bundle) is not None


def finished_parts(folder: RunFolder, *, restart_training: bool = False) -> tuple[Finished, ...]:
    """What is kept of an earlier run; begun training is part of it, unless that is to begin anew."""
    parts, root = list[Finished](), folder.root
    if folder.generated.exists():
        parts.append(Finished(name="generated images", what=f"the generated images in {root}", several=True))
    if folder.float_student.exists():
        parts.append(Finished(name="float student", what=f"the float student in {root}"))
    elif folder.float_checkpoint.exists() and not restart_training:
        steps = f"{_steps_in(folder.float_checkpoint)} of the float student's training in {root}"
        parts.append(Finished(name="float student", what=steps, several=True, trained=True))
    if folder.prepared.exists():
        parts.append(Finished(name="calibration", what=f"the calibration in {root}"))
    if folder.reconstructed.exists():
        parts.append(Finished(name="reconstruction", what=f"the reconstruction in {root}"))
    files = folder.trainings()
    if files == (folder.checkpoint,) and not restart_training:
        steps = f"{_steps_in(folder.checkpoint)} of training in {root}"
        parts.append(Finished(name="training", what=steps, several=True, trained=True))
    elif files and not restart_training:
        parts.append(Finished(name="training", what=f"the training in {root}", trained=True))
    return tuple(parts)


def drop_training(folder: RunFolder) -> str | None:
    """Remove what training has left, of the float student too where it is not finished; a line of what that was.

    Raises UserError where the folder cannot be written.
    """
    dropped = [part for part in finished_parts(folder) if part.trained]
    # With what was measured, as by the clock another training may have other steps.
    for file in (folder.measured, *folder.trainings()):
        remove(file)
    if not folder.float_student.exists():
        remove(folder.float_checkpoint)
    if not dropped:
        return None
    several = len(dropped) > 1 or dropped[0].several
    return f"{' and '.join(part.what for part in dropped)} {'are' if several else 'is'} dropped"


def how_it_came_about(folder: RunFolder) -> tuple[str, ...]:
    """What there is to say of how a run came about, a line each."""
    processors = folder.recorded().processors
    if len(processors) < 2:
        return ()
    others = ", then ".join(processors[1:])
    return (
        f"WARNING: the run was begun on {processors[0]} and went on on {others}: weights may be others, in last"
        " bits, than those of a run on one processor",
    )


def is_whole(folder: RunFolder) -> bool:
    """Whether all that belongs beside a finished bundle is there, and nothing that a killed run left."""
    if folder.float_of_next_bundle.exists() or (folder.root / LOCK).exists():
        return False
    if unfinished(folder.root, OF_A_RUN) or unfinished(folder.state):
        return False
    return all(_content(folder.root / name) == _content(folder.bundle / name) for name in (REPORT, PAGE))


def make_whole(folder: RunFolder) -> None:
    """Lay beside a bundle what belongs there: the float model that waits for it, and its reports.

    A run does so when its bundle is there, and one that goes on where an earlier one was killed just then.
    Raises UserError when the folder cannot be written.
    """
    with writable(folder.root):
        waiting = folder.float_of_next_bundle
        if waiting.exists():
            data, place = (file.with_name(FLOAT_MODEL + DATA_SUFFIX) for file in (waiting, folder.float_model))
            if data.exists():
                data.replace(place)
            elif digest_of_file(waiting) == float_digest(folder.bundle):  # there is no second file
                place.unlink(missing_ok=True)
            waiting.replace(folder.float_model)
    for name in (REPORT, PAGE):
        if (content := _content(folder.bundle / name)) != _content(folder.root / name) and content is not None:
            write_bytes(folder.root / name, content)


def _content(file: Path) -> bytes | None:
    """What a report's file holds; None where there is none, or something else."""
    try:
        return read_whole(file, most=_MOST_REPORT)
    except DamagedError:
        return None


def _steps_in(checkpoint: Path) -> str:
    """How many steps of training a checkpoint is ahead, in words."""
    return counted(Kept(checkpoint).record(Place).step, "step")
