"""A float student with quantisers and ranges, for the profile that suits it, known to load where it can be tried."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from backends.base import Backend
from pipeline.artifacts import Network, PreparedStudent
from pipeline.config.quantisation import QuantisationConfig
from pipeline.images.split_images import SplitImages
from pipeline.setup.chosen_backend import prepared_for
from pipeline.stages.choose import choose_profile
from pipeline.stages.convert import check_loads, check_opset
from pipeline.stages.observe import corrected, prepare
from pipeline.tools.kept import Kept
from pipeline.tools.progress import Progress


def calibrated(
    student: Network,
    candidates: Sequence[Backend],
    teacher: Network,
    images: SplitImages,
    quantisation: QuantisationConfig,
    *,
    place: Kept | None = None,
    progress: Progress,
) -> PreparedStudent:
    """Prepare a student for the fastest of the candidates that costs no accuracy; the one kept at `place`, or then is.

    Raises UserError, before anything is trained, when nothing can be quantised or the runtime refuses what comes of it.
    """
    if place is not None and place.exists():
        prepared = PreparedStudent.load(place, student, quantisation)
        check_opset(prepared.plan, quantisation.opset)
        return prepared
    prepared = prepare(student, candidates[0], images, quantisation, progress=progress)
    prepared = choose_profile(prepared, candidates, teacher, images, partial(corrected, known=[]))
    check_loads(prepared, teacher, prepared_for(candidates, prepared.plan))
    if place is not None:
        prepared.save(place)
    return prepared
