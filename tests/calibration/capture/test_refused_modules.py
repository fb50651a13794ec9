"""What cannot be captured is one line: the module, its own line of code and the way round."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from torch import Tensor, nn

from calibration.capture.graph_from_module import capture
from calibration.errors import UserError

if TYPE_CHECKING:
    from tests.calibration.conftest import MakeNet, Noise


def conv(inputs: int = 3, outputs: int = 4) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # LINE Branching
            return x
        return -x


class Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("what a\nmess")  # LINE Raising


class OneBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


class Counting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.max().item())  # LINE Counting


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        return x


def line_of(name: str) -> str:
    """This file and the number of the line marked with a name, as errors write it."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    number = next(index for index, line in enumerate(lines, 1) if line.endswith(f"# LINE {name}"))
    return f"{Path(__file__)}:{number}"


@pytest.mark.parametrize("module", [Branching(), Counting()], ids=lambda module: type(module).__name__)
def test_control_flow_on_values_names_module_and_line(
    module: nn.Module, noise: Noise, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as raised:
        capture(nn.Sequential(conv(), module), noise(2, 3, 8, 8), source="my network")
    message = str(raised.value)
    assert message.startswith("my network: the network cannot be captured as a graph: its control flow depends on")
    assert f"(in module 1, {line_of(type(module).__name__)})" in message
    assert "--teacher python:package.module:function" in message
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_an_exception_of_the_networks_own_code_is_named_with_its_line(
    noise: Noise, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as raised:
        capture(nn.Sequential(conv(), nn.Sequential(Raising())), noise(2, 3, 8, 8), source="my network")
    assert "KeyError: 'what a\\nmess'" in str(raised.value)
    assert f"(in module 1.0, {line_of('Raising')})" in str(raised.value)
    assert isinstance(raised.value.__cause__, KeyError)
    assert capfd.readouterr() == ("", "")


def test_a_fixed_batch_size_is_named(noise: Noise, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="it works for one batch size only") as raised:
        capture(OneBatch(), noise(2, 3, 8, 8), source="my network")
    assert "(in module OneBatch)" in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_a_layer_that_does_not_fit_is_named(noise: Noise) -> None:
    with pytest.raises(UserError, match=re.escape("to have 5 channels, but got 4 channels instead (in module 1)")):
        capture(nn.Sequential(conv(), conv(5, 4)), noise(2, 3, 8, 8), source="my network")


def test_a_second_input_is_refused(noise: Noise) -> None:
    with pytest.raises(UserError, match=r"my network: the network also needs its input second, which is no image"):
        capture(Both(), noise(2, 3, 8, 8), source="my network")


def test_an_input_that_is_no_image_is_refused_by_name(noise: Noise) -> None:
    with pytest.raises(UserError) as raised:
        capture(Words(), noise(2, 3, 8, 8), source="my network")
    assert "does not take images float32 [2, 3, 8, 8] as its input input_ids: RuntimeError" in str(raised.value)
    assert "(in module embed, " in str(raised.value) and f"{Path(__file__).name}:" in str(raised.value)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        rows: Tensor = self.embed(input_ids)
        return rows


class Both(nn.Module):
    def forward(self, x: Tensor, second: Tensor) -> Tensor:
        return x + second


def test_a_module_that_cannot_be_copied_is_refused(noise: Noise) -> None:
    with pytest.raises(UserError, match=r"cannot pickle.*\(in module Locked\)"):
        capture(Locked(), noise(2, 3, 8, 8), source="my network")


def test_what_a_network_writes_to_stderr_arrives(
    net: MakeNet, noise: Noise, capsys: pytest.CaptureFixture[str]
) -> None:
    capture(net(lambda n, x: (print("hello", file=sys.stderr), n.a(x))[1], a=conv()), noise(2, 3, 8, 8), source="test")
    assert "hello" in capsys.readouterr().err
