"""Numbers for pixels of another scale than the network gets them in, such as 0 to 255 instead of 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence

WHITE = 255


def of_other_pixels(name: str, mean: Sequence[float], std: Sequence[float], *, largest: float) -> str:
    """What to say of a mean or std (`name`: which of them) above `largest`, the largest pixel that they are of.

    Where pixels are within 0 and 1, with the numbers that mean the same there: a std of 1 leaves them as they are.
    """
    said = f"{name} {_shown(mean if name == 'mean' else std)}: pixels are within 0 and {largest:g} here"
    if largest != 1:
        return f"{said}, as --divisor says, and no mean or deviation of theirs is larger"
    scaled_mean = [value / WHITE for value in mean] if max(mean) > 1 else mean
    scaled_std = [value / WHITE for value in std]
    return (
        f"{said}; of numbers for pixels of 0 to 255, divided by 255, these are mean {_shown(scaled_mean)} and std"
        f" {_shown(scaled_std)} (or add --divisor 1)"
    )


def _shown(values: Sequence[float]) -> str:
    return ",".join(f"{value:.4g}" for value in values)
