"""Published weights come from a cache or the network, and are what their names say."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from calibration.errors import UserError
from pipeline.networks.models import load_model


def _message(source: str) -> str:
    with pytest.raises(UserError) as caught:
        load_model(source)
    return str(caught.value)


def test_pretrained_torchvision_weights_come_from_the_cache_or_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import models

    # No proxy listens there, so the download fails at once, with and without a network.
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    message = _message("torchvision:squeezenet1_1")
    assert "cannot download https://" in message and "/squeezenet1_1" in message
    assert "--weights FILE" in message
    network = models.squeezenet1_1()
    folder = tmp_path / "hub" / "checkpoints"
    saved = folder / "saved.pth"
    torch.save(network.state_dict(), saved)
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    published = models.SqueezeNet1_1_Weights.DEFAULT.value
    monkeypatch.setattr(published, "url", f"https://localhost/squeezenet1_1-{digest[:8]}.pth", raising=True)
    saved.rename(folder / f"squeezenet1_1-{digest[:8]}.pth")
    loaded = load_model("torchvision:squeezenet1_1")
    assert torch.equal(loaded.module.get_parameter("features.0.weight"), network.get_parameter("features.0.weight"))
    assert loaded.notes == ()
    monkeypatch.setattr(published, "url", "https://localhost/squeezenet1_1-00000000.pth")
    (folder / f"squeezenet1_1-{digest[:8]}.pth").rename(folder / "squeezenet1_1-00000000.pth")
    assert "squeezenet1_1-00000000.pth is not what was published under its name" in _message(
        "torchvision:squeezenet1_1"
    )


def test_a_file_of_the_hubs_cache_is_held_against_its_name(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    from pipeline.networks.sources.timm_models import _check_cached

    content = tmp_path / hashlib.sha256(b"weights").hexdigest()
    content.write_bytes(b"weights")
    (tmp_path / "model.safetensors").symlink_to(content)
    _check_cached(tmp_path / "model.safetensors", "resnet18")
    content.write_bytes(b"other weights")
    with pytest.raises(UserError, match=r"timm:resnet18: .* is not what was published"):
        _check_cached(tmp_path / "model.safetensors", "resnet18")
