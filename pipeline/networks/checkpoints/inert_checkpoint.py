"""torch.save's files read as data: tensors from their bytes, every other object as an inert record of itself."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from pipeline.networks.checkpoints.inert_pickle import Foreign, InertPickleError, Symbol, read_inert

# torch.serialization's MAGIC_NUMBER, the first pickle of the format before the zip archive of torch 1.6.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# What zipfile raises over damaged, encrypted and otherwise packed archives.
_BROKEN_ARCHIVES = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    EOFError,
    KeyError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)
_DTYPES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class InertCheckpointError(Exception):
    """The file is no complete checkpoint of torch.save; the message says why."""


@final
@dataclass(frozen=True, kw_only=True)
class Storage:
    """A run of numbers outside the pickle."""

    key: str
    dtype: torch.dtype
    count: int
    start: int = 0  # of a part of another storage, in numbers: the format before the zip archive has such


@final
@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor's numbers lie: the storage, and the view of it."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@final
@dataclass(frozen=True, kw_only=True)
class InertCheckpoint:
    """What a checkpoint holds without anything in it having run."""

    contents: Any  # StoredTensor for tensors, Foreign for objects of other classes
    called: frozenset[Symbol]  # what unpickling would have called, but for what rebuilds tensors
    numbers: Callable[[str, int, int], bytes]  # the bytes of a storage from one place to another

    def tensor(self, stored: StoredTensor) -> Tensor:
        """The tensor, on the CPU, in memory of its own.

        Raises:
            InertCheckpointError: the file holds fewer numbers than the tensor's shape needs.
        """
        storage = stored.storage
        last = sum((size - 1) * stride for size, stride in zip(stored.size, stored.stride, strict=True))
        negative = min((stored.offset, storage.start, *stored.size, *stored.stride)) < 0
        empty = 0 in stored.size
        if negative or (not empty and stored.offset + last >= storage.count):
            raise InertCheckpointError(
                f"a tensor of shape {list(stored.size)} reaches beyond its storage {storage.key}"
            )
        if empty:
            return torch.empty(stored.size, dtype=storage.dtype)
        start, width = storage.start + stored.offset, storage.dtype.itemsize
        read = self.numbers(storage.key, start * width, (start + last + 1) * width)
        flat = torch.frombuffer(bytearray(read), dtype=storage.dtype, count=last + 1)
        return flat.as_strided(stored.size, stored.stride).clone()


def read_inert_checkpoint(path: Path) -> InertCheckpoint:
    """Read a file of torch.save, of the zip format or the one before it.

    Raises:
        InertCheckpointError: it is something else, damaged, or of the other byte order.
        OSError: it cannot be read.
    """
    try:
        return _of_archive(path) if zipfile.is_zipfile(path) else _of_legacy(path)
    except (InertPickleError, *_BROKEN_ARCHIVES) as error:
        raise InertCheckpointError(str(error)) from None


def _of_archive(path: Path) -> InertCheckpoint:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.split("/")[-1] == "data.pkl" and name.count("/") <= 1]
        if not pickles:
            raise InertCheckpointError("it has no data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise InertCheckpointError("its numbers are big-endian")
        contents, called = read_inert(io.BytesIO(archive.read(pickles[0])), rebuild=_rebuilt, outside=_storage)

    opened: list[zipfile.ZipFile] = []  # kept, as its directory is read with every opening

    def numbers(key: str, start: int, stop: int) -> bytes:
        try:
            if not opened:
                opened.append(zipfile.ZipFile(path))
            with opened[0].open(f"{root}data/{key}") as stored:
                stored.seek(start)
                read = stored.read(stop - start)
        except _BROKEN_ARCHIVES as error:
            raise InertCheckpointError(str(error)) from None
        return _complete(read, key, start, stop)

    return InertCheckpoint(contents=contents, called=called, numbers=numbers)


def _of_legacy(path: Path) -> InertCheckpoint:
    storages: dict[str, torch.dtype] = {}

    def outside(identity: object) -> object:
        result = _storage(identity)
        if isinstance(result, Storage):
            storages[result.key] = result.dtype
        return result

    with path.open("rb") as file:
        if read_inert(file)[0] != _LEGACY_MAGIC:
            raise InertCheckpointError("it is a pickle, but not one of torch.save")
        for _ in ("the format's version", "the machine's sizes of integers"):
            read_inert(file)
        contents, called = read_inert(file, rebuild=_rebuilt, outside=outside)
        keys, _ = read_inert(file)
        places: dict[str, tuple[int, int]] = {}
        for key in keys if isinstance(keys, list) else ():
            if key not in storages:
                raise InertCheckpointError(f"nothing says what its storage {key} holds")
            length = int.from_bytes(file.read(8), "little") * storages[key].itemsize
            places[key] = (file.tell(), length)
            file.seek(length, io.SEEK_CUR)

    def numbers(key: str, start: int, stop: int) -> bytes:
        place, length = places.get(key, (0, 0))
        with path.open("rb") as file:
            file.seek(place + start)
            return _complete(file.read(max(0, min(stop, length) - start)), key, start, stop)

    return InertCheckpoint(contents=contents, called=called, numbers=numbers)


def _complete(read: bytes, key: str, start: int, stop: int) -> bytes:
    if len(read) < stop - start:
        raise InertCheckpointError(f"storage {key} ends at byte {start + len(read)} instead of {stop}")
    return read


def _storage(identity: object) -> object:
    """What stands for a reference out of the pickle: a storage, or, of old whole networks, the class itself."""
    match identity:
        case ("storage", Symbol(name=name), key, _, int(count), *rest):
            dtype = torch.uint8 if name == "UntypedStorage" else _DTYPES[name]
            view = rest[0] if rest else None
            if isinstance(view, tuple):
                _, start, count = view
                return Storage(key=str(key), dtype=dtype, count=count, start=start)
            return Storage(key=str(key), dtype=dtype, count=count)
        case ("module", made_by, *_):
            return made_by
    return Foreign(made_by="persistent_load", arguments=identity)


def _rebuilt(symbol: Symbol, arguments: object) -> object | None:
    """The stored tensor that torch would have rebuilt, None for everything else."""
    match (str(symbol), arguments):
        case (
            "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor",
            (Storage() as storage, int(offset), size, stride, *_),
        ):
            return _view(storage, offset, size, stride)
        case (
            "torch._utils._rebuild_tensor_v3",
            (Storage() as storage, int(offset), size, stride, _, _, Symbol(module="torch", name=name), *_),
        ):
            dtype = getattr(torch, name, None)  # a number's type, or nothing that is used
            if not isinstance(dtype, torch.dtype):
                return None
            count = storage.count * storage.dtype.itemsize // dtype.itemsize
            return _view(Storage(key=storage.key, dtype=dtype, count=count), offset, size, stride)
        case ("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", (data, *_)):
            return data if isinstance(data, StoredTensor) else None
        case ("torch._tensor._rebuild_from_type_v2" | "torch._tensor._rebuild_from_type", (function, _, inner, *_)):
            # A tensor with attributes of its own, or of a subclass: the numbers are the plain tensor's.
            return _rebuilt(function, inner) if isinstance(function, Symbol) else None
    return None


def _view(storage: Storage, offset: int, size: Any, stride: Any) -> StoredTensor:
    sizes, strides = ([] if isinstance(part, Foreign) else list(part) for part in (size, stride))
    if isinstance(size, Foreign) and isinstance(size.arguments, tuple) and size.arguments:
        sizes = list(size.arguments[0])  # torch.Size
    if len(sizes) != len(strides) or not all(isinstance(number, int) for number in (*sizes, *strides)):
        raise ValueError(f"a tensor of size {sizes} and stride {strides}")
    return StoredTensor(storage=storage, offset=offset, size=tuple(sizes), stride=tuple(strides))
