"""Every reader of files that come from elsewhere, as a function of one file, and what it may answer.

Bytes are read, or refused by the exception of a mistake; nothing else may come out, whatever they are.
`tests/pipeline/test_reader_properties.py` and `tests/fuzz.py` give them bytes.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from PIL import Image
from safetensors.torch import save
from torch import nn

from backends.device.bundle_check.errors import DeviceError
from backends.device.bundle_check.golden import read_layers
from backends.device.bundle_check.images import open_images
from backends.device.bundle_check.manifest import in_one_line, manifest_of
from backends.device.bundle_check.stored import DamagedError, read_object
from backends.onnx_file.serialised import parsed
from calibration.errors import UserError, is_out_of_memory
from pipeline.config.file import read_toml
from pipeline.images.sources.arrays import open_npz
from pipeline.images.sources.decoding import decode_image, frame_count
from pipeline.images.sources.folder import class_lines
from pipeline.images.sources.image_source import UnreadableImage
from pipeline.networks.checkpoints.files import read_checkpoint

REFUSALS = (UserError, DeviceError, DamagedError, UnreadableImage)

CORPORA = Path(__file__).parent / "corpora"
"""Folder of a reader -> small files by which it once failed."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One reader: how it reads a file, what such a file is called, and sound ones to begin from."""

    read: Callable[[Path], object]
    file: str
    seeds: tuple[bytes, ...]


def outcome(reader: Reader, content: bytes, folder: Path) -> str:
    """ "read" or "refused"; every other exception goes on upwards."""
    path = folder / reader.file
    path.write_bytes(content)
    try:
        reader.read(path)
    except REFUSALS as refusal:
        assert str(refusal).isprintable(), f"a terminal obeys {refusal!s}"
        return "refused"
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return "refused"
    return "read"


def _manifest(path: Path) -> None:
    with in_one_line():
        tree, _ = read_object(path)
        kept = manifest_of(tree, path)
        assert kept.pixels and kept.kernels and kept.least


def _checkpoint(path: Path) -> None:
    read_checkpoint(path).fitted_to(_STATE)


def _image(path: Path) -> None:
    frame_count(path)
    for least in (None, 8):
        shown = decode_image(path, path.name, at_least=least)
        assert shown.mode in ("L", "RGB", "I;16")


def _arrays(path: Path) -> None:
    for rest in (f"{path}", f"{path}#images,labels"):
        try:
            open_npz(rest, labelled=True)
        except UserError as refusal:
            assert str(refusal).isprintable()
    manifest_pixels = manifest_of(_MANIFEST, path)
    for reading in (
        lambda: open_images(f"{path}#images,labels", path.parent, manifest_pixels),
        lambda: read_layers(path),
    ):
        try:
            reading()
        except DeviceError:
            continue


def _npz(**arrays: Any) -> bytes:
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    return content.getvalue()


def _saved(value: object, **settings: bool) -> bytes:
    content = io.BytesIO()
    torch.save(value, content, **settings)
    return content.getvalue()


def _picture(kind: str, mode: str = "RGB") -> bytes:
    content = io.BytesIO()
    Image.new(mode, (9, 7), 3 if mode in ("L", "I;16", "P") else (1, 2, 3)).save(content, format=kind)
    return content.getvalue()


def _zip(**parts: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return content.getvalue()


def _model() -> bytes:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    sizes: list[str | int | None] = ["N", 2]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes)],
        [weight],
    )
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


_STATE = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).state_dict()
_MANIFEST: Mapping[str, object] = {
    "format": 4,
    "backend": "onnxruntime",
    "files": {"model.onnx": "0" * 64},
    "sizes": {"model.onnx": 1},
    "inputs": [{"name": "input", "type": "float", "shape": ["N", 1, 4, 4]}],
    "outputs": [{"name": "output", "holds": "classes", "shape": ["N", 3], "class_names": ["a", "b", "c"]}],
    "preprocessing": {
        "channels": 1, "height": 4, "width": 4, "channel_order": "L", "mean": [0.5], "std": [0.5], "divisor": 255,
    },
    "plan": {"weights": [{"layer": "0"}], "float_nodes": {}, "kinds": {}},
    "bits": {"weights": 8, "activations": 8},
    "teacher": "digits",
    "student": "digits",
    "seed": 0,
    "versions": {"torch": "2"},
}  # fmt: skip
_TOML = b'bits = 4\nteacher = "digits"\nmean = [0.5]\nresume = true\n# \xc3\xa9\n'
_IMAGES = np.arange(64, dtype=np.uint8).reshape(4, 1, 4, 4)

READERS: dict[str, Reader] = {
    "manifest": Reader(read=_manifest, file="manifest.json", seeds=(json.dumps(_MANIFEST).encode(), b"{}", b"[1e999]")),
    "checkpoint": Reader(
        read=_checkpoint,
        file="weights.pth",
        seeds=(
            _saved(_STATE),
            _saved({"state_dict": _STATE, "epoch": 3}),
            _saved(_STATE, _use_new_zipfile_serialization=False),
            pickle.dumps({"weight": [1.0]}),
        ),
    ),
    "safetensors": Reader(read=_checkpoint, file="weights.safetensors", seeds=(save(_STATE),)),
    "image": Reader(
        read=_image,
        file="image.jpg",
        seeds=(
            *(_picture(kind) for kind in ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "TGA", "PPM", "SGI", "PCX")),
            _picture("GIF", "P"),
            _picture("PNG", "I;16"),
            _picture("JPEG", "L"),
        ),
    ),
    "arrays": Reader(
        read=_arrays,
        file="images.npz",
        seeds=(
            _npz(images=_IMAGES, labels=np.arange(4)),
            _npz(layers=np.array(["a"]), tensors=np.array(["b"]), values_0=np.ones((1, 2), np.float32)),
            _zip(**{"images.npy": b"\x93NUMPY\x01\x00", "labels.npy": b""}),
        ),
    ),
    "labels": Reader(read=lambda path: class_lines(path, "--classes"), file="names.txt", seeds=(b"cat\ndog\n",)),
    "onnx": Reader(read=lambda path: parsed(path.read_bytes()), file="model.onnx", seeds=(_model(),)),
    "toml": Reader(read=read_toml, file="settings.toml", seeds=(_TOML,)),
}

assert onnx.load_model_from_string(_model()).graph.node  # a seed that is none would find little
