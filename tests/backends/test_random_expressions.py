"""Code as users write it: what the module gives, the captured graph, the folded one and float.onnx give as well.

    FAQD_RANDOM_NETWORKS=1000 python3 -m pytest -m benchmark -n 2 tests/backends/test_random_expressions.py

tries that many; what fails is named by its seed, with its code. What has no translation is refused in one line.
"""

from __future__ import annotations

import os
import re

import pytest
import torch

from backends.onnx_file.emit import emit
from backends.onnxruntime.backend import OnnxRuntime
from calibration.capture.eager import Eager
from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from calibration.graph.nearness import differing
from calibration.proof.module_and_graph import check_first_link
from calibration.rewrites.fold import fold
from tests.random_expressions import PIXELS, RandomExpression

#: The text of a refusal: what is refused, where and the way round.
REFUSED = re.compile(r"^\S.*(has|have) no translation|reshape with more than one free|--teacher python:")


def examine(seed: int) -> str | None:
    """What is wrong with a random network; None where nothing is, "refused" where it has no translation."""
    network, generator = RandomExpression(seed), torch.Generator().manual_seed(seed)
    images = torch.randn(3, 3, PIXELS, PIXELS, generator=generator) * torch.tensor([1.0, 0.1, 5.0]).view(-1, 1, 1, 1)
    eager = Eager(network)
    (expected,) = eager(images)
    if not expected.isfinite().all() or expected.abs().max() < 1e-3:
        return None
    try:
        captured = capture(network, images[:2], source=f"seed {seed}")
        check_first_link(network, captured, images, source=f"seed {seed}", shown="random images")
        folded = fold(captured)
        model = emit(folded, opset=20)
    except UserError as refusal:
        wrong = "does not compute" in str(refusal) or not REFUSED.search(str(refusal))
        return f"{refusal}\n{network.text}" if wrong else "refused"
    with OnnxRuntime().runner(model.SerializeToString(), threads=1) as runner:
        computed = {"folded": list(folded(images)), "float.onnx": [torch.from_numpy(runner.run(images.numpy())[0])]}
    for name, outputs in computed.items():
        for _, difference in differing(outputs, [expected], eager, images):
            return f"{name} differs by {difference:.2g}\n{network.text}"
    return None


def test_expressions_are_the_same_eager_captured_and_as_a_file() -> None:
    verdicts = {seed: examine(seed) for seed in range(24)}
    wrong = {seed: what for seed, what in verdicts.items() if what not in (None, "refused")}
    assert not wrong, "\n\n".join(f"seed {seed}: {what}" for seed, what in wrong.items())
    assert sum(what is None for what in verdicts.values()) >= 8


@pytest.mark.benchmark
@pytest.mark.skipif("FAQD_RANDOM_NETWORKS" not in os.environ, reason="FAQD_RANDOM_NETWORKS says how many")
@pytest.mark.parametrize("seed", range(100, 100 + int(os.environ.get("FAQD_RANDOM_NETWORKS", "0"))))
def test_many_random_expressions(seed: int) -> None:
    verdict = examine(seed)
    assert verdict in (None, "refused"), verdict
