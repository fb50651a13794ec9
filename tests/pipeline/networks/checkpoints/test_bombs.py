"""Archives that unpack to what no memory holds are refused by their directory, before anything is unpacked."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from calibration.errors import UserError
from pipeline.networks.checkpoints.files import read_checkpoint


@pytest.mark.parametrize("name", ["archive/data.pkl", "archive/data/0"])
def test_a_bomb_is_not_unpacked(name: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with (
        zipfile.ZipFile(path, "w", compression=zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(name, "w") as part,
    ):
        for _ in range(300):
            part.write(bytes(1 << 20))
    with pytest.raises(UserError, match=r"are a zip archive of \d+ bytes that unpacks to 314572800"):
        read_checkpoint(path)


def test_weights_that_were_packed_again_are_read(tmp_path: Path) -> None:
    stored, packed = tmp_path / "stored.pth", tmp_path / "packed.pth"
    torch.save({"weight": torch.zeros(1 << 20)}, stored)
    with (
        zipfile.ZipFile(stored) as before,
        zipfile.ZipFile(packed, "w", compression=zipfile.ZIP_DEFLATED, compresslevel=1) as after,
    ):
        for name in before.namelist():
            after.writestr(name, before.read(name))
    assert packed.stat().st_size < stored.stat().st_size // 50
    assert set(read_checkpoint(packed).contents.tensors) == {"weight"}
