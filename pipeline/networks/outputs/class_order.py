"""Which class a label means: class folders matched by name with the network's classes, or in an order said aloud."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from calibration.errors import UserError
from pipeline.images.sources.folder import class_lines
from pipeline.images.sources.image_source import EvaluationSet
from pipeline.networks.outputs.meaning import Output
from pipeline.tools.source_text import batch_shape, shortened

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class ClassOrder:
    """What the labels of a set mean: `names` of the network's classes in order (empty where nobody named them), and
    how that is known, as half a sentence.
    """

    names: tuple[str, ...]
    known_by: str
    assumed: bool = False


def read_class_names(path: Path) -> tuple[str, ...]:
    """The lines of `--classes FILE`, one class name each. Raises UserError for a file that holds something else."""
    return class_lines(path.expanduser(), f"--classes {path}")


def named_outputs(outputs: Sequence[Output], names: Sequence[str], *, said_by: str = "") -> tuple[Output, ...]:
    """The outputs, with names for those that tell as many classes or labels apart.

    Raises UserError where `said_by` names a user's file whose count fits none of them.
    """
    named = tuple(_named(output, tuple(names), final=bool(said_by)) for output in outputs)
    if said_by and names and not any(output.names for output in named):
        sizes = ", ".join(f"{output.name} {batch_shape(output.shape)} {output.holds}" for output in outputs)
        raise UserError(f"{said_by} has {len(names)} names, and no output has as many classes: {sizes}")
    return named


def _named(output: Output, names: tuple[str, ...], *, final: bool) -> Output:
    if output.holds == "classes":
        return replace(output, names=names, names_are_final=final) if output.classes == len(names) else output
    if output.holds == "labels" and len(names) in output.shape:
        # Labels have no axis of their own until names say which one it is.
        return replace(output, names=names, names_are_final=final, axis=1 + output.shape.index(len(names)))
    return output


def in_network_order(
    evaluation: EvaluationSet, output: Output, *, source: str, flag: str
) -> tuple[EvaluationSet, ClassOrder]:
    """The set with labels that are indices of the classifier's outputs, and how that is known.

    `output` may have names of its classes: folders are matched by them. `flag`: where `source` was given.

    Raises UserError where folders are not among the names, where there are no names and other than as many folders as
    classes, and where a label is no class of the network.
    """
    classes, labels = output.classes, evaluation.labels
    assert classes is not None and labels is not None
    where, folders = f"--{flag} {source}", evaluation.folders
    if folders is None:
        if labels.size and not 0 <= labels.min() <= labels.max() < classes:
            raise UserError(
                f"--{flag} has labels {labels.min()} to {labels.max()}, but the network has"
                f" {classes} classes, 0 to {classes - 1}"
            )
        return evaluation, ClassOrder(names=output.names, known_by="its labels are taken as indices of the outputs")
    used = [folders[index] for index in np.unique(labels)]
    if evaluation.ordered:
        if len(folders) != classes:
            raise UserError(f"{where}: its file has {len(folders)} class names and the network {classes} classes")
        return evaluation, ClassOrder(names=folders, known_by="class folders are matched by name with classes=FILE")
    if output.names and (output.names_are_final or set(used) <= set(output.names)):
        places = {name: index for index, name in enumerate(output.names)}
        if unknown := [name for name in used if name not in places]:
            raise UserError(
                f"{where}: class folders {shortened(unknown)} are not among the {classes} class names of the network,"
                f" such as {shortened(output.names)}: correct --classes FILE or the folders' names"
            )
        matched = np.array([places.get(name, 0) for name in folders], dtype=np.int64)[labels]
        order = ClassOrder(names=output.names, known_by="class folders are matched by name")
        return replace(evaluation, labels=matched), order
    if len(folders) != classes:
        raise UserError(
            f"{where} has {len(folders)} class folders and the network {classes} classes: say which is which with"
            " --classes FILE, one class name a line in the order of the network's outputs"
        )
    shown = ", ".join(f"{index} = {name}" for index, name in enumerate(folders[:_SHOWN]))
    more = f", ... {classes - 1} = {folders[-1]}" if classes > _SHOWN else ""
    known_by = f"class folders are taken in sorted order for the network's classes, {shown}{more}"
    return evaluation, ClassOrder(names=folders, known_by=known_by, assumed=True)
