"""Networks as users' builders return them: wrapped, exported, quantised, broken; each works or is one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from calibration.errors import UserError
from calibration.graph.interface import interface_of
from pipeline.images.preprocessing import normalise
from pipeline.networks.declared import Declared
from pipeline.stages.first_link import check_on_images
from pipeline.stages.teacher import load_network
from tests.user_builders import BUILDERS
from tests.versions import older


@pytest.fixture(autouse=True)
def at_the_desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "users_nets.py").write_text(BUILDERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield
    sys.modules.pop("users_nets", None)


# A divisor of 0, which torch 2.11 refuses itself; 2.12.0 and what came after compute with it.
_REFUSED_BY_TORCH = older("torch", "2.12")
_WITHOUT_SPREAD = (
    "ValueError: batch_norm eps must be positive, but got 0.0"
    if _REFUSED_BY_TORCH
    else "gives NaN or infinity for random pixels from 1 to 254 (NaN first behind _1 (aten.batch"
)


@pytest.mark.filterwarnings("ignore")  # of torch.ao, which is deprecated in place
@pytest.mark.parametrize(
    ("builder", "words"),
    [
        ("object_output", "the network's output is a Object, into which nothing can look"),
        ("nothing_output", "the network returns a tuple without a tensor; return tensors"),
        ("yes_or_no", "the network's output sure holds bool, which cannot be learned: return what it is computed from"),
        ("empty_output", "the network's output 1 is empty, of shape [2, 0]"),
        ("of_text", "preprocessing: height is '16'; it must be a whole number"),
        ("indices", "the network's output holds int64, which cannot be learned"),
        ("a_class", "returned the class Identity, not a network: return Identity(...)"),
        ("a_state", "returned a state dict: build the network in the function"),
        ("a_function", "returned a function: name the function that returns the network itself"),
        ("nothing", "returned None: does the function end with return?"),
        ("three", "returned a tuple of 3 things, a network among them; it must return an nn.Module"),
        ("no_forward", "a ModuleList has no forward that takes an image"),
        ("scripted", "the network is TorchScript, of which no graph can be captured"),
        ("traced_part", "its part net is TorchScript, of which no graph can be captured"),
        ("exported", "returned an exported program, whose sizes are fixed"),
        ("exported_module", "the network is an exported program, whose sizes are fixed"),
        ("imitating_integers", "its part 0 is quantised already, or prepared for it (torch.ao.nn.qat."),
        ("of_integers", "its part 5 is quantised already, or prepared for it (torch.ao.nn.quantized.dynamic."),
        ("broken_statistics", "has NaN or infinity in 1 buffers (1.running_mean)"),
        ("left_out", "gives numbers for random pixels from 1 to 254, and its graph NaN or infinity (NaN first"),
        ("without_numbers", "gives NaN or infinity for random pixels from 1 to 254 (NaN first behind log (aten.log"),
        ("complex_parameter", "its tensor extra is complex"),
        ("sparse_parameter", "its tensor extra is sparse (sparse_coo)"),
        ("on_meta", "its tensor 0.weight lies on the meta device, without values"),
        ("lazy", "its tensor 0.weight has no size yet (a lazy layer)"),
        ("leaves", "called sys.exit(0), which ends the program"),
        ("forward_leaves", "it called sys.exit(0), which ends the program (in module Net, "),
        ("wordless", "raised Wordless: (its message cannot be shown: RuntimeError)"),
        ("forward_wordless", "Wordless: (its message cannot be shown: RuntimeError) (in module Net, "),
        ("leaves_for_words", "raised Leaving: (its message cannot be shown: SystemExit)"),
        ("closes", "raised GeneratorExit ("),
        ("forward_closes", "GeneratorExit"),
        ("leaves_when_counted", "called sys.exit(0), which ends the program"),
        ("nested", "its tensor extra is nested, rows of several lengths"),
        ("below_zero", "gives NaN or infinity for random pixels from 1 to 254 (NaN first behind _1 (aten.batch"),
        ("without_spread", _WITHOUT_SPREAD),
        ("overflowing", "gives NaN or infinity for random pixels from 1 to 254 (infinity first behind _1 (aten"),
        ("final", "raised Final: of its own"),
        ("endless", "raised RecursionError: maximum recursion depth exceeded"),
        ("forward_endless", "RecursionError: maximum recursion depth exceeded"),
        ("never_evaluates", "raised ValueError: never"),
        ("unprepared", "Own.__init__ does not call super().__init__()"),
        ("property_raises", "LookupError: no way forward"),
    ],
)
def test_what_cannot_be_captured_is_one_line(builder: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_network(f"python:users_nets:{builder}", image_size=16)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"python:users_nets:{builder}")


def test_a_lack_of_memory_is_no_fault_of_the_network() -> None:
    with pytest.raises(MemoryError):
        load_network("python:users_nets:memory", image_size=16)


@pytest.mark.parametrize(
    ("builder", "names"),
    [
        ("dataclass_output", ("logits", "features_0", "features_1_k")),
        ("frozen_output", ("y",)),
        ("tuple_output", ("first", "second")),
        ("dictionary_output", ("b", "c_0")),
        ("wrapped_inside", ("output",)),
        ("in_inference_mode", ("output",)),
        ("eval_returns_nothing", ("output",)),
        ("changes_torch", ("output",)),
        ("decorated", ("output",)),
        ("of_numpy", ("output",)),
        ("root_of_pixels", ("output",)),
    ],
)
def test_outputs_in_objects_and_odd_networks_are_taken(builder: str, names: tuple[str, ...]) -> None:
    kinds = tuple(f"{name}=values" for name in names) if len(names) > 1 else ()
    network = load_network(f"python:users_nets:{builder}", Declared(output_kinds=kinds), image_size=16)
    assert tuple(interface_of(network.captured).outputs) == names
    assert network.fold_difference < 1e-5
    parameters = [parameter for parameter in network.folded.parameters() if parameter.is_floating_point()]
    assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled() and torch.ones(1).device.type == "cpu"
    assert parameters and not any(parameter.is_inference() for parameter in parameters)


def test_images_for_which_a_network_has_no_numbers_are_told_with_the_first_operator() -> None:
    network = load_network("python:users_nets:logarithm_of_pixels")
    pixels = torch.randint(1, 256, (3, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    check_on_images(network, normalise(pixels, network.preprocessing))
    pixels[1, :, 4, 4] = 0
    with pytest.raises(UserError, match=r"infinity for images of --data \(infinity first behind log .*NaN first"):
        check_on_images(network, normalise(pixels, network.preprocessing))


def test_outputs_of_a_dataclass_hold_what_the_network_returns() -> None:
    kinds = tuple(f"{name}=values" for name in ("logits", "features_0", "features_1_k"))
    network = load_network("python:users_nets:dataclass_output", Declared(output_kinds=kinds), image_size=16)
    import users_nets  # type: ignore[import-not-found]  # the module of the test's own folder

    images = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answer = users_nets.dataclass_output().eval()(images)
        logits, features, inner = network.captured(images)
    for ours, theirs in ((logits, answer.logits), (features, answer.features[0]), (inner, answer.features[1]["k"])):
        assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("builder", "wrappers"),
    [("parallel", "DataParallel, torch.compile"), ("averaged", "AveragedModel")],
)
def test_wrappers_of_training_are_taken_off_and_said(builder: str, wrappers: str, tmp_path: Path) -> None:
    source = f"python:users_nets:{builder}"
    state = _state()
    torch.save({f"module._orig_mod.{key}": tensor for key, tensor in state.items()}, tmp_path / "w.pth")
    network = load_network(source, image_size=16, weights=tmp_path / "w.pth")
    assert network.notes[0] == f"{source}: the network inside {wrappers} is taken"
    assert torch.equal(dict(network.captured.named_parameters())["5.bias"], state["5.bias"])


def _state() -> dict[str, torch.Tensor]:
    made = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Identity(), nn.Identity(), nn.Identity())
    made.append(nn.Linear(8, 4))
    return dict(made.state_dict())
