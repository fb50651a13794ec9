"""Checkpoints: what is read, what is refused, and that nothing in a file runs."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from calibration.errors import UserError
from pipeline.networks.checkpoints.files import read_checkpoint
from pipeline.networks.weights import classes_in, fit_state, load_weights


def _network() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 10))
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, generator=generator)
    return network


def _state() -> dict[str, Tensor]:
    return dict(_network().state_dict())


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by the names that they have in it."""
    checkpoint = read_checkpoint(path)
    own = {key: torch.empty(checkpoint._shape(key)) for key in checkpoint.contents.tensors}
    return checkpoint.fitted_to(own)[0]


def _message(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_state(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.PTH", "w.bin", "w.th", "w.ckpt"])
def test_every_kind_of_file_gives_the_tensors(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".safetensors"):
        save_file(_state(), path)
    else:
        torch.save(_state(), path)
    loaded = load_state(path)
    assert set(loaded) == set(_state())
    assert all(torch.equal(loaded[key], tensor) for key, tensor in _state().items())


@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("legacy", [False, True])
def test_containers_and_prefixes_are_taken_off(tmp_path: Path, wrap: Any, prefix: str, legacy: bool) -> None:
    path = tmp_path / "w.pt"
    state = {prefix + key: nn.Parameter(t) if t.is_floating_point() else t for key, t in _state().items()}
    torch.save(wrap(state), path, _use_new_zipfile_serialization=not legacy)
    network = _network()
    nn.init.zeros_(network.get_parameter("3.weight"))
    notes = load_weights(path, network, "w.pt")
    assert all(torch.equal(network.state_dict()[key], tensor) for key, tensor in _state().items())
    taken_off = prefix.replace("_orig_mod.", "")
    assert notes == ((f"w.pt: the prefix {taken_off} of its names is taken off",) if taken_off else ())


def test_a_network_with_a_part_called_model_is_not_unwrapped(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"model.weight": torch.ones(2), "model": torch.zeros(1)}, path)
    assert set(load_state(path)) == {"model.weight", "model"}


class _Code:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for number, contents in enumerate((_Code(trace), {"state_dict": {"a": _Code(trace)} | _state()})):
        path = tmp_path / f"{number}.pt"
        for zipped in (True, False):
            torch.save(contents, path, _use_new_zipfile_serialization=zipped)
            assert "asks to run code (posix.mkdir); none was run" in _message(path)
        path.write_bytes(pickle.dumps(contents, protocol=2))
        assert "save model.state_dict() with torch.save" in _message(path)
        path.write_bytes(pickle.dumps(contents, protocol=5))
        assert "save model.state_dict() with torch.save" in _message(path)
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_program_is_refused_with_the_fix(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "w.pt")
    assert "TorchScript" in _message(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_truncated_and_damaged_files_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".pt"):
        torch.save(_state(), path)
    else:
        save_file(_state(), path)
    whole = path.read_bytes()
    for length in (0, 1, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "damaged" in _message(path)
    # Long enough that its directory is sought in the middle of numbers.
    torch.save({"weight": torch.zeros(30_000)}, tmp_path / "long.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "long.pt").read_bytes()[:20_000])
    assert "damaged" in _message(tmp_path / "cut.pt")
    path.write_bytes(b"not a checkpoint at all, but a text of some length" * 10)
    assert "damaged" in _message(path)
    # Whatever a byte in the directory of the file becomes, it is a message or a state, never a traceback.
    for position in range(0, 400, 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            load_state(path)
        except UserError:
            continue


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_diverged_weights_are_refused(tmp_path: Path, number: float, dtype: torch.dtype) -> None:
    state = _state()
    state["0.weight"] = state["0.weight"].to(dtype)
    state["0.weight"][0, 0, 0, 0] = number
    save_file(state, tmp_path / "w.safetensors")
    assert "NaN or infinity in 1 tensors (0.weight)" in _message(tmp_path / "w.safetensors")


def test_masks_of_minus_infinity_are_no_divergence(tmp_path: Path) -> None:
    save_file({"mask": torch.full((2,), -torch.inf)}, tmp_path / "w.safetensors")
    assert set(load_state(tmp_path / "w.safetensors")) == {"mask"}


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([1, 2], "hold a list, not a state dict"),
        (torch.ones(3), "hold a Tensor, not a state dict"),
        ({}, "hold no tensors"),
        ({"state_dict": {}}, "hold no tensors"),
        ({"epoch": 1, "optimizer": {"state": {0: torch.ones(2)}}}, "hold no tensors"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, contents: Any, message: str) -> None:
    torch.save(contents, tmp_path / "w.pt")
    assert message in _message(tmp_path / "w.pt")


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    assert "no such file" in _message(tmp_path / "absent.pt")
    (tmp_path / "folder.pt").mkdir()
    assert "are a folder, not a file" in _message(tmp_path / "folder.pt")
    (tmp_path / "folder.pt" / "best.pth").write_bytes(b"")
    assert "name a file in it: best.pth" in _message(tmp_path / "folder.pt")


def _misfit(state: dict[str, Tensor]) -> str:
    network = _network()
    with pytest.raises(UserError) as caught:
        fit_state(network, state, "w.pt for cifar:x")
    assert all(torch.equal(tensor, _state()[key]) for key, tensor in network.state_dict().items())
    return str(caught.value)


def test_misfits_are_counted_and_three_are_named() -> None:
    state = {key.replace("3.", "head."): tensor * 2 for key, tensor in _state().items()}
    assert "2 keys missing (3.weight, 3.bias), 2 keys unexpected (head.weight, head.bias)" in _misfit(state)
    state = {f"backbone.{key}": tensor for key, tensor in _state().items()}
    assert "8 keys missing (0.weight, 0.bias, 1.weight and 5 more)" in _misfit(state)
    state = _state() | {"3.weight": torch.ones(7, 4)}
    assert "1 of another shape (3.weight: [7, 4] in the file, [10, 4] in the network)" in _misfit(state)
    state = _state() | {"3.weight": torch.ones(10, 4, dtype=torch.int8)}
    assert "1 not of floating point (3.weight: torch.int8)" in _misfit(state)


def test_batch_counters_may_be_absent_or_too_many_and_halves_are_converted() -> None:
    state = {key: tensor.half() for key, tensor in _state().items() if "num_batches" not in key}
    network = _network()
    fit_state(network, state | {"9.num_batches_tracked": torch.tensor(5)}, "w.pt")
    assert network.get_parameter("3.weight").dtype == torch.float32
    assert torch.equal(network.get_parameter("3.weight"), _state()["3.weight"].half().float())


def test_the_number_of_classes_is_seen_in_the_checkpoint() -> None:
    other = {"3.weight": torch.ones(7, 4), "3.bias": torch.ones(7)}
    assert classes_in(_state() | other, _network()) == 7
    assert classes_in(_state(), _network()) is None
    assert classes_in(_state() | other | {"0.bias": torch.ones(5)}, _network()) is None
    assert classes_in(_state() | {"3.weight": torch.ones(10, 5)}, _network()) is None
