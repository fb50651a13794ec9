"""How many images a training step has: by what it keeps of each for its way back, and by how many there are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.fx import GraphModule

from calibration.graph.operators import static_shape
from pipeline.config.distillation import DistillationConfig

#: Images of a step where neither memory nor their number say otherwise: what every published figure was trained with.
MOST_IMAGES = 128
#: Bytes that a step takes for each number of the float network's feature maps: values, rounded ones, masks and
#: gradients. Measured at W8A8: MobileNetV2 at 224 px 10.6 (growth of the process), of which kept for the way back 7.5
#: (the embedded network).
BYTES_PER_NUMBER = 12
#: Bytes that all feature maps of a step may take, and at most this share of the memory that there is [ours].
BUDGET_BYTES, SHARE_OF_MEMORY = 5 * 2**30, 0.25
# Few images make at least two steps an epoch, but steps no smaller than this [ours].
_LEAST_OF_FEW = 16
_LIMITS_OF_GROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def numbers_per_image(graph: GraphModule) -> int:
    """How many numbers all feature maps of a captured graph hold for one image, from the shapes recorded in it.

    Sizes that are free count as 1, which they are for the number of images.
    """
    total = 0
    for node in graph.graph.nodes:
        value = None if node.op in ("get_attr", "output") else node.meta.get("val")
        if isinstance(value, torch.Tensor):
            total += _numbers(static_shape(node))
        elif isinstance(value, list | tuple):
            total += sum(_numbers(tuple(part.shape)) for part in value if isinstance(part, torch.Tensor))
    return max(1, total)


def _numbers(sizes: Sequence[int | torch.SymInt]) -> int:
    product = 1
    for size in sizes:
        product *= max(1, size) if isinstance(size, int) else 1
    return product


def memory_of(device: torch.device) -> int | None:
    """Bytes of memory that a device has, or that this process may have of it; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    said = list[int]()
    with contextlib.suppress(AttributeError, ValueError, OSError):  # of systems that are no Unix
        said.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for file in _LIMITS_OF_GROUP:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            said.append(int(Path(file).read_text(encoding="ascii")))
    return min((count for count in said if count > 0), default=None)


def resolve_batch_size(
    asked: int | None, *, images: int, numbers: int, memory: int | None = None, least: int = 1
) -> int:
    """Images of a training step: those asked for, else a power of two that memory and their number have room for.

    Args:
        asked: by the user.
        images: that train, >= 1.
        numbers: of all feature maps of one image (see `numbers_per_image`).
        memory: bytes that there are, None where unknown.
        least: images that a loss needs in a batch.
    """
    if asked is not None:
        return min(asked, images)
    budget = BUDGET_BYTES if memory is None else min(BUDGET_BYTES, int(memory * SHARE_OF_MEMORY))
    room = budget // (numbers * BYTES_PER_NUMBER)
    most = max(1, min(MOST_IMAGES, room, max(_LEAST_OF_FEW, images // 2)))
    return min(max(1 << (most.bit_length() - 1), least), images)


def batch_size_for(settings: DistillationConfig, graph: GraphModule, device: torch.device, *, images: int) -> int:
    """Images of a training step of a network's folded graph by the settings, on a device."""
    point = settings.point
    return resolve_batch_size(
        settings.batch_size,
        images=images,
        numbers=numbers_per_image(graph),
        memory=memory_of(device),
        least=1 if point is None else point.least_images,
    )
