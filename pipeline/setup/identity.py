"""What a network or a set of images is, whatever path it was read from: hashes of what is in it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule

from calibration.graph.operators import attribute
from pipeline.artifacts import Network
from pipeline.images.device_preprocess import image_files
from pipeline.images.sources.arrays import ArraySource
from pipeline.images.sources.folder import FolderSource
from pipeline.images.sources.image_source import ImageSource, UnreadableImage
from pipeline.images.split_images import SplitImages
from pipeline.tools.regular_file import irregular

if TYPE_CHECKING:
    from hashlib import _Hash as Digest

_SAMPLE = 32
_MOST_ITEMS = 256
# Bytes of a folder that are all read: 10000 photographs of 200 kB, two to four seconds.
_WHOLE = 2 << 30
_MOST_FILES = 20_000
_PIECE = 4096
# Threads that read: hashing leaves the others room, and so does waiting for a disk.
_READERS = 4
# Images of an array that are hashed at once, copied where they lie otherwise in memory.
_AT_ONCE = 256
# JPEGs may then be decoded at a fraction of their size.
_LEAST_SIDE = 64


def network_identity(networks: Iterable[Network]) -> str:
    """The hash of networks as they were captured: graph, weights, preprocessing, what outputs hold."""
    digest = hashlib.sha256()
    for network in networks:
        digest.update(network.captured.code.encode())
        digest.update(json.dumps(network.preprocessing.to_json(), sort_keys=True).encode())
        kinds = [(one.name, one.holds, one.axis, one.activation, one.shown, one.embedding) for one in network.outputs]
        digest.update(json.dumps(kinds).encode())
        for name, tensor in sorted(_tensors(network.captured).items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _tensors(graph_module: GraphModule) -> dict[str, Tensor]:
    """Every tensor of a graph by its path: parameters, buffers that no state holds, and plain ones that it reads."""
    tensors = dict[str, Tensor](graph_module.named_parameters(remove_duplicate=False))
    tensors |= dict(graph_module.named_buffers(remove_duplicate=False))
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            value = attribute(graph_module, str(node.target))
            if isinstance(value, Tensor):
                tensors[str(node.target)] = value
    return tensors


def images_identity(images: SplitImages) -> str:
    """The hash of the images in their order, and of the labels where these are read.

    Of arrays every number counts; of files the size and, up to 2 GiB of them, every byte, beyond that the beginning,
    middle and end of up to 20000 of them; of a data set of the user's own, whose items cost what its code costs, their
    number and 256 of them.
    """
    source = images.source
    digest = hashlib.sha256(f"{len(source)}".encode())
    if isinstance(source, ArraySource):
        _add_pixels(digest, source.pixels)
    elif isinstance(source, FolderSource):
        _add_files(digest, [source.root / file for file in source.files])
    else:
        _add_items(digest, source)
    if images.labels is not None:
        digest.update(images.labels.tobytes())
    return digest.hexdigest()


def path_identity(path: Path) -> str | None:
    """The hash of every byte of a file, or of a folder's files with their names in it, as `images_identity` takes them.

    None where there is neither, or it cannot be read. Links are followed, and files that begin with a dot passed over,
    as where images are looked for.
    """
    try:
        if irregular(path) is not None:
            return None
        if not path.is_dir():
            with path.open("rb", buffering=0) as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        files = sorted(file for kind in image_files(path) for file in kind)
    except OSError:
        return None
    digest = hashlib.sha256(json.dumps(files).encode())
    _add_files(digest, [path / file for file in files])
    return digest.hexdigest()


def _add_pixels(digest: Digest, pixels: NDArray[np.uint8]) -> None:
    digest.update(f"{list(pixels.shape)}".encode())
    for first in range(0, len(pixels), _AT_ONCE):
        digest.update(np.ascontiguousarray(pixels[first : first + _AT_ONCE]).data)


def _add_files(digest: Digest, files: Sequence[Path]) -> None:
    with ThreadPoolExecutor(_READERS) as pool:
        # None: gone meanwhile, or behind a link that leads nowhere.
        sizes = list(pool.map(_size, files, chunksize=64))
        digest.update(json.dumps(sizes).encode())
        whole = sum(size or 0 for size in sizes) <= _WHOLE
        places = range(len(files)) if whole else sample(files, most=_MOST_FILES)
        for content in pool.map(partial(_content, whole=whole), [files[place] for place in places], chunksize=64):
            digest.update(content)


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


def _content(file: Path, *, whole: bool) -> bytes:
    """The hash of a file's bytes, or of its beginning, middle and end alone."""
    if irregular(file) is not None:
        return b"unreadable"
    try:
        with file.open("rb", buffering=0) as stream:
            if whole:
                return hashlib.file_digest(stream, "sha256").digest()
            pieces = hashlib.sha256()
            size = os.fstat(stream.fileno()).st_size
            for place in (0, size // 2, max(0, size - _PIECE)):
                stream.seek(place)
                pieces.update(stream.read(_PIECE))
            return pieces.digest()
    except OSError:
        return b"unreadable"


def _add_items(digest: Digest, source: ImageSource) -> None:
    for index in sample(source, most=_MOST_ITEMS):
        try:
            image = source.image(index, at_least=_LEAST_SIDE)
        except UnreadableImage:
            digest.update(b"unreadable")
            continue
        digest.update(f"{image.mode} {image.size}".encode())
        digest.update(image.tobytes())


def sample(source: Sized, *, most: int = _SAMPLE) -> list[int]:
    """Indices of up to `most` images from all over a source, ascending."""
    places = np.linspace(0, len(source) - 1, min(most, len(source)))
    return [int(place) for place in np.unique(places.round())]
