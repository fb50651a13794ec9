"""Two places change their contents in one step, or not at all."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.tools.atomic import directory
from pipeline.tools.exchange import exchanged


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="this system has no such call")
def test_folders_change_places_and_so_do_a_folder_and_a_link(tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert exchanged(tmp_path / "first", tmp_path / "second")
    assert (tmp_path / "first" / "second").exists() and (tmp_path / "second" / "first").exists()

    (tmp_path / "link").symlink_to(tmp_path / "third")
    assert exchanged(tmp_path / "first", tmp_path / "link")
    assert (tmp_path / "first").is_symlink() and (tmp_path / "link" / "second").exists()


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="this system has no such call")
def test_what_is_absent_cannot_be_exchanged(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    with pytest.raises(FileNotFoundError) as refused:
        exchanged(tmp_path / "here", tmp_path / "there")
    assert refused.value.errno == errno.ENOENT and (tmp_path / "here").exists()


@pytest.mark.parametrize("possible", [True, False])
def test_an_old_folder_goes_whole_whether_or_not_places_can_be_exchanged(
    possible: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not possible:
        monkeypatch.setattr("pipeline.tools.atomic.exchanged", lambda *_: False)
    target = tmp_path / "bundle"
    for content in ("old", "new"):
        with directory(target, overwrite=True) as folder:
            (folder / content).touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle", "new"]


def test_an_old_link_to_a_folder_goes_and_the_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    (tmp_path / "bundle").symlink_to(tmp_path / "elsewhere")
    with directory(tmp_path / "bundle", overwrite=True) as folder:
        (folder / "new").touch()
    assert (tmp_path / "elsewhere" / "kept").exists()
    assert [path.name for path in (tmp_path / "bundle").iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "elsewhere"]


def test_what_the_library_does_not_know_is_not_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def __getattr__(self, name: str) -> Any:
            raise AttributeError(name)

    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: Old())
    assert not exchanged(tmp_path / "a", tmp_path / "b")
