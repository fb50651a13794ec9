"""What a run keeps is read by that run alone, and damage is one line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from calibration.errors import UserError
from pipeline.tools.kept import Kept


@dataclass(frozen=True, kw_only=True)
class Said:
    step: int = 0


def test_tensors_and_their_record_come_back(tmp_path: Path) -> None:
    place = Kept(tmp_path / "state" / "a.safetensors", "one")
    shared = torch.arange(4.0)
    place.save({"a": shared, "b": shared, "c": torch.ones(2, 3).T}, Said(step=1))
    tensors, record = place.load(Said)
    assert record == place.record(Said) == Said(step=1)
    assert tensors["a"].equal(shared) and tensors["b"].equal(shared) and tensors["c"].equal(torch.ones(3, 2))
    place.remove()
    assert not place.exists()


@pytest.mark.parametrize("form", ["tensors", "JSON"])
def test_another_run_reads_nothing_of_it(form: str, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    for writer in (None, "one"):
        if form == "JSON":
            Kept(path, writer).save_json({"step": 1})
            assert Kept(path, writer).load_tree() == {"step": 1}
            assert Kept(path, writer).load_json(Said) == Said(step=1)
        else:
            Kept(path, writer).save({"a": torch.ones(1)}, {})
            assert Kept(path).load(Said)[1] == Kept(path, writer).record(Said) == Said()
        with pytest.raises(UserError, match=f"{path} is of another run than the settings beside it"):
            Kept(path, "other").load_json(Said) if form == "JSON" else Kept(path, "other").load(Said)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_damage_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(content)
    for read in (Kept(tmp_path / "kept").load_json, Kept(tmp_path / "kept").load):
        with pytest.raises(UserError, match=r"kept (is damaged|cannot be read).*: start anew with --overwrite"):
            read(Said)


def test_another_record_is_one_line_that_names_the_field(tmp_path: Path) -> None:
    place, module = Kept(tmp_path / "kept"), torch.nn.Linear(2, 2)
    place.save_json({"step": "x"})
    with pytest.raises(UserError, match=r"kept: step is 'x': must be a whole number: start anew"):
        place.load_json(Said)
    place.save({"weight": torch.ones(3)}, {"stop": 1})
    with pytest.raises(UserError, match=r"kept: holds the unknown key 'stop', did you mean step\?"):
        place.load(Said)
    with pytest.raises(UserError, match="kept holds the weights of another network"):
        place.give_weights(module, {"weight": torch.ones(3)})


def test_no_byte_of_a_weight_is_another_unseen(tmp_path: Path) -> None:
    place = Kept(tmp_path / "kept")
    place.save({"a": torch.arange(64.0), "b": torch.ones(2, dtype=torch.bfloat16)}, Said())
    content = place.path.read_bytes()
    for index in (*range(8, 40), len(content) - 300, len(content) - 5, len(content) - 1):
        place.path.write_bytes(content[:index] + bytes([content[index] ^ 1]) + content[index + 1 :])
        with pytest.raises(UserError, match="kept"):
            place.load(Said)
