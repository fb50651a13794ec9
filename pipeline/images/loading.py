"""The work behind batches: read images, count the unreadable ones, in this process or in others."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from calibration.errors import UserError
from pipeline.images.augmentation import (
    UNIFORMS,
    Augmentation,
    resized_crop,
    shift_and_flip,
    smallest_side_to_decode,
)
from pipeline.images.preprocessing import Preprocessing, image_to_tensor
from pipeline.images.sources.arrays import ArraySource
from pipeline.images.sources.image_source import ImageSource, UnreadableImage
from pipeline.tools.randomness import generator_for


@dataclass(frozen=True)
class Batch:
    """Prepared images. There is no place for a label."""

    images: Tensor  # uint8 [B, C, H, W], as `image_to_tensor` prepares them
    indices: Tensor  # int64 [B], the images' numbers in their source

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which copies to a GPU need not be waited for."""
        return Batch(self.images.pin_memory(), self.indices)


@dataclass(frozen=True)
class Loaded:
    """What a loader, perhaps in another process, hands to the main one."""

    batch: Batch
    unreadable: tuple[tuple[int, str, str], ...] = ()  # index, name, reason
    mistake: str | None = None  # a UserError's line; raised in a worker it would bring its traceback along

    def pin_memory(self) -> Loaded:
        return Loaded(self.batch.pin_memory(), self.unreadable, self.mistake)


@final
class Reader:
    """Reads and prepares images of a source, remembering which ones cannot be read."""

    def __init__(self, source: ImageSource, preprocessing: Preprocessing) -> None:
        self.source = source
        self.preprocessing = preprocessing
        self.bad: dict[int, tuple[str, str]] = {}

    @property
    def array(self) -> ArraySource | None:
        """The source, where whole batches can be taken from it as they are stored."""
        stored = isinstance(self.source, ArraySource) and self.source.is_prepared(self.preprocessing)
        return cast(ArraySource, self.source) if stored else None

    def plain(self, index: int) -> Tensor | None:
        """Return an image as the device prepares it; None where it cannot be read."""
        if index in self.bad:
            return None
        try:
            return image_to_tensor(self.source.image(index), self.preprocessing)
        except UnreadableImage as error:
            self.bad[index] = (error.name, error.reason)
            return None

    def cropped(self, index: int, uniforms: list[float], *, flip: bool) -> Tensor | None:
        """Return a random part of an image; None where it cannot be read."""
        if index in self.bad:
            return None
        try:
            image = self.source.image(index, at_least=smallest_side_to_decode(self.preprocessing))
        except UnreadableImage as error:
            self.bad[index] = (error.name, error.reason)
            return None
        return resized_crop(image, self.preprocessing, uniforms, flip=flip)

    def loaded(self, images: list[Tensor], kept: list[int], tried: set[int]) -> Loaded:
        """Stack images into a batch, beside the account of those among `tried` that could not be read."""
        shape = (0, self.preprocessing.channels, self.preprocessing.height, self.preprocessing.width)
        stacked = torch.stack(images) if images else torch.empty(shape, dtype=torch.uint8)
        unreadable = tuple((index, *self.bad[index]) for index in sorted(tried & self.bad.keys()))
        return Loaded(Batch(stacked, torch.tensor(kept, dtype=torch.int64)), unreadable)

    def failed(self, mistake: UserError) -> Loaded:
        """Return no images and the user's mistake, to be raised in the main process."""
        return replace(self.loaded([], [], set()), mistake=str(mistake))


@final
class TrainingLoader(Dataset[Loaded]):
    """Item i is the batch of step first_step + i."""

    def __init__(
        self,
        reader: Reader,
        indices: NDArray[np.int64],
        batch_size: int,
        first_step: int,
        steps: int,
        seed: int,
        augmentation: Augmentation,
    ) -> None:
        if batch_size < 1 or not len(indices):
            raise ValueError(f"batches of {batch_size} from {len(indices)} images")
        self.reader = reader
        self.indices = np.asarray(indices, dtype=np.int64)
        self.batch_size = batch_size
        self.first_step = first_step
        self.steps = steps
        self.seed = seed
        self.augmentation = augmentation

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, number: int) -> Loaded:
        step = self.first_step + number
        generator = generator_for(self.seed, "augmentation", step)
        positions = _shuffled_positions(len(self.indices), self.batch_size, step, self.seed)
        array = self.reader.array
        if array is not None:
            chosen = self.indices[positions]
            images = array.prepared(chosen, self.reader.preprocessing)
            return Loaded(Batch(self._moved(images, generator), torch.from_numpy(chosen)))
        try:
            return self._read(positions, generator)
        except UserError as mistake:
            return self.reader.failed(mistake)

    def _read(self, positions: NDArray[np.int64], generator: torch.Generator) -> Loaded:
        resized = self.augmentation.crop == "resized"
        uniforms = torch.rand(len(positions), UNIFORMS, generator=generator, dtype=torch.float64).tolist()
        images: list[Tensor] = []
        kept: list[int] = []
        tried: set[int] = set()
        for slot, position in enumerate(positions.tolist()):
            for offset in range(len(self.indices)):
                index = int(self.indices[(position + offset) % len(self.indices)])
                if resized:
                    image = self.reader.cropped(index, uniforms[slot], flip=self.augmentation.flip)
                else:
                    image = self.reader.plain(index)
                tried.add(index)
                if image is not None:
                    images.append(image)
                    kept.append(index)
                    break
            else:
                reason = self.reader.bad[int(self.indices[0])][1]
                mistake = none_readable(self.reader.source.name, len(self.indices), reason)
                return replace(self.reader.loaded([], [], tried), mistake=mistake)
        loaded = self.reader.loaded(images, kept, tried)
        if resized:
            return loaded
        moved = Batch(self._moved(loaded.batch.images, generator), loaded.batch.indices)
        return Loaded(moved, loaded.unreadable)

    def _moved(self, images: Tensor, generator: torch.Generator) -> Tensor:
        if self.augmentation.crop != "shifted":
            return images
        return shift_and_flip(images, self.augmentation, generator)


@final
class OrderedLoader(Dataset[Loaded]):
    """Item i is the i-th run of batch_size indices."""

    def __init__(self, reader: Reader, indices: NDArray[np.int64], batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batches of {batch_size}")
        self.reader = reader
        self.indices = np.asarray(indices, dtype=np.int64)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __getitem__(self, number: int) -> Loaded:
        chosen = self.indices[number * self.batch_size : (number + 1) * self.batch_size]
        array = self.reader.array
        if array is not None:
            return Loaded(Batch(array.prepared(chosen, self.reader.preprocessing), torch.from_numpy(chosen.copy())))
        images: list[Tensor] = []
        kept: list[int] = []
        try:
            for index in chosen.tolist():
                image = self.reader.plain(index)
                if image is not None:
                    images.append(image)
                    kept.append(index)
        except UserError as mistake:
            return self.reader.failed(mistake)
        return self.reader.loaded(images, kept, set(chosen.tolist()))


def _shuffled_positions(count: int, batch_size: int, step: int, seed: int) -> NDArray[np.int64]:
    """Positions [batch_size] of one step in the endless row of permutations of `count`, one after another."""
    epoch, offset = divmod(step * batch_size, count)
    parts: list[NDArray[np.int64]] = []
    needed = batch_size
    while needed:
        part = _permutation(count, seed, epoch)[offset : offset + needed]
        parts.append(part)
        needed -= len(part)
        epoch, offset = epoch + 1, 0
    return np.concatenate(parts)


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def _permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order: NDArray[np.int64] = torch.randperm(count, generator=generator_for(seed, "order", epoch)).numpy()
    return order


def iterate(
    loader: TrainingLoader | OrderedLoader, source: ImageSource, *, workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """Yield a loader's batches in order, keeping the source's account of unreadable images.

    Raises:
        UserError: what a loader met in this or another process, or a process died.
    """
    pin_memory = pin_memory and torch.cuda.is_available()
    # Taking stored images is quicker than bringing them over from another process.
    in_workers = workers > 0 and loader.reader.array is None
    for loaded in _from_workers(loader, workers, pin_memory) if in_workers else _in_turn(loader, pin_memory):
        for index, name, reason in loaded.unreadable:
            source.unreadable.add(index, name, reason)
        if loaded.mistake is not None:
            raise UserError(loaded.mistake)
        yield loaded.batch


def _in_turn(loader: TrainingLoader | OrderedLoader, pin_memory: bool) -> Iterator[Loaded]:
    for number in range(len(loader)):
        loaded = loader[number]
        yield loaded.pin_memory() if pin_memory else loaded


def _from_workers(loader: TrainingLoader | OrderedLoader, workers: int, pin_memory: bool) -> Iterator[Loaded]:
    with warnings.catch_warnings():
        # Python 3.12 warns of forking beside threads; PyTorch's workers are made for it: one thread each.
        multi_threaded = ".*multi-threaded, use of fork"
        warnings.filterwarnings("ignore", message=multi_threaded, category=DeprecationWarning)
        # More workers than cores are the user's choice.
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        data_loader: DataLoader[Loaded] = DataLoader(
            loader,
            batch_size=None,  # an item is a whole batch already
            num_workers=workers,
            # Python 3.14 has another default, whose processes hold neither a user's packages nor what no pickle does.
            multiprocessing_context="fork" if sys.platform == "linux" else None,
            pin_memory=pin_memory,
            collate_fn=_as_is,
            generator=torch.Generator(),  # else it would draw its workers' seed from the global generator
        )
        iterator = iter(data_loader)
    try:
        yield from iterator
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that decodes images died ({error}): out of memory or of /dev/shm; try --workers 0"
        ) from None


def _as_is(loaded: Any) -> Any:
    return loaded


def none_readable(name: str, count: int, reason: str) -> str:
    """Return the message for a source without a single readable image."""
    return f"{name}: none of {count} images can be read; the first: {reason}"
