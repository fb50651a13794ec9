"""What each flag of a run needs in order to mean something: one row per flag, so that none is ignored without a word.

The rows are about flags alone, in the flat form of `RunConfig.to_json`; what a network or a machine lacks is said where
it is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from calibration.errors import UserError
from pipeline.config import flags
from pipeline.config.affinity_points import FA_CHOICES, Affinity
from pipeline.config.sources import NO_DATA
from pipeline.config.strategy import UNTRAINED
from pipeline.config.validation import EngineConfig, ValidationConfig

Settings = Mapping[str, Any]
"""Flag without dashes -> value as JSON has it, None where unset; every flag of the run is there."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """A condition on the other flags; `lacking` goes on from "--flag has no meaning " where it does not hold."""

    holds: Callable[[Settings], bool]
    lacking: Callable[[Settings], str]


def may_learn_in_float(settings: Settings) -> bool:
    """Whether another student may learn in float before it is quantised: as asked for, else where it has no weights.

    One that is named loosely may, until its source is known.
    """
    student = settings["student"]
    if student is None:
        return False
    if settings["float-steps"] is not None:
        return bool(settings["float-steps"])
    return settings["student-weights"] is None and str(student).partition(":")[0] not in ("torchvision", "timm")


def _ours(settings: Settings) -> bool:
    return bool(settings["quantiser"] == "faqd")


def _trains(settings: Settings) -> bool:
    return settings["strategy"] not in UNTRAINED


def _learns_quantised(settings: Settings) -> bool:
    return _ours(settings) and _trains(settings) and settings["steps"] != 0


def _learns(settings: Settings) -> bool:
    return _learns_quantised(settings) or may_learn_in_float(settings)


def _over_pixels(settings: Settings) -> bool:
    affinity = settings["affinity"]
    return affinity in FA_CHOICES or (affinity in get_args(Affinity) and settings["over"] == "pixels")


def _untrained(settings: Settings) -> str:
    if not _ours(settings):
        return f"with --quantiser {settings['quantiser']}, which does not train: leave it out"
    if not _trains(settings):
        return f"with --strategy {settings['strategy']}, which trains nothing: leave one of them out"
    return "with --steps 0, where no quantised network is trained: leave one of them out"


def _need(holds: Callable[[Settings], bool], lacking: str, *shown: str) -> Need:
    """A need whose words hold the values of the flags `shown`, in their order."""
    return Need(holds=holds, lacking=lambda settings: lacking.format(*(settings[key] for key in shown)))


_OURS = Need(holds=_ours, lacking=_untrained)
_LEARNS = Need(holds=_learns, lacking=_untrained)
_LEARNS_QUANTISED = Need(holds=_learns_quantised, lacking=_untrained)
_STEPS_OF_STRATEGY = Need(holds=lambda s: _trains(s) or s["steps"] == 0, lacking=_untrained)
_ROUNDED_BY_STRATEGY = _need(
    lambda s: (s["strategy"], s["rounding"]) not in (("calibrate", "least-squares"), ("reconstruct", "nearest")),
    "with --strategy {}, which rounds otherwise: leave one of them out",
    "strategy",
)
_USES_IMAGES = Need(holds=lambda s: _ours(s) or may_learn_in_float(s), lacking=_untrained)
_LEARNS_IN_FLOAT = _need(
    may_learn_in_float,
    "where no student learns in float: that is for a --student without weights, or with --float-steps; leave it out",
)
_HAS_STUDENT = _need(
    lambda s: s["student"] is not None or s["float-steps"] == 0,
    "without --student: the teacher's own copy has nothing to learn from it in float",
)
_AUGMENTED = Need(
    holds=lambda s: _learns(s) or (_ours(s) and s["targets"] == "auto"),  # where images flip, targets may be averaged
    lacking=_untrained,
)
_SOFTENED = _need(
    lambda s: s["logit-loss"] == "kl" or s["sakd-weight"] is not None or s["speq-weight"] is not None,
    "with --logit-loss {}, which softens nothing: use --logit-loss kl, or leave it out",
    "logit-loss",
)
_SCALES_LEARN = _need(
    lambda s: s["learned-scales"] != "none",
    "with --learned-scales none: no scale is learned; leave one of them out",
)
_JUDGED_ON_THE_WAY = _need(
    lambda s: s["batch-norm"] == "folded" or (s["batch-norm"] == "auto" and min(s["bits"], s["activation-bits"]) >= 4),
    "where layers are normalised in training, whose weights are judged once that is folded away: use --batch-norm"
    " folded, or leave it out",
)
_HAS_AFFINITY = _need(
    lambda s: s["affinity"] != "none", "with --affinity none, which compares no features: leave one of them out"
)
_TAPPED = _need(
    lambda s: s["affinity"] != "none" or s["sakd-weight"] is not None,
    "with --affinity none and no --sakd-weight: no features are compared; leave it out",
)
_ORDERED = _need(
    lambda s: s["affinity"] in ("fa", "ffa"),
    "with --affinity {}: it belongs to --affinity fa and ffa; leave it out",
    "affinity",
)
_PROJECTED = _need(
    lambda s: s["affinity"] in ("auto", "ffa"),
    "with --affinity {}, which projects nothing: use --affinity ffa or auto, or leave it out",
    "affinity",
)
_ADAPTED = _need(
    _over_pixels,
    "with --affinity {}: it belongs to losses over pixels; leave it out",
    "affinity",
)
_FREE_AXES = _need(
    lambda s: s["affinity"] in get_args(Affinity),
    "with --affinity {}, which leaves no choice of it: leave it out",
    "affinity",
)
_SECOND_PASS = _need(
    lambda s: s["speq-weight"] is not None, "without --speq-weight, whose second pass it steers: add that weight"
)
_GENERATES = _need(
    lambda s: s["data"] == NO_DATA, "with --data {}: images are generated with --data none alone; leave it out", "data"
)
_READS_IMAGES = _need(
    lambda s: s["data"] != NO_DATA, "with --data none: generated images lie in memory and are not decoded; leave it out"
)
_BUILDS_ENGINE = Need(
    holds=lambda s: bool(s["backend"] == "tensorrt"),
    lacking=lambda s: f"with --backend {s['backend']}, which builds no engine: it is for --backend tensorrt",
)
_BUILT_BY_SDK = _need(
    lambda s: s["runner"] == "tensorrt" or s["hardware-compatibility"] != "same-compute-capability",
    "with --runner onnxruntime, which knows none and ampere-plus alone: use --runner tensorrt",
)
_VERSIONED_BY_SDK = _need(
    lambda s: s["runner"] == "tensorrt", "with --runner onnxruntime, which has no such engines: use --runner tensorrt"
)
_HAS_THREADS = _need(
    lambda s: s["backend"] != "tensorrt", "with --backend tensorrt, whose engines run on the GPU: leave it out"
)
_RESUMES = _need(lambda s: bool(s["resume"]), "without --resume: a new run trains from the first step on")

ALWAYS: tuple[Need, ...] = ()


def _no_wider(key: str) -> Need:
    """Layers with a width of their own get no fewer bits than all have; other quantisers say what they take."""
    return Need(
        holds=lambda s: not _ours(s) or bool(s[key] >= s["bits"]),
        lacking=lambda s: f"with --bits {s['bits']}, below which no layer goes: use --bits {s[key]}, or leave it out",
    )


#: Flag -> what it needs of the others, the first that is lacking is told. A flag without a row is a mistake of ours.
NEEDS: Mapping[str, tuple[Need, ...]] = {
    # Teacher and student: what a source has no use for is said where it is opened.
    "teacher": ALWAYS,
    "weights": ALWAYS,
    # Preprocessing: what does not go together is said where a source's own is overridden.
    "image-size": ALWAYS,
    "fit": ALWAYS,
    "resize": ALWAYS,
    "crop-ratio": ALWAYS,
    "fill": ALWAYS,
    "placement": ALWAYS,
    "interpolation": ALWAYS,
    "channel-order": ALWAYS,
    "divisor": ALWAYS,
    "mean": ALWAYS,
    "std": ALWAYS,
    "stored-bits": ALWAYS,
    "submodule": ALWAYS,
    "output-kinds": ALWAYS,
    "classes": ALWAYS,
    "student": ALWAYS,
    "student-weights": ALWAYS,  # StudentConfig has its line
    # Data.
    "data": ALWAYS,
    "workers": (_READS_IMAGES,),
    "augmentation": (_AUGMENTED,),
    "calibration-images": ALWAYS,
    "held-out-images": ALWAYS,
    "generator-steps": (_GENERATES,),
    "generated-images": (_GENERATES,),
    "strategy": (_OURS,),
    # Quantisation: what a backend or a quantiser does not have at all is said in the group and in post_training.
    "backend": ALWAYS,
    "target": ALWAYS,
    "quantiser": ALWAYS,
    "bits": ALWAYS,
    "first-bits": (_no_wider("first-bits"),),
    "depthwise-bits": (_no_wider("depthwise-bits"),),
    "last-bits": (_no_wider("last-bits"),),
    "activation-bits": ALWAYS,
    "range": (_OURS,),
    "rounding": (_OURS, _ROUNDED_BY_STRATEGY),
    "learned-scales": (_LEARNS_QUANTISED,),
    "weight-grids": (_LEARNS_QUANTISED,),
    "activation-grids": (_LEARNS_QUANTISED,),
    "rest": ALWAYS,
    "weight-only": ALWAYS,  # "none" is what every other backend does
    "opset": ALWAYS,
    "static-batch": ALWAYS,
    "dynamic-size": ALWAYS,
    "external-data-above": ALWAYS,
    # Distillation.
    "steps": (_OURS, _STEPS_OF_STRATEGY),
    "patience": (_LEARNS_QUANTISED, _JUDGED_ON_THE_WAY),
    "minutes": (_LEARNS_QUANTISED,),
    "float-steps": (_HAS_STUDENT,),
    "float-learning-rate": (_LEARNS_IN_FLOAT,),
    "batch-norm": (_LEARNS_QUANTISED,),
    "batch-size": (_LEARNS,),
    "learning-rate": (_LEARNS_QUANTISED,),
    "optimiser": (_LEARNS_QUANTISED,),
    "weight-decay": (_LEARNS_QUANTISED,),
    "scale-learning-rate": (_LEARNS_QUANTISED, _SCALES_LEARN),
    "targets": (_USES_IMAGES,),
    "logit-loss": (_LEARNS,),
    "temperature": (_LEARNS, _SOFTENED),
    "logit-weight": (_LEARNS,),
    "class-weight": (_LEARNS,),
    "label-weight": (_LEARNS,),
    "affinity": (_LEARNS,),
    "affinity-order": (_LEARNS, _HAS_AFFINITY, _ORDERED),
    "normalise": (_LEARNS, _HAS_AFFINITY, _FREE_AXES),
    "distance": (_LEARNS, _HAS_AFFINITY, _FREE_AXES),
    "over": (_LEARNS, _HAS_AFFINITY, _FREE_AXES),
    "affinity-weight": (_LEARNS, _HAS_AFFINITY),
    "adapters": (_LEARNS, _HAS_AFFINITY, _ADAPTED),
    "feed-weight": (_LEARNS,),
    "sakd-weight": (_LEARNS,),
    "speq-weight": (_LEARNS_QUANTISED,),  # a float network has no other precisions
    "speq-bits": (_LEARNS_QUANTISED, _SECOND_PASS),
    "speq-probability": (_LEARNS_QUANTISED, _SECOND_PASS),
    "generations": (_LEARNS_QUANTISED,),
    "projections": (_LEARNS, _HAS_AFFINITY, _PROJECTED),
    "taps": (_LEARNS, _TAPPED),
    # Validation.
    "eval-data": ALWAYS,
    "threads": (_HAS_THREADS,),
    "batch": ALWAYS,
    "max-drop": ALWAYS,
    "output-max-drop": ALWAYS,
    "parity-images": ALWAYS,
    "min-speedup": ALWAYS,
    # TensorRT engine.
    "runner": (_BUILDS_ENGINE,),
    "batches": (_BUILDS_ENGINE,),
    "workspace-mib": (_BUILDS_ENGINE,),
    "optimisation-level": (_BUILDS_ENGINE,),
    "hardware-compatibility": (_BUILDS_ENGINE, _BUILT_BY_SDK),
    "version-compatible": (_BUILDS_ENGINE, _VERSIONED_BY_SDK),
    "timing-cache": (_BUILDS_ENGINE,),
    # Execution and output.
    "device": (_USES_IMAGES,),
    "precision": (_LEARNS,),
    "seed": ALWAYS,
    "training-threads": ALWAYS,
    "output": ALWAYS,
    "overwrite": ALWAYS,
    "resume": ALWAYS,
    "restart-training": (_RESUMES,),
}

#: Values by which a flag asks for nothing, so that there is nothing to ignore.
_NEUTRAL = (None, False, "auto", "none", "identity")
#: Flags of which every value asks for something.
_ASKED_BY_ANY = ("strategy",)


def lacking(key: str, settings: Settings) -> str | None:
    """Why a flag has no meaning beside the others, words to go on from "--flag has no meaning"; None: it has one."""
    return next((need.lacking(settings) for need in NEEDS[key] if not need.holds(settings)), None)


def check_meanings(settings: Settings, asked: Collection[str]) -> None:
    """Check that every flag that was asked for means something beside the others.

    Raises:
        UserError: one would be ignored; the line names it and what it lacks.
    """
    for key in (key for key in NEEDS if key in asked):
        why = lacking(key, settings)
        # True and 1 are equal in Python, and so are False and 0: a number asks for something.
        nothing = any(settings[key] is neutral or settings[key] == neutral for neutral in _NEUTRAL)
        if why is not None and (key in _ASKED_BY_ANY or not nothing):
            value = "" if settings[key] is True else f" {flags.as_typed(settings[key])}"
            raise UserError(f"--{key}{value} has no meaning {why}")


def check_bundle_meanings(
    limits: ValidationConfig, engine: EngineConfig, *, backend: str, emulated: str | None = None
) -> None:
    """Check the same of what a finished bundle of a backend is validated with, here or on an `emulated` processor.

    Raises:
        UserError: a flag would be ignored; the line names it and what it lacks.
    """
    settings, defaults = (
        {**flags.settings_of(one), **flags.settings_of(other)}
        for one, other in ((limits, engine), (type(limits)(), type(engine)()))
    )
    asked = [key for key, value in settings.items() if value != defaults[key]]
    if "classes" in asked and limits.eval_data is None:
        raise UserError(
            f"--classes {limits.classes} has no meaning without --eval-data, whose class folders it matches with the"
            " outputs"
        )
    if "parity-images" in asked and limits.eval_data is None:
        raise UserError(
            f"--parity-images {limits.parity_images} has no meaning without --eval-data: the bundle's golden images are"
            " all compared"
        )
    timed = [key for key in ("threads", "batch", "min-speedup") if key in asked]
    if emulated is not None and timed:
        value = flags.as_typed(settings[timed[0]])
        raise UserError(f"--{timed[0]} {value} has no meaning with --emulate {emulated}, whose times are not measured")
    check_meanings({**settings, "backend": backend}, [key for key in asked if NEEDS[key] != ALWAYS])


def meaningful(chosen: Settings, settings: Settings, defaults: Settings) -> dict[str, Any]:
    """Those settings of a recipe that still mean something where `settings`, the user's own, win over them."""
    kept = dict(chosen)
    while True:
        together = {**defaults, **kept, **settings}
        idle = [key for key in kept if key not in settings and lacking(key, together) is not None]
        if not idle:
            return kept
        del kept[idle[-1]]
