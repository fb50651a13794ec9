"""What its user says of a network: what neither its source nor its shapes tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calibration.errors import UserError
from pipeline.networks.outputs.meaning import parse_kinds


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What is said of a network beside its source and its preprocessing.

    Raises UserError for a kind of output that there is none of, and for a batch that is none.
    """

    output_kinds: tuple[str, ...] = ()
    """NAME=KIND of outputs whose kind the source does not say and the shape does not show."""
    submodule: str | None = None
    """Dotted path of the part to take instead of the whole."""
    class_names: tuple[str, ...] = ()
    """In the order of the outputs, instead of the source's own."""
    classes_said_by: str = ""
    """Who says them, for errors."""
    dynamic_size: bool = False
    """Whether height and width of images are free in what is written, which the network must allow."""
    static_batch: int | None = None
    """The only batch size of what is written, None for any; a network whose code is for one image at a time is taken
    where it is 1."""

    def __post_init__(self) -> None:
        parse_kinds(self.output_kinds)
        if self.static_batch is not None and self.static_batch < 1:
            raise UserError(f"--static-batch {self.static_batch}: must be 1 or more")

    @property
    def kinds(self) -> Mapping[str, str]:
        """Output -> a key of OUTPUT_KINDS."""
        return parse_kinds(self.output_kinds)


#: Of a network that speaks for itself.
NOTHING = Declared()
