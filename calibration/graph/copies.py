"""What holds graphs of ours is copied in memory and not pickled: torch traces a pickled graph anew, and less of it."""

from __future__ import annotations

import copy
from typing import Any, Never, Self

from calibration.errors import UserError


class Unpicklable:
    """An object that `copy.deepcopy` copies, and that refuses to be pickled in one line.

    What a graph says of itself (shapes, outputs) would be lost, and operations on integers cannot be traced: what came
    back would fail later or not be the same.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy of all that it holds."""
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def __copy__(self) -> Self:
        """Another object that holds the same."""
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Never:
        """Refuse.

        Raises:
            UserError: always; it says what to keep instead.
        """
        raise UserError(
            f"{type(self).__name__} objects cannot be pickled, as their graphs cannot: keep weights with"
            " torch.save(student.module.state_dict(), ...), files with artifact.save(...), and make the rest anew with"
            " faqd.capture and faqd.prepare; copy.deepcopy makes a copy in memory"
        )
