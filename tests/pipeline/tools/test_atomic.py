"""Files and folders appear complete or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from calibration.errors import UserError
from pipeline.tools.atomic import check_place, directory, writable, write_bytes, write_text

FULL_DEVICE = Path("/dev/full")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_written_with_its_folders_and_usual_permissions(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b.json"
    write_text(file, "é")
    write_text(file, "ü")
    assert file.read_text(encoding="utf-8") == "ü"
    assert names(file.parent) == ["b.json"]
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_what_appears_is_on_the_disk_first_and_its_name_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[tuple[bool, list[str]]]()

    def heard(descriptor: int) -> None:
        asked.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), names(tmp_path)))

    monkeypatch.setattr(os, "fsync", heard)
    write_text(tmp_path / "report.json", "{}")
    (content, (temporary,)), (folder, after) = asked
    assert not content and temporary != "report.json"
    assert folder and after == ["report.json"]
    asked.clear()
    with directory(tmp_path / "bundle") as building:
        (building / "model.onnx").write_bytes(b"model")
    assert [is_folder for is_folder, _ in asked] == [False, True, True]
    assert ["bundle" in there for _, there in asked] == [False, False, True]


def test_a_place_that_is_no_folder_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another place with --output"):
        write_bytes(tmp_path / "file" / "x", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_bytes(tmp_path / "folder", b"")
    assert names(tmp_path) == ["file", "folder"]


def test_a_folder_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "runs" / "bundle"
    with directory(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "model.onnx").write_bytes(b"model")
        assert not target.exists()
    assert (target / "inner" / "model.onnx").read_bytes() == b"model"
    assert names(target.parent) == ["bundle"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_folder_leaves_nothing(interruption: type[BaseException], tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with pytest.raises(interruption), directory(target) as folder:
        (folder / "half").touch()
        raise interruption
    assert names(tmp_path) == []


def test_an_existing_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    with pytest.raises(UserError, match="exists already: add --overwrite"), directory(target):
        pytest.fail("the block must not be entered")
    assert names(tmp_path) == ["bundle"]


def test_overwriting_replaces_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(ZeroDivisionError), directory(target, overwrite=True) as folder:
        (folder / "new").touch()
        raise ZeroDivisionError
    assert names(target) == ["old"]
    with directory(target, overwrite=True) as folder:
        (folder / "new").touch()
    assert names(target) == ["new"]
    assert names(tmp_path) == ["bundle"]


@pytest.mark.skipif(not FULL_DEVICE.exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No space left on device: make room there"), writable(tmp_path):
        FULL_DEVICE.write_text("x", encoding="utf-8")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_disk_is_the_users_mistake(code: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{os.strerror(code)}: choose another place"), writable(tmp_path):
        raise OSError(code, os.strerror(code))


def test_a_file_that_may_not_be_read_is_not_called_unwritable(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), writable(tmp_path / "out" / "bundle"):
        raise PermissionError(errno.EACCES, "refused", str(tmp_path / "in" / "photo.jpg"))


def test_other_refusals_of_the_system_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writable(tmp_path):
        (tmp_path / "absent").read_bytes()


def test_a_place_for_a_file_is_tried_without_making_it(tmp_path: Path) -> None:
    check_place(tmp_path / "a" / "b" / "cache", flag="--timing-cache")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"--report .* is a folder: name a file"):
        check_place(tmp_path, flag="--report")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file is no folder"):
        check_place(tmp_path / "file" / "cache", flag="--timing-cache")
    # A place that root may write and the file system does not let it.
    for place in (Path("/proc/x/r.json"), Path("/proc/r.json")):
        with pytest.raises(UserError, match=f"cannot write {place}: .*: choose another place with --report"):
            check_place(place, flag="--report")
        with pytest.raises(UserError, match=f"cannot write {place}: .*: choose another place with --report"):
            write_text(place, "x", flag="--report")
    with pytest.raises(UserError, match="cannot write /proc/x/bundle: "), directory(Path("/proc/x/bundle")):
        pass
    with pytest.raises(UserError, match="--report /dev/null is no regular file"):
        check_place(Path("/dev/null"), flag="--report")
