"""What a run keeps is read by that run alone, and damage is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from calibration.errors import UserError
from pipeline.tools.kept import Kept


def test_tensors_and_their_record_come_back(tmp_path: Path) -> None:
    place = Kept(tmp_path / "state" / "a.safetensors", "one")
    shared = torch.arange(4.0)
    place.save({"a": shared, "b": shared, "c": torch.ones(2, 3).T}, {"step": 1})
    tensors, record = place.load()
    assert record == place.record() == {"step": 1}
    assert tensors["a"].equal(shared) and tensors["b"].equal(shared) and tensors["c"].equal(torch.ones(3, 2))
    place.remove()
    assert not place.exists()


@pytest.mark.parametrize("form", ["tensors", "JSON"])
def test_another_run_reads_nothing_of_it(form: str, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    for writer in (None, "one"):
        if form == "JSON":
            Kept(path, writer).save_json({"a": 1})
            assert Kept(path).load_json() == Kept(path, writer).load_json() == {"a": 1}
        else:
            Kept(path, writer).save({"a": torch.ones(1)}, {})
            assert Kept(path).load()[1] == Kept(path, writer).record() == {}
        with pytest.raises(UserError, match=f"{path} is of another run than the settings beside it"):
            Kept(path, "other").load_json() if form == "JSON" else Kept(path, "other").load()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_damage_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(content)
    for read in (Kept(tmp_path / "kept").load_json, Kept(tmp_path / "kept").load):
        with pytest.raises(UserError, match=r"kept is damaged \(.*\): start anew with --overwrite"):
            read()
