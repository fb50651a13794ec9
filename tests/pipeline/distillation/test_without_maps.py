"""Networks without a feature map, as of linear layers alone: what compares features by itself is left out, and said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from calibration.capture.graph_from_module import capture
from calibration.errors import UserError
from calibration.rewrites.fold import fold
from pipeline.config import DistillationConfig
from pipeline.distillation.build import build_objective
from pipeline.distillation.objective import Objective
from pipeline.networks.outputs.described import describe_outputs


class Flat(nn.Module):
    """Maps of one position alone, as linear layers over the image."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.head = nn.Conv2d(2, 8, 24), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.wide(x).relu().flatten(1))
        return logits


@pytest.fixture(scope="module")
def flat() -> GraphModule:
    return fold(capture(Flat(), torch.zeros(2, 2, 24, 24), source="flat"))


@pytest.fixture(scope="module")
def student() -> GraphModule:
    """Has a map of 23 x 23 positions."""
    network = nn.Sequential(nn.Conv2d(2, 8, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return fold(capture(network, torch.zeros(2, 2, 24, 24), source="net"))


def built(student: GraphModule, teacher: GraphModule, **settings: Any) -> Objective:
    outputs = describe_outputs(student, {"output": "classes"}, source="net")
    return build_objective(DistillationConfig(**settings), student, [teacher], outputs, seed=0)


def test_without_a_feature_map_auto_means_none_and_says_so(flat: GraphModule, student: GraphModule) -> None:
    assert built(student, student).remarks == () and "affinity" in built(student, student).terms
    for one, other in ((flat, flat), (flat, student), (student, flat)):
        objective = built(one, other)
        assert set(objective.terms) == {"logits"} and not objective.student_taps
        (said,) = objective.remarks
        assert "no features to compare (--affinity auto means none here)" in said


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"affinity": "fa"}, "--affinity fa compares feature maps, and the student has none of more than one position"),
        ({"affinity": "gram"}, "--affinity gram compares feature maps"),
        ({"adapters": "trained"}, "--affinity auto compares feature maps"),
        ({"taps": ("wide",)}, "--taps wide: the student has no feature map of that name"),
        ({"feed_weight": 1.0}, "--feed-weight compares feature maps"),
        ({"sakd_weight": 1.0}, "--sakd-weight compares feature maps"),
    ],
)
def test_what_was_asked_of_feature_maps_is_refused_where_there_are_none(
    settings: dict[str, Any], line: str, flat: GraphModule
) -> None:
    with pytest.raises(UserError, match=f"^{line}"):
        built(flat, flat, **settings)
