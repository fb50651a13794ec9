"""What a file that is no checkpoint is, by its first bytes: said in its name instead of "damaged"."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path

from pipeline.tools.source_text import shortened

# First bytes -> what the file is and what to do.
_FIRST_BYTES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "are a pointer of Git LFS, not the file itself: fetch it with git lfs pull"),
    (b"/annex/objects/", "are a pointer of git-annex, not the file itself: fetch it with git annex get"),
    (b"outs:\n", "are a pointer of DVC, not the file itself: fetch it with dvc pull"),
    (b"\x1f\x8b", "are compressed by gzip: unpack them first"),
    (b"BZh", "are compressed by bzip2: unpack them first"),
    (b"\xfd7zXZ", "are compressed by xz: unpack them first"),
    (b"\x28\xb5\x2f\xfd", "are compressed by zstd: unpack them first"),
    (b"7z\xbc\xaf", "are a 7-Zip archive: unpack it and name the file in it"),
    (b"Rar!", "are a RAR archive: unpack it and name the file in it"),
    (b"\x89HDF", "are an HDF5 file, as of Keras: only PyTorch's checkpoints are read"),
    (b"\x93NUMPY", "are a NumPy array, not a state dict of tensors"),
    (b"GGUF", "are a GGUF file, which holds language models: only PyTorch's checkpoints are read"),
    (b"\x89PNG", "are an image"),
    (b"\xff\xd8\xff", "are an image"),
    (b"%PDF", "are a PDF document"),
)
# torch.save packs nothing. What others packed again is seldom less than half; what unpacks to so much fills memory.
_MOST_FOLD, _LEAST_BOMB = 50, 1 << 28
_HTML = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")


def foreign_kind(path: Path) -> str | None:
    """What a file or folder is if it is known not to be a checkpoint: the end of a sentence that begins with "weights".

    None where it may be one.

    Raises:
        OSError: it cannot be read.
    """
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix.lower() in CHECKPOINT_SUFFIXES)
        return f"are a folder, not a file; {f'name a file in it: {shortened(inside)}' if inside else 'name a file'}"
    with path.open("rb") as file:
        first = file.read(512)
    if not first:
        return "are an empty file: damaged by a download or a full disk; fetch them again"
    if first.lstrip().lower().startswith(_HTML):
        return "are a web page (HTML), not the file it was to lead to: download the file itself"
    for signature, words in _FIRST_BYTES:
        if first.startswith(signature):
            return words
    if first[4:8] == b"TFL3":
        return "are a TensorFlow Lite model: only PyTorch's checkpoints are read"
    if path.suffix.lower() == ".onnx":
        return "are an ONNX file, not a checkpoint: save model.state_dict() of the PyTorch network"
    if path.suffix.lower() == ".json":
        return _json_kind(path)
    if _is_zip(path):
        return _zip_kind(path)
    if first[257:262] == b"ustar" and tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            names = archive.getnames()
        if {"tensors", "storages"} <= {name.lstrip("./") for name in names}:
            return "are of torch's format of 2016: load them with an old torch and save model.state_dict() again"
        return f"are a tar archive of {shortened(names)}: unpack it and name the file in it"
    return None


CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".th", ".ckpt")
"""Common endings of checkpoints; others are read as well."""


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of several disks, says its damaged end
        return False


def _zip_kind(path: Path) -> str | None:
    """What a zip archive is that torch.save has not written."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            unpacked = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return None  # damaged, as the reader will say
    packed = path.stat().st_size
    if unpacked > max(_LEAST_BOMB, _MOST_FOLD * packed):
        return (
            f"are a zip archive of {packed} bytes that unpacks to {unpacked}, as none of torch.save's does: fetch the"
            " weights from somewhere else"
        )
    parts = {name.split("/", 1)[-1] for name in names}
    if "constants.pkl" in parts or any(part.startswith("code/") for part in parts):
        return "are a TorchScript program, not a state dict: save model.state_dict() of the network itself"
    if "archive_format" in parts or any(part.startswith("models/") for part in parts):
        return "are an exported program (torch.export), not a state dict: save model.state_dict() of the network itself"
    if any(name.split("/")[-1] == "data.pkl" for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "are NumPy arrays (.npz), not a state dict: save model.state_dict() with torch.save"
    if "model.weights.h5" in names:
        return "are a Keras model: only PyTorch's checkpoints are read"
    return f"are a zip archive of {shortened(names) or 'nothing'}: unpack it and name the file in it"


def _json_kind(path: Path) -> str:
    try:
        shards = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError):
        return "are a JSON file, which holds no tensors: name the checkpoint itself"
    return (
        f"are the index of {len(shards)} files ({shortened(map(str, shards))}), not tensors: join them into one"
        " .safetensors file (safetensors.torch.load_file of each, save_file of all)"
    )
