"""Networks of four libraries, one or more of every family, with random weights: what vision networks export to.

A library that is not installed yields nothing. `python3 -m pip install timm transformers ultralytics` gets them all.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_SMALL = ("test", "atto", "femto", "pico", "nano", "xxs", "xxt", "tiny", "xs", "ultra", "lite", "small", "mini")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One network: the library that has it, its name there, what builds it, and the sizes of its images."""

    library: str
    name: str
    build: Callable[[], nn.Module]
    pixels: int = 224
    channels: int = 3

    def example(self) -> Tensor:
        """Two normalised images."""
        shape = (2, self.channels, self.pixels, self.pixels)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class Named(nn.Module):
    """A network that returns an object of its library, as a dictionary of its tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: Tensor) -> dict[str, Any]:
        """Images to the tensors that the object names."""
        results = self.network(pixel_values)
        return {name: value for name, value in results.items() if isinstance(value, (Tensor, tuple, list))}


def timm_networks() -> Iterator[Architecture]:
    """The smallest of every family: names of one file that start with the same word."""
    if importlib.util.find_spec("timm") is None:
        return
    import timm

    families: dict[tuple[str, str], list[str]] = {}
    for file in timm.list_modules():
        for name in timm.list_models(module=file):
            word = re.match(r"[a-z]+", name.removeprefix("test_"))
            families.setdefault((file, word.group() if word else name), []).append(name)
    firsts = {file: word for file, word in reversed(families)}
    # The first family of every file before the others.
    for family in sorted(families, key=lambda family: firsts[family[0]] != family[1]):
        name = min(families[family], key=_apparent_size)
        size = timm.models.get_pretrained_cfg(name)
        shape = size.input_size if size is not None else (3, 224, 224)
        yield Architecture(
            library="timm",
            name=name,
            build=lambda name=name: timm.create_model(name),  # type: ignore[misc]
            pixels=shape[1],
            channels=shape[0],
        )


def _apparent_size(name: str) -> tuple[int, int, str]:
    words = re.split(r"[_.]", name)
    small = next((place for place, word in enumerate(_SMALL) if word in words), len(_SMALL))
    digits = [int(digit) for digit in re.findall(r"\d+", name)]
    return small, min(digits, default=0), name


def torchvision_networks() -> Iterator[Architecture]:
    """Classifiers and segmentation networks, one for each word that names start with, and parts of the detectors."""
    from torchvision import models

    from pipeline.networks.sources.torchvision_detection import DenseHeads

    def built(name: str) -> nn.Module:
        options = {} if name in classifiers else {"weights_backbone": None}
        module: nn.Module = models.get_model(name, weights=None, **options)
        return module

    classifiers, families = models.list_models(module=models), dict[str, str]()
    for name in [*classifiers, *models.list_models(module=models.segmentation)]:
        word = re.match(r"[a-z_]+?(?=\d|_|$)", name)
        families.setdefault(word.group() if word else name, name)
    for name in families.values():
        yield Architecture(
            library="torchvision",
            name=name,
            build=lambda name=name: built(name),  # type: ignore[misc]
            pixels=299 if name.startswith("inception") else 224,
        )

    for name in ("ssdlite320_mobilenet_v3_large", "ssd300_vgg16", "retinanet_resnet50_fpn", "fcos_resnet50_fpn"):
        yield Architecture(
            library="torchvision",
            name=f"{name}, backbone and heads",
            build=lambda name=name: DenseHeads(built(name)),  # type: ignore[misc]
            pixels=320 if "320" in name else 300,
        )
    for name in ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"):
        yield Architecture(
            library="torchvision",
            name=f"{name}, backbone",
            build=lambda name=name: built(name).backbone,  # type: ignore[misc,arg-type]
        )


#: The tasks of transformers whose networks take an image alone, by the word in the name of the mapping.
_TASKS = (
    "IMAGE_CLASSIFICATION",
    "SEMANTIC_SEGMENTATION",
    "UNIVERSAL_SEGMENTATION",
    "DEPTH_ESTIMATION",
    "OBJECT_DETECTION",
    "KEYPOINT_DETECTION",
    "POSE_ESTIMATION",
    "IMAGE_MATTING",
    "IMAGE_TO_IMAGE",
    "BACKBONE",
    "IMAGE",
)
#: Tasks of bare bodies, of which those are left out that another task's network has.
_BARE = ("BACKBONE", "IMAGE")


def transformers_networks() -> Iterator[Architecture]:
    """Every class of every task, its configuration with few blocks of each kind."""
    if importlib.util.find_spec("transformers") is None:
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import transformers
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    known, types = set[str](), set[str]()
    for task in _TASKS:
        for model_type, names in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").items():
            if task in _BARE and model_type in types:
                continue
            types.add(model_type)
            for name in (names,) if isinstance(names, str) else names:
                if name in known or not hasattr(transformers, name) or model_type not in CONFIG_MAPPING:
                    continue
                known.add(name)
                shrunken = _shrunken(CONFIG_MAPPING[model_type])
                size = getattr(shrunken, "image_size", 224) if shrunken is not None else 224
                pixels = size if isinstance(size, int) and size <= 640 else 224
                yield Architecture(
                    library="transformers",
                    name=name,
                    build=lambda name=name, kind=model_type: Named(  # type: ignore[misc]
                        getattr(transformers, name)(_shrunken(CONFIG_MAPPING[kind]))
                    ),
                    pixels=pixels,
                    channels=getattr(shrunken, "num_channels", 3) or 3,
                )


def _shrunken(kind: Any) -> Any:
    """A configuration with two blocks where it has many; None where the class makes none without arguments."""
    try:
        whole = kind()
    except (TypeError, ValueError, OSError, ImportError):
        return None
    _shrink(whole)
    return whole


def _shrink(config: Any) -> None:
    for field in ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers"):
        whole = hasattr(config, "out_indices") or hasattr(config, "neck_hidden_sizes")  # a head reads blocks by number
        if isinstance(getattr(config, field, None), int) and not whole:
            setattr(config, field, min(getattr(config, field), 2))
    for field in ("depths", "num_blocks", "depth"):
        if isinstance(getattr(config, field, None), (list, tuple)):
            setattr(config, field, [min(int(count), 2) for count in getattr(config, field)])
    if hasattr(config, "use_pretrained_backbone"):
        config.use_pretrained_backbone = False
    for part in ("backbone_config", "vision_config", "text_config"):
        if hasattr(getattr(config, part, None), "to_dict"):
            _shrink(getattr(config, part))


#: The module at the end of a YAML file, in small letters -> the class that builds the network of it.
_ENDS = {
    "rtdetrdecoder": "RTDETRDetectionModel",
    "worlddetect": "WorldModel",
    "yoloedetect": "YOLOEModel",
    "yoloesegment": "YOLOESegModel",
    "semanticsegment": "SemanticSegmentationModel",
    "segment": "SegmentationModel",
    "pose": "PoseModel",
    "obb": "OBBModel",
    "classify": "ClassificationModel",
    "depth": "DepthModel",
    "detect": "DetectionModel",
}


def ultralytics_networks() -> Iterator[Architecture]:
    """The network of every YAML file, in its smallest size."""
    if importlib.util.find_spec("ultralytics") is None:
        return
    import ultralytics
    import yaml  # type: ignore[import-untyped]  # no stubs: only the survey reads such files
    from ultralytics.nn import tasks

    def built(name: str, end: str) -> nn.Module:
        described = tasks.yaml_model_load(f"{name}.yaml")
        for *_, options in described["backbone"]:
            options[:] = [None if option == "DEFAULT" else option for option in options]  # of weights to download
        network: nn.Module = getattr(tasks, end)(described, verbose=False)
        return network

    for file in sorted((Path(ultralytics.__file__).parent / "cfg" / "models").rglob("*.yaml")):
        described = yaml.safe_load(file.read_text(encoding="utf-8"))
        last = described["head"][-1][-2].lower()
        smallest = next(iter(described.get("scales", {})), "")  # the first is the smallest: n
        name = re.sub(r"^(yoloe?-?v?\d+)(?=-|$)", rf"\g<1>{smallest}", file.stem)
        yield Architecture(
            library="ultralytics",
            name=name,
            build=lambda name=name, last=last: built(name, next(_ENDS[word] for word in _ENDS if word in last)),  # type: ignore[misc]
            pixels=64 if last == "classify" else 128,
        )


LIBRARIES: dict[str, Callable[[], Iterator[Architecture]]] = {
    "timm": timm_networks,
    "torchvision": torchvision_networks,
    "transformers": transformers_networks,
    "ultralytics": ultralytics_networks,
}
