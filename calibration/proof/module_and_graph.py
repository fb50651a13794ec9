"""The first link of the proof: the user's own module against the graph that was captured of it, before anything else.

Every image by itself, in every call the same: what the captured graph cannot say is refused by name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from calibration.capture.eager import Eager, changed
from calibration.capture.graph_from_module import reported
from calibration.errors import UserError, raise_lack_of_memory
from calibration.graph.interface import interface_of
from calibration.graph.nearness import (
    LARGEST_DIFFERENCE,
    LARGEST_OF_THE_SAME,
    Computation,
    apart,
    differing,
    equal_in_double,
)
from calibration.proof.first_difference import first_difference, first_mixing

#: Standard deviations of the random images of `wide_images`: shades of grey, noise, and far beyond photographs.
_WIDE = (0.1, 2.0, 8.0)
# Of one image, before its answer is said to depend on the images beside it.
_CALLS = 10


def wide_images(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Random images of a wide range, float32 [3, *shape], the last around 4."""
    images = torch.randn((len(_WIDE), *shape), generator=generator)
    images *= torch.tensor(_WIDE).reshape(-1, *[1] * len(shape))
    images[-1] += 4
    return images


def check_first_link(
    module: nn.Module, captured: GraphModule, images: Tensor, *, source: str, shown: str, numbers: bool = False
) -> None:
    """Raise UserError unless `captured` computes what `module` does with these images [B, C, H, W].

    A module that was captured at one image is asked image by image. Before that it is held that the module itself gives
    every image the same answer alone, among others and in a later call. `source` names the network in errors, `shown`
    the images. Outputs are compared one by one, relative to each image's largest value; by how much rounding moves them
    is measured where they differ. `numbers`: for these images the network must have such; where random ones are NaN to
    it, a graph may have anything.
    """
    interface = interface_of(captured)
    eager = Eager(module, one_image=interface.one_image)
    untouched = eager.again()
    with reported(eager.module, source, shown):
        answers = eager(images)
        alone = _check_calls(untouched, answers, images, interface.outputs, source)
        _check_axes(answers, alone[0], interface.outputs, len(images), source)
    if numbers:
        _check_numbers(answers, interface.outputs, source, shown)
    _check_mixing(eager, answers, alone, images, captured, source, shown)
    _check_captured(eager, answers, captured, images, source, shown)


def _check_numbers(answers: Sequence[Tensor], names: Sequence[str], source: str, shown: str) -> None:
    for name, answer in zip(names, answers, strict=True):
        if not bool(answer.isfinite().all()):
            raise UserError(
                f"{source}: the network's output {name} is NaN or infinite for {shown}, which no integer is: let it be"
                " a number there, such as y.masked_fill(mask, -1e4) or y.clamp(-1e4, 1e4), in a builder given as"
                " --teacher python:package.module:function"
            )


def _check_axes(
    answers: Sequence[Tensor], alone: Sequence[Tensor], names: Sequence[str], count: int, source: str
) -> None:
    """Refuse outputs whose first axis is not the images: for one image and for several they have the same shape."""
    for name, answer, single in zip(names, answers, alone, strict=True):
        if answer.dim() == 0 or len(answer) != count or (single.shape == answer.shape and count > 1):
            raise UserError(
                f"{source}: the network's output {name} has the shape {list(answer.shape)} for {count} images and"
                f" {list(single.shape)} for one: its first axis must be the images, so that each has its own answer;"
                " return it with that axis, or leave it out, in a builder given as --teacher"
                " python:package.module:function (docs/networks.md)"
            )


def _check_calls(
    untouched: Eager, answers: Sequence[Tensor], images: Tensor, names: Sequence[str], source: str
) -> dict[int, list[Tensor]]:
    """What a module gives the first and the last image alone; refused where earlier calls or chance change it."""
    later, places = untouched.again(seed=1), (0, len(images) - 1)
    alone = {places[0]: later(images[places[0] :][:1])}
    before = later.state()
    alone[places[1]] = later(images[places[1] :][:1])
    kept = changed(before, later.state())
    moved = differing(later(images), answers, untouched.again(), images)
    if moved:
        index, difference = moved[0]
        drawn = differing(untouched.again(seed=1)(images), answers, untouched.again(), images)
        kept = changed(untouched.state(), later.state())
        raise UserError(
            f"{source}: the network gives the same image another answer in a later call: output {names[index]}"
            f" {how_far(difference)}, as it {_why(bool(drawn), kept)}; a captured graph keeps and draws nothing: let"
            " the network do so in evaluation mode, or change that part in a builder given as --teacher"
            " python:package.module:function"
        )
    if kept and (read := _read(later, kept, images)):
        raise UserError(
            f"{source}: the network changes {_listed(read)} in every call and reads it in the next; a captured graph"
            " keeps nothing: let the network do so in evaluation mode, or change that part in a builder given as"
            " --teacher python:package.module:function"
        )
    return alone


def how_far(difference: float) -> str:
    """Words for a difference of `apart` between outputs of one shape."""
    if difference == float("inf"):
        return "is infinite or NaN in one of the two alone"
    return f"differs by {difference:.2g} of its largest value"


def _why(draws: bool, kept: Sequence[str]) -> str:
    if draws:
        return "draws random numbers in evaluation mode"
    return f"reads what earlier calls left in {_listed(kept)}" if kept else "reads what is kept outside of its modules"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _read(later: Eager, kept: Sequence[str], images: Tensor) -> list[str]:
    """Those of the values that calls change which another call's answer depends on."""
    expected, read = later(images[-1:]), list[str]()
    for name in kept:
        disturbed = later.again()
        try:
            disturbed.disturb([name])
            answers = disturbed(images[-1:])
            same = all(apart(a, b) <= LARGEST_DIFFERENCE for a, b in zip(answers, expected, strict=True))
        except Exception as error:  # the network's own code on values that it would not have left there itself
            raise_lack_of_memory(error)
            same = False
        if not same:
            read.append(name)
    return read


def _check_mixing(
    eager: Eager,
    answers: Sequence[Tensor],
    alone: dict[int, list[Tensor]],
    images: Tensor,
    captured: GraphModule,
    source: str,
    shown: str,
) -> None:
    """Refuse a module that gives an image another answer alone than among others.

    In float64 where module or graph runs so: kernels that depend on the number of images then differ in the last of
    sixteen digits, and whatever mixes images in far more. Else in float32, up to its rounding.
    """
    if eager.one_image:
        return  # it is shown one at a time; whether its graph mixes shows where that is held against it
    moved = dict[int, list[tuple[int, float]]]()
    for place, single in alone.items():
        among = [answer[place][None] for answer in answers]
        moved[place] = differing(_with_axis(single, among), among, eager, images[place:][:1])
    told = any(far == float("inf") for outputs in moved.values() for _, far in outputs)
    exactly = None if told else _mixing_in_double(eager, captured, images, list(alone))
    for place, (outputs, agrees) in (exactly or {}).items():
        if outputs or agrees:  # else chance blurs what float64 says, and float32's word stands
            moved[place] = outputs
    for place, outputs in moved.items():
        if not outputs:
            continue
        if _by_chance(eager, images[place:][:1]):
            raise UserError(
                f"{source}: the network gives the same image another answer in a later call, as it"
                f" {_why(draws=True, kept=())} (Python's and numpy's generators among them); a captured graph draws"
                " nothing: let the network do so in training alone, or change that part in a builder given as --teacher"
                " python:package.module:function"
            )
        index, difference = outputs[0]
        name = interface_of(captured).outputs[index]
        own = alone[place][index]
        alike = own.numel() == answers[index][place].numel()
        how = f"output {name} {how_far(difference) if alike else f'has the shape {list(own.shape)} for it alone'}"
        raise UserError(
            f"{source}: the network mixes the images of a batch: with {shown}, {how} where an image is shown alone or"
            f" among others{first_mixing(eager, images, place)}, as by statistics of the batch, operators along axis 0"
            " or a batch size written into the code; a device shows images one by one, so each must have an answer of"
            " its own: change that part in a builder given as --teacher python:package.module:function"
        )


def _by_chance(eager: Eager, image: Tensor) -> bool:
    """Whether one image alone gets different answers in calls of fresh copies: of two ways, one in 500 times unseen."""
    answers = [eager.again()(image) for _ in range(_CALLS)]
    return any(differing(one, answers[0], eager, image) for one in answers[1:])


def _with_axis(single: Sequence[Tensor], among: Sequence[Tensor]) -> list[Tensor]:
    """An image's own answers; code that drops the batch's axis with others of size 1 is no mixing: it is put back."""
    return [a.reshape(b.shape) if a.numel() == b.numel() else a for a, b in zip(single, among, strict=True)]


def _mixing_in_double(
    eager: Eager, captured: GraphModule, images: Tensor, places: Sequence[int]
) -> dict[int, tuple[list[tuple[int, float]], bool]] | None:
    """Per place the outputs that float64 gives an image otherwise alone than among others, and whether all agree.

    None where nothing runs so.

    The module itself, or where its code insists on float32 the graph captured of it.
    """
    whole = images.double()
    makers: tuple[Callable[[], Computation], ...] = (eager.in_double, lambda: _in_double(captured))
    for in_double in makers:
        try:
            network = in_double()
            answers, moved = network(whole), dict[int, tuple[list[tuple[int, float]], bool]]()
            for place in places:
                image, among = whole[place:][:1], [answer[place][None] for answer in answers]
                single = _with_axis(network(image), among)
                outputs = differing(single, among, network, image, largest=LARGEST_OF_THE_SAME)
                moved[place] = outputs, equal_in_double(single, among)
            return moved
        except Exception as error:  # the network's own code, which float64 may not fit
            raise_lack_of_memory(error)
            continue
    return None


def _in_double(captured: GraphModule) -> Computation:
    """A captured graph that computes in float64."""
    double = copy.deepcopy(captured).double()

    def compute(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(double(images))

    return compute


def _check_captured(
    eager: Eager, answers: Sequence[Tensor], captured: GraphModule, images: Tensor, source: str, shown: str
) -> None:
    with torch.no_grad():
        graphs = list(captured(images.clone()))
    moved = differing([_but_nan(*pair) for pair in zip(graphs, answers, strict=True)], answers, eager, images)
    if not moved or _same_algebra(eager, captured, images):
        return
    index, difference = moved[0]
    name = interface_of(captured).outputs[index]
    if difference == float("inf") and bool(graphs[index].isfinite().all()):
        _check_numbers(answers, interface_of(captured).outputs, source, shown)
    raise UserError(
        f"{source}: the graph captured of the network does not compute what the network does: with {shown}, output"
        f" {name} {how_far(difference)}; {first_difference(eager, images, source)}. Nothing was quantised; write that"
        " part otherwise in a builder given as --teacher python:package.module:function, and please report it"
    )


def _but_nan(ours: Tensor, theirs: Tensor) -> Tensor:
    """Ours, and NaN where theirs are."""
    return torch.where(theirs.isnan(), theirs, ours) if ours.shape == theirs.shape else ours


def _same_algebra(eager: Eager, captured: GraphModule, images: Tensor) -> bool:
    """Whether graph and module agree in float64, so that only float32's rounding tells them apart."""
    try:
        theirs, ours = eager.in_double()(images.double()), _in_double(captured)(images.double())
    except Exception as error:  # code that insists on float32
        raise_lack_of_memory(error)
        return False
    return all(a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True)) and equal_in_double(ours, theirs)
