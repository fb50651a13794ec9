"""What a resumed run may change: which setting decides which of the things that a run keeps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from calibration.errors import UserError
from pipeline import flags
from pipeline.config import DistillationConfig, EngineConfig, PreprocessingConfig

NETWORKS: Final = ("teacher", "weights", "student", "student-weights")
DATA: Final = "data"
#: Settings that decide nothing that is made, only where and how fast.
FREE: Final = frozenset({"output", "overwrite", "resume", "workers", "device"})

_TEACHER = frozenset({"teacher", "weights", "output-kinds", "submodule", "seed"}) | frozenset(
    flags.flags(PreprocessingConfig)
)
_GENERATOR = frozenset({"generator-steps", "generated-images"})
_IMAGES = frozenset({DATA, "held-out-images"}) | _GENERATOR
_STUDENT = frozenset({"student", "student-weights"})
_FLOAT = frozenset({"float-steps", "float-learning-rate"})
_LEARNING = frozenset(flags.flags(DistillationConfig)) - _FLOAT
# Training of the quantised student alone.
_ITS_STEPS = frozenset(
    {"steps", "batch-norm", "learning-rate", "optimiser", "weight-decay", "scale-learning-rate", "generations"}
)
_PLACEMENT = frozenset(
    {"backend", "target", "quantiser", "bits", "first-bits", "depthwise-bits", "last-bits", "activation-bits",
     "weight-only", "dynamic-size"}
)  # fmt: skip
_CALIBRATION = frozenset({"calibration-images", "range"})
# Labels of class folders, which a loss may look at, are in the order of these names.
_NAMES = frozenset({"classes"})
_GRIDS = frozenset({"learned-scales", "weight-grids", "activation-grids", "precision", "augmentation"})
#: Settings of the files and of their validation: all that is made of them comes last, with the bundle.
LATE: Final = frozenset(flags.flags(EngineConfig)) | {
    "rest", "opset", "static-batch", "external-data-above",
    "eval-data", "threads", "batch", "max-drop", "output-max-drop", "min-speedup",
}  # fmt: skip

#: What a run keeps -> the settings that decide it, those of what it was made from among them.
DECIDED_BY: Final[Mapping[str, frozenset[str]]] = {
    "generated images": _TEACHER | _GENERATOR,
    "float student": _TEACHER | _STUDENT | _IMAGES | _FLOAT | _NAMES | {"augmentation"} | (_LEARNING - _ITS_STEPS),
    "calibration": _TEACHER | _STUDENT | _IMAGES | _PLACEMENT | _CALIBRATION,
    "training": _TEACHER | _STUDENT | _IMAGES | _PLACEMENT | _CALIBRATION | _LEARNING | _GRIDS | _NAMES,
}
_KNOWN = FREE.union(LATE, *DECIDED_BY.values())


def decides(key: str, kept: str) -> bool:
    """Whether a setting decides one of the things that a run keeps; one that no table names decides all of them."""
    return key in DECIDED_BY[kept] or key not in _KNOWN


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ and are not free, in the order of the flags."""
    return [key for key in (*now, *(before.keys() - now.keys())) if key not in FREE and before.get(key) != now.get(key)]


def check_changes(before: Mapping[str, Any], now: Mapping[str, Any], finished: Collection[str], *, folder: str) -> None:
    """Check that no setting has changed which decides what is finished.

    A source may be named otherwise: what it holds is compared when it has been read (see `check_same_inputs`).

    Raises:
        UserError: one has; the line names the flag, both values and what they decide.
    """
    for key in changed_keys(before, now):
        if key in NETWORKS or key == DATA:
            continue
        for kept in finished:
            if decides(key, kept):
                raise UserError(
                    f"--resume: --{key} was {_shown(before.get(key))} and is {_shown(now.get(key))} now, and the "
                    f"{kept} in {folder} was made with the former: give that again, or start anew with --overwrite"
                )


def check_same_inputs(
    before: Mapping[str, str],
    now: Mapping[str, str],
    settings: Mapping[str, Any],
    finished: Collection[str],
    *,
    folder: str,
) -> None:
    """Check that networks and images are those that the finished parts were made from, whatever they are called now.

    `before` and `now`: the identity of what each flag names.

    Raises:
        UserError: one is another; the line names the flag.
    """
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) == now.get(key):
            continue
        for kept in finished:
            if decides(key, kept):
                what = "does not hold the images" if key == DATA else "is not the network, weights and all,"
                raise UserError(
                    f"--resume: --{key} {_shown(settings.get(key))} {what} that the {kept} in {folder} was"
                    " made from: give those again, or start anew with --overwrite"
                )


def _shown(value: Any) -> str:
    return "not given" if value is None else flags.shown(value)
