"""What every call of the public face is made in: our packages, and nothing that ends its caller's process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from faqd.own_packages import own


@contextlib.contextmanager
def own_call() -> Iterator[None]:
    """Find our packages whatever else has their names; a user's code that would end the process raises UserError."""
    with own():
        from pipeline.tools.endings import leaving_raises

        with leaving_raises():
            yield
