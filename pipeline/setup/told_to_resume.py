"""What ends a run though nothing is wrong with it: the line says how to go on from what is finished."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from calibration.errors import UserError, is_out_of_memory, out_of_memory_line
from pipeline.setup.left_in_folder import holds_its_bundle, holds_work
from pipeline.setup.run_folder import RunFolder
from pipeline.tools.atomic import NoRoom


@contextlib.contextmanager
def told_to_resume(folder: RunFolder, *, overwrite: bool) -> Iterator[None]:
    """Say in the line of a full disk or memory how to go on, where something is kept that would be lost otherwise."""
    try:
        yield
    except Exception as error:
        lines = _lines(error, "--resume in place of --overwrite" if overwrite else "--resume")
        if lines is None:
            raise
        goes_on = holds_work(folder) and not holds_its_bundle(folder)
        raise UserError(lines[goes_on]) from error


def _lines(error: Exception, resume: str) -> tuple[str, str] | None:
    """What lacked, alone and with how to go on; None for any other ending, which is told as it is."""
    if isinstance(error, NoRoom):
        room = f"cannot write {error.path}: {error.reason}: make room there"
        return str(error), f"{room}, then go on from what is finished with {resume}"
    if isinstance(error, UserError) or not is_out_of_memory(error):
        return None
    memory = out_of_memory_line(error)
    return memory, f"{memory}; then add {resume}: what is finished is kept"
