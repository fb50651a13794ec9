"""The networks that people ship, by name: what must be captured, quantised and executed, built without a download."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ZooNetwork:
    """One network of a library: `name` in it, `family` in the reviewed table, `create` makes it for a size of images.

    `pixels` is the small size that tests use, `full_pixels` the one that it is published for; of blocks in a row that
    repeat each other a shallow copy keeps `repeats`.
    """

    name: str
    family: str
    create: Callable[[int], nn.Module]
    library: Literal["torchvision", "timm"] = "torchvision"
    style: Literal["cnn", "transformer"] = "cnn"
    pixels: int = 64
    full_pixels: int = 224
    repeats: int = 1

    @property
    def source(self) -> str:
        """What --teacher takes for it."""
        return f"{self.library}:{self.name}"

    def images(self, count: int, *, pixels: int | None = None, seed: int = 7) -> Tensor:
        """Normalised images [count, 3, pixels, pixels], float32: smooth patches with noise, as photographs have."""
        size, generator = pixels or self.pixels, torch.Generator().manual_seed(seed)
        coarse = torch.randn(count, 3, 8, 8, generator=generator)
        smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
        return smooth + 0.3 * torch.randn(count, 3, size, size, generator=generator)

    def build(self, *, pixels: int | None = None, shallow: bool = False, seed: int = 0) -> nn.Module:
        """The network in evaluation mode for images of that size, with reproducible, sane random weights.

        `shallow`: of blocks that repeat each other only the first `repeats` are kept, which is quick and still has
        every kind of block.
        """
        size = pixels or self.pixels
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' own
            torch.manual_seed(seed)
            module = self.create(size).eval()
            if shallow:
                _drop_repeated(module, self.repeats)
            return lived_in(module, self.images(16, pixels=size, seed=seed), seed)


def _drop_repeated(module: nn.Module, repeats: int) -> None:
    """Keep the first `repeats` of the neighbours in a sequence whose parameters are alike in name and shape."""

    def form(block: nn.Module) -> list[tuple[str, torch.Size]]:
        return [(name, parameter.shape) for name, parameter in block.named_parameters()]

    for sequence in [child for child in module.modules() if isinstance(child, nn.Sequential)]:
        run = 0
        for (_, before), (name, block) in itertools.pairwise(list(sequence.named_children())):
            run = run + 1 if form(block) and form(block) == form(before) else 0
            if run >= repeats:
                delattr(sequence, name)


def lived_in(module: nn.Module, images: Tensor, seed: int) -> nn.Module:
    """Give weights and statistics that a trained network could have: activations neither explode nor die with depth.

    Layers are scaled so that their outputs have variance 1 (Mishkin and Matas 2016, arXiv:1511.06422), BatchNorms
    get these images' statistics and gains around 1; what begins at zero (layer scales, position biases) gets values.
    """
    generator = torch.Generator().manual_seed(seed)

    def scale(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        size = float(output.std())
        if not size > 1e-6:
            return output
        assert isinstance(layer.weight, Tensor)
        layer.weight.div_(size)
        if isinstance(layer.bias, Tensor):
            layer.bias.div_(size)
        return output / size

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() == 1 and name.endswith("weight") and parameter.numel() > 1:
                parameter.copy_(0.6 + 0.8 * torch.rand(parameter.shape, generator=generator))
            elif parameter.abs().max() < 1e-4:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        hooks = []
        for child in module.modules():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                child.momentum = None  # the mean over all batches seen, which is this one
                child.train()
            elif isinstance(child, (nn.Conv2d, nn.Linear)):
                hooks.append(child.register_forward_hook(scale))
        module(images)
        for hook in hooks:
            hook.remove()
        for child in module.modules():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                assert child.running_var is not None
                # A channel that these few images leave silent must not be amplified a hundredfold by others.
                child.running_var.clamp_(min=0.1 * float(child.running_var.mean()))
    return module.eval()


def _torchvision(family: str, name: str, *, sized: bool = False, options: Any = None, **settings: Any) -> ZooNetwork:
    def create(pixels: int) -> nn.Module:
        from torchvision import models

        settings = dict(options or {}) | ({"image_size": pixels} if sized else {})
        module: nn.Module = models.get_model(name, weights=None, **settings)
        return module

    return ZooNetwork(name=name, family=family, create=create, **settings)


def _timm(name: str, *, sized: bool = False, **settings: Any) -> ZooNetwork:
    def create(pixels: int) -> nn.Module:
        import timm

        settings: dict[str, Any] = {"img_size": pixels} if sized else {}
        module: nn.Module = timm.create_model(name, pretrained=False, **settings)
        return module

    return ZooNetwork(name=name, family=name.split("_")[0], library="timm", create=create, **settings)


def _maxvit(pixels: int) -> nn.Module:
    """torchvision's maxvit_t, whose builder fixes the size of the windows, for images of any multiple of 32 pixels."""
    from torchvision.models.maxvit import MaxVit

    module: nn.Module = MaxVit(
        input_size=(pixels, pixels),
        stem_channels=64,
        partition_size=pixels // 32,
        block_channels=[64, 128, 256, 512],
        block_layers=[2, 2, 5, 2],
        head_dim=32,
        stochastic_depth_prob=0.2,
    )
    return module


_LISTED: tuple[ZooNetwork, ...] = (
    _torchvision("AlexNet", "alexnet"),
    _torchvision("VGG", "vgg11", pixels=32),
    _torchvision("VGG with BatchNorm", "vgg11_bn", pixels=32),
    _torchvision("GoogLeNet", "googlenet", options={"aux_logits": False, "init_weights": True}),
    _torchvision(
        "Inception v3",
        "inception_v3",
        pixels=80,
        full_pixels=299,
        options={"aux_logits": False, "init_weights": False},
    ),
    _torchvision("SqueezeNet", "squeezenet1_1"),
    _torchvision("DenseNet", "densenet121"),
    _torchvision("ResNet", "resnet18"),
    _torchvision("ResNet with bottlenecks", "resnet50"),
    _torchvision("ResNeXt", "resnext50_32x4d"),
    _torchvision("Wide ResNet", "wide_resnet50_2"),
    _torchvision("MobileNet V2", "mobilenet_v2"),
    _torchvision("MobileNet V3 small", "mobilenet_v3_small"),
    _torchvision("MobileNet V3 large", "mobilenet_v3_large"),
    _torchvision("ShuffleNet V2", "shufflenet_v2_x1_0"),
    _torchvision("MNASNet", "mnasnet1_0"),
    _torchvision("EfficientNet V1", "efficientnet_b0"),
    _torchvision("EfficientNet V2", "efficientnet_v2_s", full_pixels=384),
    _torchvision("RegNet X", "regnet_x_400mf"),
    _torchvision("RegNet Y", "regnet_y_400mf"),
    _torchvision("ConvNeXt", "convnext_tiny", style="transformer"),
    _torchvision("ViT", "vit_b_32", style="transformer", sized=True),
    _torchvision("Swin V1", "swin_t", style="transformer", repeats=2),
    _torchvision("Swin V2", "swin_v2_t", style="transformer", full_pixels=256, repeats=2),
    ZooNetwork(name="maxvit_t", family="MaxViT", create=_maxvit, style="transformer"),
    _timm("mobilenetv4_conv_small"),
    _timm("repvgg_a0"),
    _timm("mobileone_s0"),
    _timm("repvit_m0_9"),
    _timm("starnet_s1"),
    _timm("ghostnetv2_100"),
    _timm("fastvit_t8", full_pixels=256),
    _timm("edgenext_xx_small", full_pixels=256, style="transformer"),
    _timm("efficientvit_b0", style="transformer"),
    _timm("efficientformerv2_s0", style="transformer", sized=True),
    _timm("tiny_vit_5m_224", style="transformer"),
)

#: Every network by its name.
ZOO: dict[str, ZooNetwork] = {network.name: network for network in _LISTED}
