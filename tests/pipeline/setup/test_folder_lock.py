"""One run at a time in a folder, and what becomes of the lock when its owner is killed."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from calibration.errors import UserError
from pipeline.setup.folder_lock import LOCK, locked
from tests.command_line import command

# Holds the folder, and forks a child that outlives it as a process that decodes images may.
_OWNER = """
import os, sys, time
from pathlib import Path
from pipeline.setup.folder_lock import locked
with locked(Path(sys.argv[1]), print):
    if not os.fork():
        print(os.getpid(), flush=True)  # said by the child, whose copy of the lock is closed by then
    time.sleep(60)
"""


def test_the_second_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with locked(tmp_path, print):
        with pytest.raises(UserError) as refused, locked(tmp_path, print):
            pytest.fail("two hold one folder")
        who = rf"process {os.getpid()} on {re.escape(platform.node())} since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
        assert re.search(rf"{re.escape(str(tmp_path))} is in use by another run, {who}: wait", str(refused.value))
    with locked(tmp_path, print):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_lock_dies_with_its_owner_whose_children_live_on(tmp_path: Path, repository: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(repository)}
    line = [sys.executable, "-c", _OWNER, str(tmp_path)]
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        try:
            with pytest.raises(UserError, match=f"process {owner.pid} on"), locked(tmp_path, print):
                pass
            owner.send_signal(signal.SIGKILL)
            owner.wait(10)
            os.kill(child, 0)
            with locked(tmp_path, print):
                assert (tmp_path / LOCK).is_file()
        finally:
            os.kill(child, signal.SIGKILL)


def test_an_owner_that_ends_between_opening_and_locking_leaves_no_lock_without_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = fcntl.flock
    removed: list[bool] = []

    def first_removed(descriptor: int, how: int) -> None:
        if not removed:
            (tmp_path / LOCK).unlink()
            removed.append(True)
        really(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", first_removed)
    with locked(tmp_path, print), pytest.raises(UserError, match="in use"), locked(tmp_path, print):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(descriptor: int, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuses)
    said: list[str] = []
    with locked(tmp_path / "a", said.append):
        pass
    assert said == [
        f"the file system of {tmp_path / 'a'} has no locks: start no second run there before this one has ended"
    ]


def test_folders_made_for_nothing_go_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "a" / "b", print):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b", print):
        (tmp_path / "a" / "kept").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]


def test_an_unreadable_owner_is_no_crash(tmp_path: Path) -> None:
    with locked(tmp_path, print):
        (tmp_path / LOCK).write_text("no json")
        with pytest.raises(UserError, match="which has just begun"), locked(tmp_path, print):
            pass


def test_a_link_that_leads_nowhere_is_said(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "absent")
    for place in (tmp_path / "link", tmp_path / "link" / "run"):
        line = f"{tmp_path}/link is a link that leads nowhere: choose another place with --output"
        with pytest.raises(UserError, match=line), locked(place, print):
            pass


@pytest.mark.parametrize(("name", "reason"), [("a" * 300, "File name too long"), ("loop/run", "leads nowhere")])
def test_names_that_cannot_be_used_are_one_line(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    done = command("run", "--quiet", "--output", str(tmp_path / name))
    assert reason in done.refusal and len(done.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]
