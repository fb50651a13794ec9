"""Every command of the README runs: in order, in one folder that holds the files it speaks of."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pipeline.networks.architectures.cifar_resnet import CifarResNet
from tests.command_line import Ended
from tests.command_line import command as command_line

#: What makes a run short enough for a test; results are not what is tested here.
QUICK = (
    "--steps",
    "2",
    "--batch-size",
    "2",
    "--calibration-images",
    "4",
    "--held-out-images",
    "4",
    "--max-drop",
    "100",
)
#: Networks of photographs get small ones.
SMALL = ("--image-size", "64")
#: The twenty layers of a network of fewer than 8 bits, or of random weights, need not be rounded by least squares.
NEAREST, DEEP = ("--rounding", "nearest"), {"cifar:resnet20", "torchvision:resnet18"}

BUILDER = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))
"""


def blocks(readme: str) -> list[str]:
    """The lines of all fenced blocks that hold commands."""
    fenced = re.findall(r"^```[a-z]*\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    lines = [line for block in fenced for line in block.splitlines()]
    return [line for line in lines if re.match(r"(python3 -m|faqd|docker) ", line)]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with the files that the README names."""
    folder = tmp_path_factory.mktemp("desk")
    generator = np.random.default_rng(0)
    for place, darkest, brightest in (("photos", 0, 255), ("labelled/cat", 0, 100), ("labelled/dog", 155, 255)):
        (folder / place).mkdir(parents=True)
        for index in range(8):
            pixels = generator.integers(darkest, brightest, (70, 80, 3), np.uint8)
            Image.fromarray(pixels).save(folder / place / f"{index}.jpg")
    torch.save(torchvision.models.resnet18().state_dict(), folder / "resnet18.pth")
    save_file(CifarResNet(3).state_dict(), folder / "resnet20.safetensors")
    np.savez(folder / "cifar.npz", images=generator.integers(0, 255, (24, 3, 32, 32), np.uint8))
    (folder / "mynetworks.py").write_text(BUILDER)
    space: dict[str, object] = {}
    exec(BUILDER, space)  # the builder that the command names, to make weights that fit it
    network: nn.Sequential = space["build"]()  # type: ignore[operator]
    with torch.no_grad():  # it knows what is bright
        for name, value in {"0.weight": 0.1, "0.bias": 0.0, "4.weight": 1.0, "4.bias": -1.0}.items():
            network.get_parameter(name).fill_(value)
        for parameter in network[4].parameters():
            parameter[0].neg_()
    torch.save(network.state_dict(), folder / "best.pth")
    (folder / "key").write_bytes(bytes(range(32)))
    (folder / "settings.toml").write_text('output = "from-settings"\nseed = 3\n')
    return folder


def in_a_process(words: list[str], repository: Path, folder: Path) -> Ended:
    """`python -m pipeline` with the repository's packages, in a folder."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(repository), "COLUMNS": "100"},
        timeout=240,
        check=False,
    )
    return Ended(status=done.returncode, out=done.stdout, err=done.stderr)


@pytest.mark.usefixtures("little_time_for_latency", "digits_captured_once", "flags_assembled_once", "narrow_digits")
def test_every_command_runs(repository: Path, desk: Path) -> None:
    commands = blocks((repository / "README.md").read_text(encoding="utf-8"))
    assert len(commands) >= 8
    for number, command in enumerate(commands):
        # Installing is what made this environment, and the tests are what runs here.
        line = command.rpartition("&& ")[2]
        if line == "python3 -m pytest":
            continue
        words = shlex.split(line)
        words = words[3:] if words[0] == "python3" else words[1:]
        if words[0] == "run":
            words += [*QUICK, *(SMALL if any(word.startswith("images:") for word in words) else ())]
            words += NEAREST if DEEP.intersection(words) else ()
        # The first as a stranger types it; a process of their own costs the others seconds and shows nothing more.
        ended = in_a_process(words, repository, desk) if number == 0 else command_line(*words, cwd=desk)
        # A random network may say one and the same of all images, by which nothing is decided: status 4.
        expected = (3,) if "tensorrt" in words else (0, 4)
        assert ended.status in expected, f"{command}\n{ended.out}\n{ended.err}"


def test_the_python_way_runs(repository: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block but that of a whole run, which is executed with the rest of the face (tests/faqd/test_api.py)."""
    readme = (repository / "README.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"^```python\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)]
    monkeypatch.chdir(desk)
    monkeypatch.syspath_prepend(str(desk))
    ran = 0
    for block in blocks:
        if "RunConfig" not in block:
            space: dict[str, object] = {}
            exec(block.replace("steps=300", "steps=2"), space)
            ran += 1
    assert ran >= 1 and (desk / "model.onnx").is_file()


def test_the_first_screen_shows_commands_and_table(repository: Path) -> None:
    screen = "\n".join((repository / "README.md").read_text(encoding="utf-8").splitlines()[:45])

    assert "python3 -m pip install . && python3 -m pipeline run --backend onnxruntime --bits 8" in screen
    assert "python3 -m pip install '.[test]' && python3 -m pytest" in screen
    for word in ("float teacher", "simulated", "oracle", "runtime", "latency", "validated"):
        assert word in screen
