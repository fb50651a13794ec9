"""The face that `import faqd` shows: the README's run from Python, and what is said to a wrong type."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import faqd
from tests.test_readme import BUILDER


def test_the_readmes_run_from_python(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (repository / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (block,) = (block for block in blocks if "RunConfig" in block)
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for index in range(12):
        pixels = generator.integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")
    (tmp_path / "mynetworks.py").write_text(BUILDER)
    space: dict[str, Any] = {}
    exec(BUILDER, space)
    network: nn.Module = space["build"]()
    torch.save(network.state_dict(), tmp_path / "best.pth")
    monkeypatch.chdir(tmp_path)
    exec(block.replace("steps=100", "steps=2"), {})
    status, accuracy, bundle = capsys.readouterr().out.split()
    assert status in ("undecided", "gate-failed") and 0 <= float(accuracy) <= 1  # of so few images
    assert Path(bundle) == Path("from-python", "bundle") and (tmp_path / bundle / "model.onnx").is_file()


def test_a_wrong_type_is_one_line_with_the_section_to_use() -> None:
    wrong: dict[str, Any] = {"teacher": "torchvision:resnet18"}
    with pytest.raises(faqd.UserError) as refused:
        faqd.RunConfig(**wrong)
    assert str(refused.value) == (
        "RunConfig(teacher='torchvision:resnet18'): must be a TeacherConfig, made with sources=, files=, submodule=..."
    )
    for section in ("data", "preprocessing", "output", "engine"):
        wrong = {section: None}
        with pytest.raises(faqd.UserError, match=rf"RunConfig\({section}=None\): must be a {section.title()}Config"):
            faqd.RunConfig(**wrong)
    settings: Any = {"bits": 4}
    for command in (
        faqd.run,
        lambda setting: faqd.validate("b", config=setting),
        lambda setting: faqd.compare("b", setting),
    ):
        with pytest.raises(faqd.UserError, match=r"\{'bits': 4\} is no configuration of this command: give a .*Config"):
            command(settings)


def test_every_section_of_a_run_is_public() -> None:
    import dataclasses

    for field in dataclasses.fields(faqd.RunConfig):
        assert type(getattr(faqd.RunConfig(), field.name)).__name__ in faqd.__all__
