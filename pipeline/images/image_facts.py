"""A look at the images before anything is computed from them: can they be decoded, and is there anything to see."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import final

import numpy as np
from numpy.typing import NDArray

from calibration.errors import UserError
from pipeline.images.device_preprocess import DEEP_MODES, to_channels
from pipeline.images.preprocessing import Preprocessing
from pipeline.images.sources.folder import FolderSource
from pipeline.images.sources.image_source import ImageSource, UnreadableImage
from pipeline.tools.source_text import counted, shortened

#: Images that are looked at, evenly over the set; half a second of photographs.
LOOKED_AT = 64
#: Shorter side to which a JPEG may be decoded for the look, pixels.
_SIDE = 128
# Ours, of 8-bit values over all images: photographs spread by 50 to 80, X-rays and thermal images by 10 and more.
_LEAST_SPREAD = 3.0
#: The brightest pixel of 12-bit values in 16-bit colour, whose upper byte alone is kept, is 15.
_DARKEST_WHITE = 31
#: 16-bit grey of at most so many bits in use is taken for a camera's or scanner's 10, 12 or 14.
_MOST_CAMERA_BITS = 14


@final
@dataclass(frozen=True, kw_only=True)
class _Seen:
    """One image: the range of its values, and their sums over a sample of its pixels."""

    index: int
    lowest: tuple[int, ...]
    highest: tuple[int, ...]
    mean: float
    square: float
    deepest: int | None  # largest value of grey with more than 8 bits
    fingerprint: int

    @property
    def constant(self) -> bool:
        return self.lowest == self.highest


def readable_split(
    source: ImageSource, training: NDArray[np.int64], held_out: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return both parts of a set with at least one readable image in each, moving one where a part has none.

    Raises:
        UserError: fewer than two images can be read.
    """
    readable = {name: next(_readable(source, part), None) for name, part in (("train", training), ("hold", held_out))}
    if readable["train"] is not None and readable["hold"] is not None:
        return training, held_out
    several = list(islice(_readable(source, np.concatenate((training, held_out))), 2))
    if len(several) < 2:
        raise too_few_readable(source, len(several))
    moved = several[1]
    if readable["hold"] is None:
        return training[training != moved], np.sort(np.append(held_out, moved))
    return np.sort(np.append(training, moved)), held_out[held_out != moved]


def too_few_readable(source: ImageSource, readable: int) -> UserError:
    """The error of a set whose images, but for one at most, cannot be decoded."""
    bad = source.unreadable
    return UserError(
        f"{source.name}: {readable} of {len(source)} images can be decoded, and two are the least, one to train on and"
        f" one to hold out; the first that cannot: {bad.names[0]} ({bad.first_reason()})"
    )


def check_single(source: ImageSource) -> None:
    """Raise UserError where the only image of a source cannot be decoded."""
    if len(source) == 1 and next(_readable(source, np.arange(1)), None) is None:
        raise too_few_readable(source, 0)


def _readable(source: ImageSource, indices: NDArray[np.int64]) -> Iterator[int]:
    """The indices of images that can be decoded, recording the others."""
    for index in indices.tolist():
        try:
            source.image(index, at_least=_SIDE)
        except UnreadableImage as error:
            source.unreadable.add(index, error.name, error.reason)
        else:
            yield index


def look(source: ImageSource, preprocessing: Preprocessing) -> tuple[str, ...]:
    """What the user should be told of a sample of the images, loudest first.

    Raises:
        UserError: every image of the set is of one colour: no range can be read from them.
    """
    places = np.unique(np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).astype(np.int64))
    seen = [_seen(source, index, preprocessing) for index in _readable(source, places)]
    if not seen:
        return ()
    if all(image.constant for image in seen):
        _refuse_constant(source, preprocessing, seen)
    return tuple(
        f"{source.name}: {remark}"
        for remark in (
            _of_depth(seen, preprocessing),
            _of_spread(seen),
            _of_constants(source, seen),
            _of_frames(source, places),
        )
        if remark is not None
    )


def _seen(source: ImageSource, index: int, preprocessing: Preprocessing) -> _Seen:
    image = source.image(index, at_least=_SIDE)
    deepest = int(np.asarray(image).max()) if image.mode in DEEP_MODES else None
    shown = to_channels(image, preprocessing.settings)
    extrema = np.array(shown.getextrema()).reshape(-1, 2)
    step = max(1, min(shown.size) // _SIDE)
    pixels = np.asarray(shown)[::step, ::step]
    values = pixels.astype(np.float64)
    return _Seen(
        index=index,
        lowest=tuple(extrema[:, 0].tolist()),
        highest=tuple(extrema[:, 1].tolist()),
        mean=float(values.mean()),
        square=float(np.square(values).mean()),
        deepest=deepest,
        fingerprint=hash((shown.size, pixels.tobytes())),
    )


def _refuse_constant(source: ImageSource, preprocessing: Preprocessing, seen: list[_Seen]) -> None:
    """Raise UserError unless some image that was not looked at yet shows more than one colour."""
    done = {image.index for image in seen}
    rest = np.array([index for index in range(len(source)) if index not in done], np.int64)
    for index in _readable(source, rest):
        if not _seen(source, index, preprocessing).constant:
            return
    colours = {image.lowest for image in seen}
    shown = "/".join(map(str, seen[0].lowest))
    what = "black" if colours == {(0,) * len(seen[0].lowest)} else f"of one colour each, the first {shown}"
    deep = max((image.deepest or 0 for image in seen), default=0)
    advice = f" (their 16-bit values reach {deep}: add --stored-bits {max(9, deep.bit_length())})" if deep else ""
    raise UserError(f"{source.name}: every image is {what}{advice}: nothing can be calibrated with them")


def _of_depth(seen: list[_Seen], preprocessing: Preprocessing) -> str | None:
    deepest = [image.deepest for image in seen if image.deepest is not None]
    if deepest:
        bits, stored = max(9, max(deepest).bit_length()), preprocessing.stored_bits
        if stored == 16 and bits <= _MOST_CAMERA_BITS:
            return (
                f"the 16-bit grey images use {bits} bits (the brightest pixel of {len(deepest)} is {max(deepest)} of"
                f" 65535): the network sees them nearly black; where that is not meant, add --stored-bits {bits}"
            )
        if bits > stored:
            most = 2**stored - 1
            return f"16-bit grey images reach {max(deepest)}: with --stored-bits {stored} all above {most} is white"
        return None
    if preprocessing.stored_bits != 16:
        return (
            f"--stored-bits {preprocessing.stored_bits} has no effect on the {len(seen)} images that were looked at: it"
            " is for grey of more than 8 bits, and none of them is"
        )
    brightest = max(max(image.highest) for image in seen)
    if brightest <= _DARKEST_WHITE:
        return (
            f"the brightest pixel of {counted(len(seen), 'image')} is {brightest} of 255: the network sees them nearly"
            " black. Were 10- or 12-bit values stored in 16-bit colour, whose upper 8 bits are taken? Store them as 8"
            " bits"
        )
    return None


def _of_spread(seen: list[_Seen]) -> str | None:
    mean = float(np.mean([image.mean for image in seen]))
    spread = math.sqrt(max(0.0, float(np.mean([image.square for image in seen])) - mean**2))
    if spread < _LEAST_SPREAD:
        return (
            f"the pixels of {counted(len(seen), 'image')} spread by {spread:.2g} of 255 around {mean:.3g}: ranges read"
            " from so little contrast will not fit other images"
        )
    if len(seen) > 1 and len({image.fingerprint for image in seen}) == 1:
        return f"all {len(seen)} images that were looked at are the same picture"
    return None


def _of_constants(source: ImageSource, seen: list[_Seen]) -> str | None:
    constant = [image for image in seen if image.constant]
    if not constant:
        return None
    black = sum(image.highest == (0,) * len(image.highest) for image in constant)
    names = source.files if isinstance(source, FolderSource) else None
    shown = shortened([names[image.index] if names else f"number {image.index}" for image in constant])
    return f"{len(constant)} of {len(seen)} images that were looked at are of one colour ({black} black): {shown}"


def _of_frames(source: ImageSource, places: NDArray[np.int64]) -> str | None:
    if not isinstance(source, FolderSource):
        return None
    several = [source.files[index] for index in places.tolist() if source.frames(index) > 1]
    if not several:
        return None
    return f"of files with several frames or pages the first is taken: {shortened(several)}"
