"""What other tools reach by post-training quantisation alone: the floor under the methods that train.

    FAQD_BENCHMARK_OUTPUT=DIR python3 -m pytest -m benchmark tests/benchmarks/test_methods_floor.py -s

ResNet-20 on the shared sample, first and last layer at 8 bits; test_methods.py shows these rows beside its own when it
finds them in the same folder. Weights per channel, symmetric; activations per tensor. onnxruntime.quantization and NNCF
know 8 bits alone and are scored on ONNX Runtime; torchao (`pip install torchao`) is scored in PyTorch: no runtime would
load a file of its simulation of fewer bits.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.export import Dim, export
from torch.fx import GraphModule, Node

import faqd
from backends.onnx_file.emit import emit
from calibration.graph.operators import kind
from tests.benchmarks.test_latency_against_peers import quantised_by_peer
from tests.benchmarks.test_methods import GOALS

if TYPE_CHECKING:
    from tests.benchmarks.conftest import Cifar, Columns, Ready, Results

pytestmark = pytest.mark.benchmark

NETWORK = "resnet20"
SEEDS = (0, 1, 2)
TORCHAO = {"w8a8": (8, 8), "w4a8": (4, 8), "w2a8": (2, 8), "w4a4": (4, 4), "w2a2": (2, 2)}

COLUMNS: Columns = {
    "widths": lambda row: row["key"]["widths"],
    "tool": lambda row: row["key"]["tool"],
    "seed": lambda row: row["key"]["seed"],
    "top-1, %": lambda row: f"{row['score']:.2f}",
    "goal of the methods": lambda row: GOALS.get(row["key"]["widths"]),
}


@pytest.mark.parametrize("seed", SEEDS)
def test_onnxruntime(seed: int, cifar: Cifar, ready: Callable[..., Ready], results: Results, tmp_path: Path) -> None:
    student = ready(cifar.config(NETWORK, bits=8, seed=seed))
    float_model = emit(student.teacher.folded, opset=20).SerializeToString()
    images = np.concatenate([batch.numpy() for batch in student.calibrating()])
    model = quantised_by_peer(float_model, images, tmp_path)
    with student.backend.runner(model, threads=2) as runner:
        score = _score(student, cifar, lambda inputs: torch.from_numpy(runner.run(inputs.numpy())[0]))
    _add(results, "w8a8", "onnxruntime.quantization PTQ", seed, score)


@pytest.mark.parametrize("seed", SEEDS)
def test_nncf(seed: int, cifar: Cifar, results: Results, repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    command = [sys.executable, "-m", "pipeline", "run", "--quantiser", "nncf", "--teacher", f"cifar:{NETWORK}"]
    command += ["--weights", str(cifar.weights(NETWORK)), "--data", cifar.unlabelled, "--eval-data", cifar.test]
    command += ["--seed", str(seed), "--max-drop", "100", "--output", str(tmp_path / "run")]
    finished = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert finished.returncode in (0, 1), finished.stderr
    report = faqd.read_bundle(tmp_path / "run" / "bundle").report
    assert report is not None
    accuracy = report.accuracy
    _add(results, "w8a8", "NNCF PTQ", seed, 100 * (accuracy.runtime or 0.0))


@pytest.mark.parametrize("widths", TORCHAO)
@pytest.mark.parametrize("seed", SEEDS)
def test_torchao(seed: int, widths: str, cifar: Cifar, ready: Callable[..., Ready], results: Results) -> None:
    pytest.importorskip("torchao")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    student = ready(cifar.config(NETWORK, bits=8, seed=seed))
    batches = student.calibrating()
    exported = export(student.teacher.folded, (batches[0][:2],), dynamic_shapes=({0: Dim.DYNAMIC},)).module()
    prepared = prepare_pt2e(exported, _quantiser(*TORCHAO[widths]))
    with torch.no_grad():
        for images in batches:
            prepared(images)
    converted = convert_pt2e(prepared)
    _add(results, widths, "torchao PTQ, in PyTorch", seed, _score(student, cifar, lambda inputs: converted(inputs)[0]))


def _quantiser(weight_bits: int, activation_bits: int) -> Any:
    """torchao's annotation of convolutions, linear layers and additions with these widths."""
    from torchao.quantization.pt2e import HistogramObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

    def activations(bits: int) -> Any:
        return QuantizationSpec(
            dtype=torch.uint8,
            quant_min=0,
            quant_max=2**bits - 1,
            qscheme=torch.per_tensor_affine,
            observer_or_fake_quant_ctr=HistogramObserver,
        )

    def weights(bits: int) -> Any:
        return QuantizationSpec(
            dtype=torch.int8,
            quant_min=1 - 2 ** (bits - 1),
            quant_max=2 ** (bits - 1) - 1,
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
            observer_or_fake_quant_ctr=PerChannelMinMaxObserver,
        )

    class Widths(Quantizer):  # type: ignore[misc]  # the package has no types
        def annotate(self, model: GraphModule) -> GraphModule:
            weighted = [node for node in model.graph.nodes if kind(node) in ("conv", "linear")]
            for node in model.graph.nodes:
                wide = node in (weighted[0], weighted[-1])
                specs: dict[Node, Any] = {}
                if kind(node) in ("conv", "linear"):
                    specs[node.args[0]] = activations(8 if wide else activation_bits)
                    specs[node.args[1]] = weights(8 if wide else weight_bits)
                elif kind(node) == "add":
                    specs = {source: activations(8) for source in node.all_input_nodes}
                if specs:
                    node.meta["quantization_annotation"] = QuantizationAnnotation(
                        input_qspec_map=specs, _annotated=True
                    )
            return model

        def validate(self, model: GraphModule) -> None:
            """Nothing to find: every layer was annotated."""

    return Widths()


def _score(student: Ready, cifar: Cifar, logits: Callable[[Tensor], Tensor]) -> float:
    """Top-1 on the labelled images, percent."""
    with torch.no_grad():
        right = [logits(images).argmax(1) == labels for images, labels in cifar.labelled(student.teacher)]
    return 100 * float(torch.cat(right).double().mean())


def _add(results: Results, widths: str, tool: str, seed: int, score: float) -> None:
    results.add({"network": NETWORK, "widths": widths, "tool": tool, "seed": seed}, score=score)
    results.publish(
        f"Post-training quantisation by other tools: {NETWORK}",
        COLUMNS,
        results.newest(),
        notes=["first and last layer at 8 bits; torchao's additions read 8 bits; no labels"],
    )
