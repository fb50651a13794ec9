"""The commands as functions; what they need is imported when they are called."""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

from faqd.calls import own_call

if TYPE_CHECKING:
    from faqd.results import Artifact
    from pipeline.bundle.bundle import Bundle
    from pipeline.config import EngineConfig, RunConfig, ValidationConfig
    from pipeline.config.compare import CompareConfig
    from pipeline.report.comparison import ComparisonReport
    from pipeline.report.schema import Report
    from pipeline.tools.progress import Progress


def run(config: RunConfig | None = None, *, progress: Progress | bool | None = None) -> Report:
    """Quantise, distil, convert and validate a network; the report, whose files and bundle are in `config.folder` then.

    `config` None: the embedded digits. `progress` True for a bar, or who else is to hear; None: nothing is said.

    Raises:
        UserError: a mistake in the input, as one line.
    """
    with own_call():
        from faqd.checks import configured, progress_of
        from pipeline.config import RunConfig
        from pipeline.run import run as run_pipeline

        return run_pipeline(configured(config, RunConfig), progress_of(progress))


def validate(
    artifact: Artifact | Bundle | str | PathLike[str],
    images: Any = None,
    config: ValidationConfig | None = None,
    *,
    engine: EngineConfig | None = None,
    emulate: str | None = None,
    key: str | PathLike[str] | None = None,
    progress: Progress | bool | None = None,
) -> Report:
    """Judge an artifact, or the bundle of a run, on this machine's runtime.

    Args:
        artifact: of `convert`; or a bundle or its folder.
        images: to score on, with labels if there are any: all that `open_images` takes, and pairs of images and labels;
            for a bundle, named as of --eval-data. None: of an artifact the images held out of its own, of a bundle its
            golden images.
        config: limits, threads and batch.
        engine: how TensorRT's engines are built.
        emulate: a processor to run a bundle on instead, x86-avx2 or arm64.
        key: file of the key that the bundle is signed by.
        progress: True for a bar, or who else is to hear.

    Raises:
        UserError: a mistake in the input, as one line.
    """
    with own_call():
        from calibration.errors import UserError
        from faqd.checks import configured, key_file, path_of, progress_of
        from faqd.results import Artifact
        from faqd.stages import validated
        from pipeline.bundle.bundle import Bundle
        from pipeline.config import EngineConfig, ValidationConfig
        from pipeline.run import validate_bundle

        if isinstance(images, ValidationConfig):
            raise UserError("validate takes images second: give the ValidationConfig as config=...")
        limits, engines = configured(config, ValidationConfig), configured(engine, EngineConfig)
        if isinstance(artifact, Artifact):
            for name, value in {"emulate": emulate, "key": key}.items():
                if value is not None:
                    raise UserError(f"validate({name}={value!r}) is for the bundle of a run, not for an artifact")
            return validated(artifact, images, limits, engines, progress_of(progress))
        taken = "an artifact of faqd.convert, a bundle or its folder, first"
        folder = artifact.folder if isinstance(artifact, Bundle) else path_of(artifact, "validate", taken)
        limits = _with_images(limits, images)
        return validate_bundle(
            folder, limits, engines, progress_of(progress), emulate=emulate, key=key_file(key, "validate")
        )


def write_bundle(
    artifact: Artifact,
    folder: str | PathLike[str],
    images: Any = None,
    config: ValidationConfig | None = None,
    *,
    engine: EngineConfig | None = None,
    overwrite: bool = False,
    progress: Progress | bool | None = None,
) -> Bundle:
    """Judge an artifact and write the bundle that goes to its device, as a run does; it is complete or absent.

    It holds model.onnx, manifest.json, golden images, check.py, preprocess.py and the report, which is `.report` of
    what is returned. The float network, for comparisons, is written beside the folder, as float.onnx.

    Args:
        artifact: of `convert`.
        folder: becomes the bundle.
        images: to score on, as of `validate` of an artifact; golden images are the first of them.
        config: limits, threads and batch.
        engine: how TensorRT's engines are built.
        overwrite: whether an earlier bundle in the folder, and another float.onnx beside it, are replaced.
        progress: True for a bar, or who else is to hear.

    Raises:
        UserError: a mistake in the input, or the place is taken or cannot be written.
    """
    with own_call():
        from faqd.checks import configured, path_of, progress_of
        from faqd.stages import bundled
        from pipeline.config import EngineConfig, ValidationConfig

        return bundled(
            artifact,
            path_of(folder, "write_bundle", "the folder that becomes the bundle, second").expanduser(),
            images,
            configured(config, ValidationConfig),
            configured(engine, EngineConfig),
            progress_of(progress),
            overwrite=overwrite,
        )


def compare(
    bundle: Bundle | str | PathLike[str],
    config: CompareConfig | None = None,
    *,
    key: str | PathLike[str] | None = None,
    progress: Progress | bool | None = None,
) -> ComparisonReport:
    """Compare a bundle's integers with its runtime's, or with another model's, tensor by tensor.

    `key`: file of the key that it is signed by.

    Raises:
        UserError: a mistake in the input, as one line.
    """
    with own_call():
        from faqd.checks import configured, key_file, path_of, progress_of
        from pipeline.bundle.bundle import Bundle
        from pipeline.config.compare import CompareConfig
        from pipeline.run import compare as compare_models

        folder = bundle.folder if isinstance(bundle, Bundle) else path_of(bundle, "compare", "a bundle or its folder")
        settings = configured(config, CompareConfig)
        return compare_models(folder, settings, progress_of(progress), key=key_file(key, "compare"))


def _with_images(limits: ValidationConfig, images: Any) -> ValidationConfig:
    """The limits with the images of a bundle's validation, which are named."""
    from dataclasses import replace

    from calibration.errors import UserError

    if images is None:
        return limits
    if limits.eval_data is not None:
        raise UserError(f"validate(images=...) and eval_data={limits.eval_data!r} say the same: give one of them")
    if not isinstance(images, str) and not hasattr(images, "__fspath__"):
        raise UserError(
            f"images for a bundle are named (images:FOLDER, npz:FILE#images,labels, python:...), not a"
            f" {type(images).__name__}; those at hand are for the artifact of faqd.convert"
        )
    return replace(limits, eval_data=str(images))
