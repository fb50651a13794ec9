"""Class folders are matched with the network's classes by name, or in an order that is said aloud; else refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.errors import UserError
from pipeline.images.sources.arrays import ArraySource
from pipeline.images.sources.image_source import EvaluationSet
from pipeline.networks.outputs.class_order import in_network_order, named_outputs, read_class_names
from pipeline.networks.outputs.meaning import Output

WHERE = {"source": "images:x", "flag": "eval-data"}


def classifier(classes: int = 3, names: tuple[str, ...] = (), *, file: bool = False) -> Output:
    output = Output(name="output", holds="classes", axis=1, shape=(classes,))
    return named_outputs((output,), names, said_by="--classes f" if file else "")[0]


def evaluation(labels: list[int], folders: tuple[str, ...] | None, *, ordered: bool = False) -> EvaluationSet:
    images = ArraySource("x", np.zeros((len(labels), 3, 2, 2), np.uint8))
    return EvaluationSet(images=images, labels=np.array(labels), folders=folders, ordered=ordered)


def test_folders_are_found_by_the_names_of_a_file() -> None:
    evaluated, order = in_network_order(
        evaluation([0, 1, 1], ("cat", "owl")), classifier(4, ("owl", "dog", "fox", "cat"), file=True), **WHERE
    )
    assert evaluated.labels is not None and evaluated.labels.tolist() == [3, 0, 0]
    assert order.names == ("owl", "dog", "fox", "cat") and not order.assumed
    with pytest.raises(
        UserError, match=r"class folders cow are not among the 4 class names of the network, such as owl"
    ):
        in_network_order(
            evaluation([0, 1], ("cat", "cow")), classifier(4, ("owl", "dog", "fox", "cat"), file=True), **WHERE
        )


def test_without_names_as_many_folders_are_taken_in_sorted_order_aloud() -> None:
    evaluated, order = in_network_order(evaluation([2, 0], ("cat", "dog", "owl")), classifier(), **WHERE)
    assert evaluated.labels is not None and evaluated.labels.tolist() == [2, 0]
    assert order.assumed and order.names == ("cat", "dog", "owl")
    assert order.known_by.endswith("in sorted order for the network's classes, 0 = cat, 1 = dog, 2 = owl")
    for folders in (("cat", "dog"), ("cat", "cow", "dog", "owl")):
        with pytest.raises(UserError, match=rf"has {len(folders)} class folders and the network 3 classes.*--classes"):
            in_network_order(evaluation([0], folders), classifier(), **WHERE)


def test_names_of_a_source_serve_where_they_are_the_folders() -> None:
    names = ("tench", "goldfish", "shark")
    evaluated, order = in_network_order(evaluation([0, 1], ("shark", "tench")), classifier(3, names), **WHERE)
    assert evaluated.labels is not None and evaluated.labels.tolist() == [2, 0] and not order.assumed
    _, order = in_network_order(evaluation([0, 1], ("n1", "n2", "n3")), classifier(3, names), **WHERE)
    assert order.assumed and order.names == ("n1", "n2", "n3"), "other names: their order is an assumption"


def test_indices_and_orders_of_ones_own_are_checked_against_the_network() -> None:
    evaluated, order = in_network_order(evaluation([0, 2], None), classifier(), **WHERE)
    assert evaluated.labels is not None and evaluated.labels.tolist() == [0, 2] and not order.assumed
    with pytest.raises(UserError, match="labels 0 to 7, but the network has 3 classes"):
        in_network_order(evaluation([0, 7], None), classifier(), **WHERE)
    with pytest.raises(UserError, match="its file has 2 class names and the network 3 classes"):
        in_network_order(evaluation([0, 1], ("b", "a"), ordered=True), classifier(), **WHERE)


def test_names_belong_to_every_output_that_has_so_many_classes(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("n01440764\nn01443537\nn01484850\n")
    names = read_class_names(tmp_path / "classes.txt")
    outputs = (
        Output(name="out", holds="classes", axis=1, shape=(3, 8, 8)),
        Output(name="scores", holds="labels", axis=1, shape=(20, 3)),
        Output(name="boxes", holds="values", axis=1, shape=(20, 3)),
        Output(name="other", holds="classes", axis=1, shape=(5,)),
    )
    named = named_outputs(outputs, names, said_by="--classes f")
    assert [output.names for output in named] == [names, names, (), ()]
    assert named[1].to_json() | {} == {
        "holds": "labels", "class_axis": 2, "threshold": 0.0, "class_names": list(names),
    }  # fmt: skip
    with pytest.raises(UserError, match="--classes f has 2 names, and no output has as many classes: out"):
        named_outputs(outputs, names[:2], said_by="--classes f")
    (tmp_path / "classes.txt").write_text("cat\ncat\n")
    with pytest.raises(UserError, match="one class name per line, each once"):
        read_class_names(tmp_path / "classes.txt")
