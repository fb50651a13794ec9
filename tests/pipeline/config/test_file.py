"""Files of settings: what is in them is read as typed, and what cannot be is one line that says how to write it."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.errors import UserError
from pipeline.cli import app
from pipeline.config import RunConfig
from pipeline.config.file import LARGEST_FILE, read_toml, to_toml
from tests.command_line import command


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            b"[run]\nbits = 4\n",
            "[run] is a table: all keys stand on one level, without tables: write bits = 4 without [run]",
        ),
        (
            b"[quantisation.grids]\nrange = 'mse'\n",
            '[quantisation] is a table: all keys stand on one level, without tables: write range = "mse"',
        ),
        (b"run.bits = 4\n", "[run] is a table"),
        (b"[[run]]\nx = 1\n", "[run] is a table: all keys stand on one level, without tables: write bits = 4"),
        (b"bits = {a = 1}\n", "bits is a table: write bits = VALUE"),
        (b"batch_size = 4\n", "unknown key 'batch_size', did you mean batch-size?"),
        (b"Batch-Size = 4\n", "unknown key 'Batch-Size', did you mean batch-size?"),
        (b'"--bits" = 4\n', "unknown key '--bits', did you mean bits?"),
        (b"bitz = 4\n", "unknown key 'bitz', did you mean bits?"),
        (b"no-resume = true\n", "unknown key 'no-resume': write resume = false"),
        (b'recipe = "sp"\n', "recipe belongs on the command line: --recipe"),
        (b"zzz = 1\n", "unknown key 'zzz'; the keys are the flags of"),
        (b"steps = 10.5\n", "steps is 10.5: must be a whole number, or nothing"),
        (b"seed = true\n", "seed is true: must be a whole number"),
        (b"seed = 2020-01-01\n", 'seed is "2020-01-01": must be a whole number'),
        (b"resume = 1\n", "resume is 1: must be true or false"),
        (b"data = 5\n", "data is 5: must be text"),
        (b'data = ["images:a", "images:b"]\n', 'data is ["images:a", "images:b"]: must be text'),
        (b"max-drop = nan\n", "max-drop is NaN: must be a number"),
        (b'mean = [0.5, "x", 0.1]\n', 'mean is [0.5, "x", 0.1]: must be a list, each of them a number, or nothing'),
        (b"mean = [[0.5]]\n", "mean is [[0.5]]: must be a list"),
        (b"bits = [4]\n", "bits is [4]: must be 8, 4, 3, 2 or 1"),
        (b"bits = 4\nbits = 8\n", "is not TOML: Cannot overwrite a value (at line 2"),
        (b"seed = " + b"9" * 5000, "is not TOML: Exceeds the limit"),
        (b"mean = " + b"[" * 5000 + b"]" * 5000, "is nested too deeply"),
        ("bits = 4\n".encode("utf-16"), "is no UTF-8 text (byte 0): save it as UTF-8"),
        ('output = "größe"\n'.encode("latin-1"), "is no UTF-8 text (byte 12)"),
        (b"#" * (LARGEST_FILE + 1), f"has more than {LARGEST_FILE} bytes"),
    ],
)
def test_what_is_wrong_is_one_line(content: bytes, line: str, tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(content)
    with pytest.raises(UserError) as refused:
        read_toml(file)
    assert str(refused.value).startswith(f"--config {file}")
    assert line in str(refused.value)


def test_a_file_larger_than_settings_is_read_no_further(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    with file.open("wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(UserError, match="has more than 1048576 bytes"):
        read_toml(file)


@pytest.mark.parametrize(
    ("content", "settings"),
    [
        (b"\xef\xbb\xbfbits = 4\n", {"bits": 4}),
        (b'bits = "4"\nresume = true\n', {"bits": 4, "resume": True}),
        (b"mean = 0.5\nstd = [1]\n", {"mean": [0.5], "std": [1.0]}),
        (b'taps = "a,b"\nteacher = "python:a:b"\n', {"taps": ["a", "b"], "teacher": ["python:a:b"]}),
        (b'temperature = "linear:4:1"\nclass-weight = 1\n', {"temperature": "linear:4:1", "class-weight": 1.0}),
        (b'backend = "tensorrt"\nbatches = [1, 1, 8]\n', {"backend": "tensorrt", "batches": [1, 1, 8]}),
        (b'output = "-x"\n', {"output": "-x"}),
        (b"", {}),
    ],
)
def test_what_is_right_is_read_as_typed(content: bytes, settings: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(content)
    _, bound, _ = app.parse_args(["run", "--config", str(file)], exit_on_error=False, print_error=False)
    read, default = bound.arguments.get("config", RunConfig()).to_json(), RunConfig().to_json()
    assert {key: value for key, value in read.items() if value != default[key]} == settings


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(to_toml(RunConfig()), encoding="utf-8")
    assert RunConfig.from_json(read_toml(file)) == RunConfig()


def test_a_character_that_no_name_can_hold_is_said(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('output = "a\\u0000b"\n')
    refusal = command("run", "--quiet", "--config", str(tmp_path / "settings.toml")).refusal
    assert "--output a␀b: holds a character NUL, which no name can hold" in refusal
