"""Wrong calls of the chain: the command's own line, one line each, nothing ignored in silence."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import faqd
from pipeline.cli import main
from tests.faqd.conftest import pixels, small


@cache
def _both() -> tuple[faqd.Network, faqd.Images]:
    network = faqd.load_network("digits")
    return network, faqd.open_images("digits", network)


@cache
def _three() -> tuple[faqd.Student, faqd.Network, faqd.Images]:
    network, images = _both()
    return faqd.prepare(network, images), network, images


#: A call of the face, and what is typed for the same mistake.
LINES: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    "opset": (lambda: faqd.prepare(*_both(), opset=3), ("--opset", "3")),
    "runtime": (lambda: faqd.prepare(*_both(), rest="fp16"), ("--rest", "fp16")),
    "source": (lambda: faqd.load_network("timm:resnet19"), ("--teacher", "timm:resnet19", "--data", "x")),
    "steps": (lambda: faqd.distil(*_three(), steps=-1), ("--steps", "-1")),
    "unused": (
        lambda: faqd.distil(*_three(), logit_loss="mse", temperature=2.0),
        ("--logit-loss", "mse", "--temperature", "2"),
    ),
    "nothing learns": (lambda: faqd.distil(*_three(), steps=0, batch_size=9), ("--steps", "0", "--batch-size", "9")),
    "device": (lambda: faqd.distil(*_three(), device="gpu"), ("--device", "gpu")),
}


@pytest.mark.parametrize("what", LINES)
def test_a_mistake_is_the_line_of_the_command(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call, typed = LINES[what]
    with pytest.raises(faqd.UserError) as refused:
        call()
    assert main(["run", *typed, "--output", str(tmp_path / "none"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert " ".join(f"error: {refused.value}".split()) == " ".join(error.split())


Wrong = Callable[[Any, faqd.Network, faqd.Images, faqd.Student], object]
ZEROS = torch.zeros(2, 3, 16, 16)

#: Calls of the face, taken for untyped: what a type checker would say is said at run time as well.
WRONG: dict[str, tuple[Wrong, str]] = {
    "bits": (lambda f, n, i, s: f.prepare(n, i, bits=5), "--bits 5: must be 8, 4, 3, 2 or 1"),
    "a module": (lambda f, n, i, s: f.prepare(small(), i), "prepare takes a network, as faqd.capture or"),
    "no module": (lambda f, n, i, s: f.capture("resnet18"), "the network itself, an nn.Module, not a str"),
    "no name": (lambda f, n, i, s: f.load_network(small()), "a network at hand is for faqd.capture"),
    "no setting": (lambda f, n, i, s: f.prepare(n, i, bit=4), r"prepare\(bit=4\): .*did you mean bits\?"),
    "another tool": (lambda f, n, i, s: f.prepare(n, i, quantiser="nncf"), r"prepare\(quantiser='nncf'\)"),
    "no images": (lambda f, n, i, s: f.prepare(n, pixels()), "images as faqd.open_images"),
    "floats": (lambda f, n, i, s: f.open_images(ZEROS, n), r"images at hand is float32 .*\(array \* 255\)"),
    "a dict": (lambda f, n, i, s: f.open_images({"a": 1}, n), "images at hand is a dict; it must be a sequence"),
    "nowhere": (lambda f, n, i, s: f.open_images("nowhere", n), "unknown data 'nowhere'"),
    "no network": (lambda f, n, i, s: f.open_images(pixels(), small()), "takes the network that they are for"),
    "one image": (lambda f, n, i, s: f.open_images(pixels(1), n), "1 image is too few"),
    "generated": (lambda f, n, i, s: f.open_images("none", n.preprocessing), "from the network itself"),
    "unused": (lambda f, n, i, s: f.open_images(pixels(), n, generator_steps=3), "--generator-steps .*--data none"),
    "others": (lambda f, n, i, s: f.prepare(f.capture(small(), image_size=8), i), "for another preprocessing"),
    "no teacher": (lambda f, n, i, s: f.distil(s, [], i), "distil needs at least one network"),
    "no student": (lambda f, n, i, s: f.distil(small(), n, i), "distil takes a student that faqd.prepare makes"),
    "a network": (lambda f, n, i, s: f.convert(n), "convert takes a student"),
    "two sizes": (lambda f, n, i, s: f.capture(small(), ZEROS, image_size=8), "is 16x16 px, and image_size=8"),
    "another size": (
        lambda f, n, i, s: f.capture(small(), ZEROS[:, :, :8, :8], preprocessing=n.preprocessing),
        r"the example has images \[3, 8, 8\]",
    ),
    "bytes": (lambda f, n, i, s: f.capture(small(), ZEROS.byte()), "the example is torch.uint8"),
    "a field": (lambda f, n, i, s: f.capture(small(), preprocessing={"heigth": 3}), "unknown .* fields heigth"),
    "a typo": (lambda f, n, i, s: f.capture(small(), imagesize=16), r"\(imagesize=16\): there is no such .*image_size"),
    "a text": (lambda f, n, i, s: f.capture(small(), image_size="16"), "must be a side in pixels, or .width, height"),
    "a misspelt fit": (
        lambda f, n, i, s: f.capture(small(), image_size=16, fit="croop"),
        "--fit croop: must be one of",
    ),
    "three sizes": (lambda f, n, i, s: f.capture(small(), image_size=(3, 16, 16)), "must be a side in pixels, or"),
    "a nameless mean": (lambda f, n, i, s: f.capture(small(), mean="grey"), "one number, or one for each channel"),
    "a pair": (lambda f, n, i, s: f.capture(small(), output_kinds="output=classes"), "must be a list, such as"),
    "an index": (lambda f, n, i, s: f.capture(small(), submodule=0), "must be the dotted path of a part"),
    "whole classes": (lambda f, n, i, s: f.capture(small(), classes=[1, 2]), "must be names in the order"),
    "a batch": (lambda f, n, i, s: f.capture(small(), static_batch=4), "is said to faqd.prepare"),
    "no numbers": (lambda f, n, i, s: f.capture(small(), ZEROS / 0), "the example holds NaN or infinity"),
    "weights": (lambda f, n, i, s: f.load_network("cifar:resnet20", weights=3), "takes the path of a checkpoint"),
    "a loaded typo": (lambda f, n, i, s: f.load_network("digits", sdt=1), r"load_network\(sdt=1\).*did you mean std"),
    "a student": (lambda f, n, i, s: f.validate(s), "validate takes an artifact of faqd.convert, a bundle or its fol"),
    "no bundle": (lambda f, n, i, s: f.compare(None), "compare takes a bundle or its folder, not a NoneType"),
    "a folder": (lambda f, n, i, s: f.convert(s).save("."), "Artifact.save: . is a folder: name a file"),
    "larger images": (lambda f, n, i, s: f.convert(s).run(torch.zeros(1, 3, 24, 24)), "images are float32 .1, 3, 24"),
    "a checkpoint": (lambda f, n, i, s: f.distil(s, n, i, checkpoint="."), r"distil\(checkpoint=...\) . is a folder"),
    "a bundle": (lambda f, n, i, s: f.validate("nowhere", pixels()), "images for a bundle are named"),
    "limits": (lambda f, n, i, s: f.validate(f.convert(s), f.ValidationConfig()), "ValidationConfig as config="),
    "emulated": (lambda f, n, i, s: f.validate(f.convert(s), emulate="arm64"), "is for the bundle of a run"),
    "engine": (
        lambda f, n, i, s: f.validate(f.convert(s), engine=f.EngineConfig(workspace=8)),
        "--workspace-mib is for --backend tensorrt",
    ),
    "a chain": (lambda f, n, i, s: f.distil(s, n, i, checkpoint="a", generations=2), "keeps one student, not 2"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_honoured_is_said_in_one_line(
    what: str, network: faqd.Network, images: faqd.Images, student: faqd.Student
) -> None:
    call, line = WRONG[what]
    with pytest.raises(faqd.UserError, match=line) as refused:
        call(faqd, network, images, student)
    assert "\n" not in str(refused.value)
