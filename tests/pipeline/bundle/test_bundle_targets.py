"""A bundle that was made for another processor is named, with the command that makes the right one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backends import BACKENDS
from backends.facts.cpu import CPUS
from backends.onnxruntime.emulation import EMULATED
from calibration.errors import UserError
from pipeline.bundle.bundle import Bundle
from pipeline.bundle.golden import Golden
from pipeline.setup.chosen_backend import emulated_backend
from tests.vouched import manifest_with


def bundle_for(cpu: str | None, *, backend: str = "onnxruntime") -> Bundle:
    """A bundle of a network on 4 bits of which nothing but the manifest is read."""
    nothing = Golden(inputs=np.zeros((1, 1, 1, 1), np.float32), outputs={}, teacher={})
    bits = {"weights": 4, "activations": 8}
    manifest = manifest_with(backend=backend, target=cpu, teacher="cifar:resnet20", bits=bits)
    return Bundle(folder=Path("out/bundle"), model=b"", golden=nothing, manifest=manifest)


def test_the_table_of_runtimes_names_the_processors_that_are_emulated() -> None:
    assert set(BACKENDS["onnxruntime"].emulated) == set(EMULATED)
    assert not any(runtime.emulated for name, runtime in BACKENDS.items() if name != "onnxruntime")


@pytest.mark.parametrize("asked", list(EMULATED))
@pytest.mark.parametrize("made", list(CPUS))
def test_emulating_another_processor_than_the_bundles_is_refused(made: str, asked: str) -> None:
    if made == asked:
        pytest.skip("the right one")
    with pytest.raises(UserError) as refused:
        emulated_backend(bundle_for(made), asked)
    assert str(refused.value) == (
        f"--emulate {asked}: out/bundle was made for {made}; make one for {asked} with faqd run"
        f" --teacher cifar:resnet20 --bits 4 --target {asked} and the other flags of its run"
    )


def test_only_bundles_for_onnx_runtime_are_emulated() -> None:
    with pytest.raises(UserError, match="--emulate arm64 runs ONNX Runtime, but out/bundle is for tensorrt"):
        emulated_backend(bundle_for(None, backend="tensorrt"), "arm64")
