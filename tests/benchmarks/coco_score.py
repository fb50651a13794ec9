"""Mean average precision of FastestDet's maps on the shared COCO sample, as pycocotools counts it."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

# Overlap of two boxes of a class, of which the lower score is dropped; scores below are no boxes at all.
_OVERLAP, _LOWEST_SCORE = 0.45, 0.001


@final
class CocoScore:
    """Annotations and images of a split."""

    def __init__(self, sample: Path, split: str) -> None:
        coco = pytest.importorskip("pycocotools.coco", reason="needs pycocotools: pip install pycocotools")
        with contextlib.redirect_stdout(io.StringIO()):
            self._truth = coco.COCO(str(sample / f"instances_{split}.json"))
        self._ids = sorted(self._truth.imgs)
        #: The images, in the order in which maps are expected.
        self.files = [sample / "images" / split / self._truth.imgs[image]["file_name"] for image in self._ids]

    def mean_average_precision(self, maps: Tensor) -> float:
        """mAP50-95 in percent of maps [N, 85, H, W]."""
        evaluation = pytest.importorskip("pycocotools.cocoeval")
        boxes = [box for image, one in zip(self._ids, maps.numpy(), strict=True) for box in self._boxes(image, one)]
        with contextlib.redirect_stdout(io.StringIO()):
            judged = evaluation.COCOeval(self._truth, self._truth.loadRes(boxes), "bbox")
            judged.evaluate()
            judged.accumulate()
            judged.summarize()
        return 100 * float(judged.stats[0])

    def _boxes(self, image: int, one: NDArray[np.float32]) -> list[dict[str, Any]]:
        """score = objectness^0.6 x class^0.4; centre = (cell + tanh(offset)) / cells; size = sigmoid(offset)."""
        rows, columns = np.indices(one.shape[1:])
        centre = (columns + np.tanh(one[1])) / one.shape[2], (rows + np.tanh(one[2])) / one.shape[1]
        size = 1 / (1 + np.exp(-one[3])), 1 / (1 + np.exp(-one[4]))
        score = one[0].clip(0) ** 0.6 * one[5:].max(0).clip(0) ** 0.4
        known = self._truth.imgs[image]
        corner = [(c - s / 2) * known[side] for c, s, side in zip(centre, size, ("width", "height"), strict=True)]
        extent = [s * known[side] for s, side in zip(size, ("width", "height"), strict=True)]
        boxes = np.stack([*corner, *extent], -1).reshape(-1, 4)
        scores, labels = score.ravel(), one[5:].argmax(0).ravel()
        kept = list[dict[str, Any]]()
        for label in np.unique(labels[scores > _LOWEST_SCORE]):
            of_class = np.flatnonzero((labels == label) & (scores > _LOWEST_SCORE))
            for place in of_class[_apart(boxes[of_class], scores[of_class])]:
                box = [float(value) for value in boxes[place]]
                kept.append({"image_id": image, "category_id": int(label), "bbox": box, "score": float(scores[place])})
        return kept


def _apart(boxes: NDArray[np.float32], scores: NDArray[np.float32]) -> list[int]:
    """Indices of boxes (left, top, width, height) that no better one overlaps."""
    kept, left = list[int](), np.argsort(-scores, kind="stable")
    low, high, area = boxes[:, :2], boxes[:, :2] + boxes[:, 2:], boxes[:, 2] * boxes[:, 3]
    while len(left):
        best, left = int(left[0]), left[1:]
        kept.append(best)
        sides = (np.minimum(high[best], high[left]) - np.maximum(low[best], low[left])).clip(0)
        common = sides[:, 0] * sides[:, 1]
        left = left[common <= _OVERLAP * (area[best] + area[left] - common)]
    return kept
