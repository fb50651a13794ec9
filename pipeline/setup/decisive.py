"""Which setting decides which of the things that a run makes: the one list.

What a resumed run may change (`pipeline.setup.resumption`) and what each thing is known by (`pipeline.setup.
run_identity`) both follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pipeline.config import flags
from pipeline.config.distillation import DistillationConfig
from pipeline.config.preprocessing import PreprocessingConfig
from pipeline.config.validation import EngineConfig

DATA: Final = "data"
#: Input of a run -> the flags that name it or say how it is read: what it holds then is compared, not how it is named.
INPUTS: Final[Mapping[str, tuple[str, ...]]] = {
    "teacher": ("teacher", "weights", "submodule", "output-kinds", *flags.flags(PreprocessingConfig)),
    "student": ("student", "student-weights"),
    DATA: (DATA, "classes"),  # labels of class folders, which a loss may look at, are in the order of these names
}
IDENTIFIED: Final = frozenset(key for keys in INPUTS.values() for key in keys)

_GENERATED, _FLOAT, _CALIBRATION = "generated images", "float student", "calibration"
_RECONSTRUCTION, _TRAINING = "reconstruction", "training"
#: What a run keeps before it has a bundle, in the order in which it is made.
PARTS: Final = (_GENERATED, _FLOAT, _CALIBRATION, _RECONSTRUCTION, _TRAINING)
#: What it ends with: files and report.
BUNDLE: Final = "bundle"

# Training in float, and training of the quantised student alone; what else says how to learn is said of both.
_IN_FLOAT = frozenset({"float-steps", "float-learning-rate"})
_QUANTISED = frozenset(
    {
        "steps",
        "patience",
        "minutes",
        "batch-norm",
        "learning-rate",
        "optimiser",
        "weight-decay",
        "scale-learning-rate",
        "generations",
    }
)
_LEARNING = frozenset(flags.flags(DistillationConfig)) - _IN_FLOAT - _QUANTISED
_PLACEMENT = (
    "backend", "target", "quantiser", "bits", "first-bits", "depthwise-bits", "last-bits", "activation-bits",
    "weight-only", "dynamic-size",
)  # fmt: skip
_GRIDS = ("learned-scales", "weight-grids", "activation-grids", "precision")
_SCORING = ("eval-data", "threads", "batch", "max-drop", "output-max-drop", "parity-images", "min-speedup")

# Settings, each of which stands here once, and what they decide, that which is made of it among it: all end in the
# bundle, but for those that say only where and how fast, or what is to be made again.
_LIST: Final = (
    # What every number that is computed hangs on, in its last bits at least.
    ((*INPUTS["teacher"], "seed", "training-threads", "generator-steps", "generated-images"), (*PARTS, BUNDLE)),
    ((*INPUTS["student"], DATA, "held-out-images"), (_FLOAT, _CALIBRATION, _RECONSTRUCTION, _TRAINING, BUNDLE)),
    ((*_LEARNING, "classes", "augmentation"), (_FLOAT, _TRAINING, BUNDLE)),
    (_IN_FLOAT, (_FLOAT, BUNDLE)),
    ((*_PLACEMENT, "calibration-images", "range"), (_CALIBRATION, _RECONSTRUCTION, _TRAINING, BUNDLE)),
    (("rounding",), (_RECONSTRUCTION, _TRAINING, BUNDLE)),
    # A strategy that takes reconstructed weights takes the same as any other.
    (("strategy", *_QUANTISED, *_GRIDS), (_TRAINING, BUNDLE)),
    ((*flags.flags(EngineConfig), "rest", "opset", "static-batch", "external-data-above", *_SCORING), (BUNDLE,)),
    (("output", "overwrite", "resume", "restart-training", "workers", "device"), ()),
)
#: Setting -> what it decides.
DECIDES: Final[Mapping[str, tuple[str, ...]]] = {key: made for keys, made in _LIST for key in keys}
#: Settings that decide nothing.
FREE: Final = frozenset(key for key, made in DECIDES.items() if not made)


def decides(key: str, made: str) -> bool:
    """Whether a setting decides one of `PARTS` or the bundle; one that the list does not name decides all of them."""
    return made in DECIDES.get(key, (*PARTS, BUNDLE))
