"""Which part of a checkpoint is a network's: containers, prefixes, copies, pickled objects, and why nothing fits."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from calibration.errors import UserError
from pipeline.networks.weights import load_weights


def network(classes: int = 10, width: int = 4, seed: int = 0) -> nn.Sequential:
    """A small network with a BatchNorm, of values that differ by the seed."""
    made = nn.Sequential(
        collections.OrderedDict(
            conv=nn.Conv2d(3, width, 3), norm=nn.BatchNorm2d(width), flat=nn.Flatten(), head=nn.Linear(width, classes)
        )
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        nn.init.normal_(parameter, generator=generator)
    return made


def state(seed: int = 0, prefix: str = "", **sizes: int) -> dict[str, Tensor]:
    """The network's tensors, all under one prefix."""
    return {prefix + key: tensor for key, tensor in network(seed=seed, **sizes).state_dict().items()}


def _loaded(contents: Any, path: Path, part: str = "", *, legacy: bool = False) -> tuple[str, ...]:
    """Save, load into another network, hold it against the network of seed 0; the notes."""
    torch.save(contents, path, _use_new_zipfile_serialization=not legacy)
    other = network(seed=9)
    notes = load_weights(Path(f"{path}{part}"), other, "w.pth for net")
    assert all(torch.equal(other.state_dict()[key], tensor) for key, tensor in state().items())
    return notes


def _refused(contents: Any, path: Path, into: nn.Module | None = None) -> str:
    torch.save(contents, path)
    with pytest.raises(UserError) as caught:
        load_weights(path, into or network(seed=9), "w.pth for net")
    return str(caught.value)


@pytest.mark.parametrize(
    "container",
    ["ema", "net", "network", "params", "params_ema", "state_dict_ema", "weights", "model_state", "nets.best"],
)
def test_weights_in_any_container_are_taken_and_named(tmp_path: Path, container: str) -> None:
    contents: Any = state()
    for word in reversed(container.split(".")):
        contents = {word: contents, "epoch": 3, "accuracy": torch.tensor(0.9), "args": {"lr": 0.1}}
    notes = _loaded(contents, tmp_path / "w.pth.tar")
    assert notes == (f"w.pth.tar: its weights {container} are taken",)


@pytest.mark.parametrize("prefix", ["model.", "net.", "backbone.", "student.", "module.model.", "a.b.c."])
def test_a_prefix_is_taken_off_and_said(tmp_path: Path, prefix: str) -> None:
    lightning: Any = {
        "epoch": 1,
        "state_dict": state(prefix=prefix),
        "optimizer_states": [{"state": {0: torch.ones(3)}}],
    }
    assert _loaded(lightning, tmp_path / "w.ckpt") == (f"w.ckpt: the prefix {prefix} of its names is taken off",)
    lightning["state_dict"] |= {"criterion.weight": torch.ones(10)}
    assert _loaded(lightning, tmp_path / "w.ckpt")[1] == (
        "w.ckpt: 1 tensors beside the network's are left out (state_dict.criterion)"
    )


def test_words_of_wrappers_are_taken_out_at_any_depth(tmp_path: Path) -> None:
    for words in ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"):
        wrapped = {key.replace("norm.", f"norm.{words}."): tensor for key, tensor in state().items()}
        assert _loaded(wrapped, tmp_path / "w.pth") == ()
    profiled = state() | {"total_ops": torch.zeros(1), "norm.total_params": torch.zeros(1)}
    assert _loaded(profiled, tmp_path / "w.pth") == ()


def test_an_averaged_model_is_its_module(tmp_path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(network())
    assert _loaded(averaged.state_dict(), tmp_path / "w.pth") == (
        "w.pth: the prefix module. of its names is taken off",
    )


def test_a_prefix_of_the_networks_own_names_may_be_absent(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "w.pth")
    holder = nn.Module()
    holder.add_module("net", network(seed=9))
    notes = load_weights(tmp_path / "w.pth", holder, "x")
    assert notes == ("w.pth: its names have no prefix net., which is put before them",)
    assert torch.equal(holder.state_dict()["net.head.bias"], state()["head.bias"])


@pytest.mark.parametrize(
    ("contents", "first", "second"),
    [
        ({"model": state(), "model_ema": state(1)}, "model", "model_ema"),
        ({"model": state(), "ema": state(1, "module.")}, "model", "ema.module"),
        (state(prefix="student.") | state(1, "teacher."), "student", "teacher"),
        ({"state_dict": state(prefix="model.") | state(1, "ema.")}, "state_dict.model", "state_dict.ema"),
        (state() | state(1, "ema."), ".", "ema"),
    ],
)
def test_two_networks_that_fit_are_asked_for(tmp_path: Path, contents: Any, first: str, second: str) -> None:
    message = _refused(contents, tmp_path / "w.pth")
    assert "hold 2 networks that fit" in message and f"#{first}" in message and f"#{second}" in message
    assert f"choose one with --weights {tmp_path / 'w.pth'}#" in message
    assert len(_loaded(contents, tmp_path / "w.pth", f"#{first}")) <= 1
    other = network(seed=9)
    load_weights(Path(f"{tmp_path / 'w.pth'}#{second}"), other, "x")
    assert torch.equal(other.get_parameter("head.bias"), state(1)["head.bias"])


def test_only_what_fits_entirely_is_a_candidate(tmp_path: Path) -> None:
    wider = state(prefix="student.") | state(1, "teacher.", width=8)
    assert _loaded(wider, tmp_path / "w.pth")[0] == "w.pth: the prefix student. of its names is taken off"
    deeper = state(prefix="student.") | state(1, "teacher.") | {"teacher.more.weight": torch.ones(2)}
    assert _loaded(deeper, tmp_path / "w.pth")[0] == "w.pth: the prefix student. of its names is taken off"
    # Another number of classes is no reason to prefer one: the teacher may be the one that is meant.
    message = _refused(state(prefix="student.") | state(1, "teacher.", classes=5), tmp_path / "w.pth")
    assert "2 networks that fit" in message
    # One network under two names is one.
    twice = state()
    assert _loaded({"model": twice, "best_model": twice}, tmp_path / "w.pth") != ()


def test_a_part_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    torch.save({"model": state(), "ema": state(1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="there is no #emma in it; it holds model, ema"):
        load_weights(Path(f"{tmp_path / 'w.pth'}#emma"), network(), "x")
    (tmp_path / "w.pth").rename(tmp_path / "run#3.pth")
    with pytest.raises(UserError, match="hold 2 networks"):
        load_weights(tmp_path / "run#3.pth", network(), "x")


class _Settings:
    """A class of the user's that nobody else can import."""

    def __init__(self) -> None:
        self.tensor, self.name = torch.ones(2), "x"


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_beside_the_weights_are_not_looked_at(tmp_path: Path, legacy: bool) -> None:
    contents = {
        "state_dict": state(prefix="model."),
        "args": argparse.Namespace(lr=0.1, path=Path("x")),
        "best": np.float64(91.2),
        "history": np.arange(5),
        "counts": collections.Counter("aab"),
        "when": datetime.datetime(2026, 1, 1),
        "table": collections.defaultdict(list, {"a": [1]}),
        "hyper_parameters": _Settings(),
        "kind": {_Settings, np.float32, torch.float16},
    }
    pair = _loaded((3, state()), tmp_path / "pair.pt", legacy=legacy)
    assert pair == ("pair.pt: its weights 1 are taken",)
    assert "hold NumPy's arrays or numbers and no tensors" in _refused({"a": np.ones(3)}, tmp_path / "numpy.pt")
    notes = _loaded(contents, tmp_path / "w.ckpt", legacy=legacy)
    assert notes[0] == "w.ckpt: the prefix model. of its names is taken off"


@pytest.mark.parametrize("legacy", [False, True])
def test_the_weights_of_a_pickled_network_are_taken_without_making_it(tmp_path: Path, legacy: bool) -> None:
    words = "the weights of a pickled network (torch.nn.modules.container.Sequential); nothing of it was run"
    assert _loaded(network(), tmp_path / "w.pt", legacy=legacy) == (f"w.pt: {words}",)
    assert _loaded({"model": network(), "ema": None}, tmp_path / "w.pt", legacy=legacy) == (f"w.pt: {words}",)
    assert "2 networks that fit" in _refused({"model": network(), "ema": network(seed=1)}, tmp_path / "w.pt")


def test_tensors_of_every_form_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    from pipeline.networks.checkpoints.inert_checkpoint import read_inert_checkpoint

    whole = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    tensors = {
        "view": whole[1:4, 2:], "transposed": whole.t(), "parameter": nn.Parameter(whole[0]), "empty": whole[:0],
        "number": torch.tensor(3), "yes": torch.tensor([True, False]), "half": whole.half(), "brain": whole.bfloat16(),
        "unsigned": torch.arange(4).to(torch.uint16), "expanded": whole[:1].expand(6, 5),
    }  # fmt: skip
    for zipped in (True, False):
        torch.save(tensors, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
        inert = read_inert_checkpoint(tmp_path / "w.pt")
        for name, tensor in tensors.items():
            read = inert.tensor(inert.contents[name])
            assert read.dtype == tensor.dtype and torch.equal(read, tensor), name


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (b"", "are an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "are a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html><title>Quota</title>", "are a web page (HTML)"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "are a web page (HTML)"),
        (b"\x1f\x8b\x08" + bytes(20), "are compressed by gzip"),
        (b"\x89HDF\r\n" + bytes(20), "are an HDF5 file"),
        (b"\x93NUMPY" + bytes(20), "are a NumPy array"),
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w"])
def test_other_files_are_named_as_what_they_are(tmp_path: Path, file: bytes, words: str, name: str) -> None:
    (tmp_path / name).write_bytes(file)
    with pytest.raises(UserError, match=r"^weights .*" + words.replace("(", r"\(").replace(")", r"\)")):
        load_weights(tmp_path / name, network(), "x")


def test_archives_and_folders_are_named_with_what_is_in_them(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            load_weights(path, network(), "x")
        return str(caught.value)

    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("best.pth", b"x")
    assert "are a zip archive of best.pth: unpack it" in message(tmp_path / "w.pth")
    np.savez(tmp_path / "w.npz", a=np.ones(2))
    assert "are NumPy arrays (.npz)" in message(tmp_path / "w.npz")
    import tarfile

    with tarfile.open(tmp_path / "w.tar", "w") as tar:
        entry = tarfile.TarInfo("best.pth")
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    assert "are a tar archive of best.pth" in message(tmp_path / "w.tar")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}'
    )
    assert "are the index of 2 files (1.safetensors, 2.safetensors)" in message(
        tmp_path / "model.safetensors.index.json"
    )
    assert "name a file in it: w.pth" in message(tmp_path)


def test_safetensors_are_fitted_alike(tmp_path: Path) -> None:
    save_file(state(prefix="model."), tmp_path / "w.safetensors")
    other = network(seed=9)
    assert load_weights(tmp_path / "w.safetensors", other, "x") == (
        "w.safetensors: the prefix model. of its names is taken off",
    )
    assert torch.equal(other.get_parameter("head.bias"), state()["head.bias"])


def _fused() -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state().items() if "norm" not in key}


def _without_bias() -> nn.Module:
    made = network()
    made.get_submodule("conv").register_parameter("bias", None)
    return made


@pytest.mark.parametrize(
    ("contents", "into", "words"),
    [
        (state(classes=7), network(), "6 of 8 fit; its network has 7 classes and this one 10: build"),
        (_fused(), _without_bias(), "its BatchNorms are fused into its convolutions"),
        (
            {f"x.{key}": tensor for key, tensor in state().items() if "head" not in key},
            None,
            "6 of 8 fit; it holds a smaller network, or a part of this one, without head",
        ),
        ({key.replace("norm", "bn"): tensor for key, tensor in state().items()}, None, "as bn.weight for norm.weight"),
        (state() | {"more.weight": torch.ones(1)}, None, "8 of 8 fit; its network has more, more: it is another"),
        (state() | {"conv.lora_A": torch.ones(1)}, None, "LoRA"),
        (state(width=8), None, "1 of 8 fit; it is of a variant of this architecture, of other widths"),
        (
            {key.replace("head.weight", "head.weight_orig"): tensor for key, tensor in state().items()}
            | {"head.weight_mask": torch.ones(10, 4)},
            None,
            "prune.remove",
        ),
    ],
)  # fmt: skip
def test_a_misfit_says_how_many_fit_and_the_likely_cause(
    tmp_path: Path, contents: Any, into: nn.Module | None, words: str
) -> None:
    message = _refused(contents, tmp_path / "w.pth", into)
    assert message.startswith("weights w.pth for net do not fit: ")
    assert words in message
