"""Settings out of a pipe, as `--config <(command)` gives them: read to their end, within a size and a time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from calibration.errors import UserError
from pipeline.config.file import LARGEST_FILE, read_toml
from pipeline.tools.regular_file import PATIENCE, is_pipe, read_pipe

SETTINGS = b"bits = 4\nsteps = 7\n"


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def written(pipe: Path, write: Callable[[int], object]) -> threading.Thread:
    """A thread that opens a pipe, which waits for who reads it, writes and closes it."""

    def work() -> None:
        descriptor = os.open(pipe, os.O_WRONLY)
        try:
            write(descriptor)
        except BrokenPipeError:
            pass
        finally:
            os.close(descriptor)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def slowly(descriptor: int) -> None:
    for byte in SETTINGS:
        os.write(descriptor, bytes([byte]))
        time.sleep(0.005)


@pytest.mark.parametrize("write", [lambda into: os.write(into, SETTINGS), slowly])
def test_settings_are_read_to_their_end(write: Callable[[int], object], pipe: Path) -> None:
    assert is_pipe(pipe)
    thread = written(pipe, write)
    assert read_toml(pipe) == {"bits": 4, "steps": 7}
    thread.join()


def test_a_writer_that_has_written_nothing_is_an_empty_file(pipe: Path) -> None:
    thread = written(pipe, lambda into: None)
    assert read_toml(pipe) == {}
    thread.join()


def test_more_than_settings_have_is_not_read_on(pipe: Path) -> None:
    def endless(into: int) -> None:
        while True:
            os.write(into, bytes(1 << 16))

    thread = written(pipe, endless)
    with pytest.raises(UserError, match=f"has more than {LARGEST_FILE} bytes"):
        read_toml(pipe)
    thread.join()


def test_a_pipe_that_nobody_writes_to_and_one_that_does_not_end_are_waited_for_no_longer(
    pipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "is a pipe that has not come to its end within 0.1 s: save what it holds as a file"
    with pytest.raises(UserError, match=f"--config x {line}"):
        read_pipe(pipe, most=9, where="--config x", seconds=0.1)
    done = threading.Event()
    thread = written(pipe, lambda into: (os.write(into, b"bits"), done.wait(60)))
    with pytest.raises(UserError, match=line):
        read_pipe(pipe, most=9, where="--config x", seconds=0.1)
    done.set()
    thread.join()
    assert PATIENCE == 10


def test_a_shell_s_substitution_is_a_file_of_settings(repository: Path, tmp_path: Path) -> None:
    # Unknown keys are the quickest proof of reading: the line names them without torch.
    line = f"{sys.executable} -m pipeline run --config <(echo 'bitz = 4'; sleep 0.2; echo 'steps = 1')"
    done = subprocess.run(
        ["bash", "-c", line],
        env=os.environ | {"PYTHONPATH": str(repository)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2 and ": unknown key 'bitz'" in done.stderr
    assert "did you mean bits?" in done.stderr or "bits" in done.stderr


def test_files_and_nothing_are_no_pipes(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not any(map(is_pipe, (tmp_path, tmp_path / "file", tmp_path / "absent", Path("a\0b"), Path("/dev/null"))))
