"""torchvision's detectors: their backbone and heads are the graph; anchors, boxes and suppression stay outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pipeline.images.preprocessing import Preprocessing
from pipeline.networks.sources.sourced import SourcedModel

#: What the heads hold, by the detector's class: SSD takes a softmax over all classes and the background, the others a
#: sigmoid per class (torchvision's postprocess_detections).
OUTPUT_KINDS: dict[str, dict[str, str]] = {
    "SSD": {"cls_logits": "classes-last", "bbox_regression": "values"},
    "RetinaNet": {"cls_logits": "labels", "bbox_regression": "values"},
    "FCOS": {"cls_logits": "labels", "bbox_regression": "values", "bbox_ctrness": "labels"},
}

#: The published COCO_V1 weights of these were trained with BatchNorms without an epsilon (their builders set it to 0).
WITHOUT_EPSILON = frozenset(
    {"fasterrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn"}
)


class DenseHeads(nn.Module):
    """Backbone and heads of a one-stage detector, under the names that they have there."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> Any:
        """Images float32 [B, 3, H, W] to the heads' outputs by name, [B, anchors, ...] each."""
        features = self.backbone(images)
        return self.head([features] if isinstance(features, Tensor) else list(features.values()))


def is_detector(module: nn.Module) -> bool:
    """Whether torchvision built the module to return boxes."""
    return hasattr(module, "transform") and hasattr(module, "backbone")


def dense_part(
    detector: Any, source: str, *, notes: tuple[str, ...], class_names: tuple[str, ...] = ()
) -> SourcedModel:
    """What of a detector, with its weights, can be quantised.

    A detector whose second stage looks at the first one's proposals is handed over whole: only its sub-modules are
    graphs.
    """
    kind = type(detector).__name__
    preprocessing, more = _preprocessing(detector.transform)
    notes = (*notes, *more)
    if kind not in OUTPUT_KINDS:
        return SourcedModel(
            module=detector,
            preprocessing=preprocessing,
            notes=notes,
            only_parts=f"{source} is a two-stage detector ({kind}): what its second stage looks at depends on the"
            " image, so the whole is no graph; add --submodule backbone to quantise the feature pyramid, where most"
            " of the time goes, or take a one-stage detector (ssdlite320_mobilenet_v3_large,"
            " retinanet_resnet50_fpn)",
        )
    said = (
        f"{kind}: backbone and heads are quantised; anchors, decoding of the boxes and non-maximum suppression stay"
        " outside, on the outputs that torchvision's postprocess_detections takes (docs/networks.md)"
    )
    kinds: Mapping[str, str] = OUTPUT_KINDS[kind]
    return SourcedModel(
        module=DenseHeads(detector),
        preprocessing=preprocessing,
        notes=(*notes, said),
        output_kinds=kinds,
        class_names=class_names,
    )


def without_epsilon(module: nn.Module) -> None:
    """Set every BatchNorm's epsilon to 0, in place."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 0.0


def _preprocessing(transform: Any) -> tuple[Preprocessing, tuple[str, ...]]:
    """The detector's own transform, as far as one size of input allows it."""
    notes: tuple[str, ...] = ()
    if transform.fixed_size is not None:
        width, height = transform.fixed_size
    else:
        width = height = int(transform.min_size[-1])
        notes = (
            f"torchvision resizes images to {height} px on their shorter side and pads them; here they are stretched to"
            f" {width}x{height} px, since a device needs one size (--image-size)",
        )
    return (
        Preprocessing(
            channels=3,
            height=height,
            width=width,
            resize=None,
            interpolation="bilinear",
            mean=tuple(transform.image_mean),
            std=tuple(transform.image_std),
            channel_order="RGB",
        ),
        notes,
    )
