"""What a network or a set of images is, whatever path it was read from: hashes of what is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

import numpy as np
import torch

from pipeline.artifacts import Network, UnlabelledImages
from pipeline.sources.image_source import ImageSource, UnreadableImage

_SAMPLE = 32
# JPEGs may then be decoded at a fraction of their size.
_LEAST_SIDE = 64


def network_identity(networks: Iterable[Network]) -> str:
    """The hash of networks as they were captured: graph, weights, preprocessing."""
    digest = hashlib.sha256()
    for network in networks:
        digest.update(network.captured.code.encode())
        digest.update(json.dumps(network.preprocessing.to_json(), sort_keys=True).encode())
        for name, tensor in sorted(network.captured.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def images_identity(images: UnlabelledImages) -> str:
    """The hash of how many images there are, of some from all over them, and of the labels where these are read."""
    digest = hashlib.sha256(f"{len(images.source)}".encode())
    for index in sample(images.source):
        try:
            image = images.source.image(index, at_least=_LEAST_SIDE)
        except UnreadableImage:
            digest.update(b"unreadable")
            continue
        digest.update(f"{image.mode} {image.size}".encode())
        digest.update(image.tobytes())
    if images.labels is not None:
        digest.update(images.labels.tobytes())
    return digest.hexdigest()


def sample(source: ImageSource) -> list[int]:
    """Indices of up to 32 images from all over a source, ascending."""
    places = np.linspace(0, len(source) - 1, min(_SAMPLE, len(source)))
    return [int(place) for place in np.unique(places.round())]
