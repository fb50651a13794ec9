"""Start-up check that `backends` and `calibration` are this project's own: their names are common ones.

It imports nothing of the project, because what it looks for is exactly that such an import finds a stranger.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

SIBLINGS = ("backends", "calibration")


def shadowed_sibling() -> str | None:
    """Return one line naming the file that hides a sibling package of `pipeline`, or None."""
    home = Path(__file__).resolve().parents[3]
    for name in SIBLINGS:
        spec = importlib.util.find_spec(name)
        expected = home / name
        if spec is None:
            return f"the package {name} is missing beside {home / 'pipeline'}: install faqd again"
        places = list(spec.submodule_search_locations or ([spec.origin] if spec.origin else []))
        loaded = [Path(place).resolve() for place in places]
        if expected.resolve() not in loaded:
            stranger = spec.origin or ", ".join(map(str, loaded)) or "a built-in module"
            return (
                f"{stranger} hides faqd's own package {name} ({expected}): rename that file or folder, "
                "run from another folder, or use the command faqd, which finds its own"
            )
    return None
