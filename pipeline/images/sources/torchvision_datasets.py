"""`torchvision:CIFAR10?root=DIR&split=train`: torchvision's data sets."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np

from calibration.errors import UserError
from pipeline.images.sources.arrays import ArraySource, as_channels_first
from pipeline.images.sources.image_source import EvaluationSet
from pipeline.images.sources.items import ItemSource, labels_of_items
from pipeline.images.sources.python_dataset import item_count
from pipeline.tools.source_text import close_matches, split_options, yes_or_no
from pipeline.tools.user_code import UserCode

_IN_MEMORY = {
    "CIFAR10",
    "CIFAR100",
    "EMNIST",
    "FashionMNIST",
    "KMNIST",
    "MNIST",
    "QMNIST",
    "STL10",
    "SVHN",
    "USPS",
}
"""Classes whose attribute `data` holds exactly the images that their items show, as one uint8 array."""

# Ours -> theirs, tried in this order where a class names its splits itself.
_SPLIT_NAMES = {"val": ("val", "valid", "validation"), "train": ("train", "train-standard")}


def open_torchvision(rest: str, *, labelled: bool) -> EvaluationSet:
    """Open `CLASS?root=DIR&split=train|test|val`; further options go to the class by name.

    The default split is train for training, and for evaluation test (val where there is no test).
    `download=true` lets the class fetch its files; otherwise nothing is downloaded.

    Raises:
        UserError: unknown class, option or split, missing files, or items that are not single images.
    """
    where = f"torchvision:{rest}"
    name, options = split_options(rest, None, where)
    from torchvision import datasets  # here: the import takes a second that other sources need not wait

    known = [key for key, value in vars(datasets).items() if _is_data_set(value, datasets.VisionDataset)]
    if name not in known:
        raise UserError(f"{where}: unknown data set {name!r}; {close_matches(name, known)}")
    data_set = _construct(getattr(datasets, name), options, where, labelled=labelled)
    count = item_count(data_set, where)
    labels = labels_of_items(data_set, count, where) if labelled else None
    if name in _IN_MEMORY:
        pixels = as_channels_first(np.asarray(data_set.data), where)
        return EvaluationSet(images=ArraySource(where, pixels), labels=labels)
    return EvaluationSet(images=ItemSource(where, data_set), labels=labels)


def _is_data_set(value: object, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base) and value is not base


def _construct(kind: Any, options: dict[str, str], where: str, *, labelled: bool) -> Any:
    parameters = _parameters(kind)
    arguments: dict[str, Any] = {}
    for key, value in options.items():
        if key in ("split", "download", "root"):
            continue
        if key not in parameters or "transform" in key or key == "loader":
            allowed = sorted({"split"} | {p for p in parameters if "transform" not in p and p != "loader"})
            raise UserError(f"{where}: {kind.__name__} has no option {key!r}; known: {', '.join(allowed)}")
        arguments[key] = _converted(value, parameters[key].default, f"{where}: {key}")
    download = yes_or_no(options, "download", where, default=False)
    if "download" in parameters:
        arguments["download"] = download
    elif download:
        raise UserError(f"{where}: {kind.__name__} cannot download; fetch its files by hand")
    if "root" in parameters:
        if "root" not in options:
            raise UserError(f"{where}: add ?root=DIR, the folder of the data set")
        root = Path(options["root"]).expanduser()
        if not download and not root.is_dir():
            raise UserError(f"{where}: there is no folder {root}")
        arguments["root"] = str(root)
    choices = _splits(kind, parameters, options, where, labelled=labelled)
    for choice in choices[:-1]:
        try:
            return _called(kind, arguments | choice, where)
        except UserError as error:
            # torchvision's words where a class does not have a split of that name.
            if "for argument split" not in str(error):
                raise
    return _called(kind, arguments | choices[-1], where)


def _parameters(kind: type) -> dict[str, inspect.Parameter]:
    """Named parameters of a class and, where it passes on **kwargs, of its bases."""
    by_name: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        named = (parameter for parameter in parameters if parameter.kind is not inspect.Parameter.VAR_KEYWORD)
        by_name = {parameter.name: parameter for parameter in named if parameter.name != "self"} | by_name
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return by_name


def _splits(
    kind: Any,
    parameters: dict[str, inspect.Parameter],
    options: dict[str, str],
    where: str,
    *,
    labelled: bool,
) -> list[dict[str, Any]]:
    """Keyword arguments to try in turn for the split."""
    asked = options.get("split")
    if "train" in parameters and asked in (None, "train", "test"):
        if "train" in options:
            return [{}]
        return [{"train": asked == "train" if asked else not labelled}]
    if "split" in parameters:
        if asked is not None:
            return [{"split": name} for name in _SPLIT_NAMES.get(asked, (asked,))]
        return [{"split": name} for name in (("test", "val", "valid") if labelled else _SPLIT_NAMES["train"])]
    if asked is not None:
        what = "splits train and test only" if "train" in parameters else "no splits"
        raise UserError(f"{where}: {kind.__name__} has {what}, not split={asked}")
    return [{}]


def _called(kind: Any, arguments: dict[str, Any], where: str) -> Any:
    try:
        # Missing files, wrong splits and failed downloads come as many types of exception.
        with UserCode(where):
            return kind(**arguments)
    except UserError as error:
        cause = error.__cause__
        text = f"{type(cause).__name__}: {cause}"
        missing = isinstance(cause, FileNotFoundError) or "not found" in text or "download=True" in text
        if missing and "download" in arguments and not arguments["download"]:
            raise UserError(
                f"{where}: the files of {kind.__name__} are not in {arguments.get('root')} or are damaged; "
                "correct root= or add &download=true"
            ) from None
        raise UserError(f"{where}: {text}") from None


def _converted(text: str, default: Any, where: str) -> Any:
    """Turn an option's text into the type of the parameter's default."""
    try:
        if isinstance(default, bool) or text.lower() in ("true", "false"):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, int):
            return int(text)
        if isinstance(default, float):
            return float(text)
        if isinstance(default, tuple):
            return tuple(int(part) for part in text.split(","))
    except (ValueError, KeyError):
        raise UserError(f"{where}={text} must be a {type(default).__name__}, like {default}") from None
    return text
