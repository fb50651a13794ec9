"""Hostile pickles: whatever they hold, nothing is imported, called or changed; damaged ones are errors, no more."""

from __future__ import annotations

import builtins
import functools
import io
import operator
import os
import pickle
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from calibration.errors import UserError
from pipeline.networks.checkpoints.files import read_checkpoint
from pipeline.networks.checkpoints.inert_pickle import Foreign, InertPickleError, Symbol, read_inert


class Gadget:
    """An object whose pickle calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


class Restored:
    """A class of the user's that runs code when it is restored."""

    trace = ""

    def __setstate__(self, state: Any) -> None:
        Path(state["trace"]).mkdir()

    def __getstate__(self) -> Any:
        return {"trace": Restored.trace}


def _gadgets(trace: str) -> dict[str, Any]:
    code = f"__import__('os').mkdir({trace!r})"
    Restored.trace = trace
    return {
        "system": Gadget(os.system, f"mkdir {trace}"),
        "eval": Gadget(eval, code),
        "exec": Gadget(exec, code),
        "getattr": Gadget(getattr, Gadget(__import__, "os"), "mkdir"),
        "partial": Gadget(Gadget, functools.partial(os.mkdir, trace)),
        "partial called": Gadget(functools.partial(os.mkdir, trace)),
        "methodcaller": Gadget(operator.methodcaller("mkdir", trace)),
        "map": Gadget(list, Gadget(map, os.mkdir, [trace])),
        "load": Gadget(torch.load, "x.pt"),
        "bytes": Gadget(torch.storage._load_from_bytes, pickle.dumps(Gadget(os.mkdir, trace))),
        "setstate": Restored(),
        "state": Gadget(object, state={"trace": trace}),
        "hub": Gadget(torch.hub.load, "x/y", "z"),
    }


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_nothing_of_a_pickle_runs(tmp_path: Path, protocol: int) -> None:
    trace = tmp_path / "trace"
    before = set(sys.modules)
    for name, gadget in _gadgets(str(trace)).items():
        if name == "setstate" and protocol < 2:
            continue
        contents, called = read_inert(io.BytesIO(pickle.dumps({"a": gadget, "b": [1.5, "x"]}, protocol)))
        assert isinstance(contents["a"], Foreign), name
        assert contents["b"] == [1.5, "x"]
        assert name == "partial" or called
    assert not trace.exists()
    assert {name for name in set(sys.modules) - before if not name.startswith("encodings.")} == set()


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_checkpoints_load_nothing_and_run_nothing(tmp_path: Path, zipped: bool) -> None:
    trace = tmp_path / "trace"
    for name, gadget in _gadgets(str(trace)).items():
        path = tmp_path / "w.pt"
        torch.save({"a": torch.ones(2), "b": gadget}, path, _use_new_zipfile_serialization=zipped)
        try:
            assert set(read_checkpoint(path).contents.tensors) == {"a"}, name
        except UserError as error:
            assert "asks to run code" in str(error) and name not in ("methodcaller", "setstate"), name
    assert not trace.exists()


def test_opcodes_that_reach_for_live_objects_reach_records() -> None:
    # INST and OBJ, of protocol 0 and 1; BUILD upon a class; REDUCE of what a BUILD made; an extension's code.
    written = {
        b"(S'mkdir x'\nios\nsystem\n.": "os.system",
        b"(cos\nsystem\nS'mkdir x'\no.": "os.system",
        b"cbuiltins\neval\n(S'1'\ntR.": "builtins.eval",
        b"\x80\x02\x82\x01)R.": "copyreg.extension 1",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01x\x85R.": "os.system",
    }
    for text, name in written.items():
        contents, called = read_inert(io.BytesIO(text))
        assert isinstance(contents, Foreign) and {str(symbol) for symbol in called} == {name}
    contents, _ = read_inert(io.BytesIO(b"\x80\x02cbuiltins\nobject\n}X\x01\x00\x00\x00aK\x01sb."))
    assert contents == Symbol(module="builtins", name="object")
    assert not hasattr(builtins.object, "a")
    contents, called = read_inert(io.BytesIO(b"\x80\x02ccollections\nOrderedDict\n)R)R."))
    assert isinstance(contents, Foreign) and contents.made_by == {} and not called


def test_storages_are_read_within_their_bounds(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    good = {"a": torch.arange(12.0).reshape(3, 4), "b": Gadget(functools.partial)}
    for zipped in (True, False):
        torch.save(good, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        # The size [3, 4] and the stride (4, 1) become such as reach beyond the storage.
        for old, new in ((b"K\x03K\x04\x86", b"K\x04K\x04\x86"), (b"K\x04K\x01\x86", b"K\x7fK\x01\x86")):
            assert old in whole
            path.write_bytes(whole.replace(old, new))
            with pytest.raises(UserError, match="damaged"):
                checkpoint = read_checkpoint(path)
                checkpoint.fitted_to({"a": torch.ones(3, 4)})


def test_damaged_pickles_are_errors_and_no_tracebacks(tmp_path: Path) -> None:
    draw = random.Random(0)
    path = tmp_path / "w.pt"
    contents = {"state_dict": {"a": torch.ones(3)}, "args": Gadget(functools.partial), "n": {1, 2}, "t": (1, [2], None)}
    for zipped in (True, False):
        torch.save(contents, path, _use_new_zipfile_serialization=zipped)
        whole = path.read_bytes()
        for _ in range(400):
            damaged = bytearray(whole)
            for _ in range(draw.choice((1, 1, 3))):
                damaged[draw.randrange(min(len(damaged), 700))] = draw.randrange(256)
            path.write_bytes(damaged[: draw.choice((len(damaged), draw.randrange(len(damaged))))])
            try:
                read_checkpoint(path).fitted_to({"a": torch.ones(3)})
            except UserError as error:
                assert str(path) in str(error)
    for text in (b"", b".", b"(", b"\x80\x02", b"a.", b"e.", b"R.", b"g9\n.", b"\x80\x02(K\x01d.", b"K\x01K\x02s."):
        with pytest.raises(InertPickleError):
            read_inert(io.BytesIO(text))
