"""Encoders: images (n, 3, h, w), normalised -> features (n, d)."""

import math
from collections.abc import Callable
from typing import cast

from einops import rearrange
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models import resnet
from torchvision.models.resnet import conv1x1

from kaizen.config.encoder import EncoderConfig
from kaizen.model.networks.base import Encoder, build_own
from kaizen.model.networks.blocks import freeze
from kaizen.model.networks.drop_path import key_drop_paths
from kaizen.model.networks.fit import kind_of
from kaizen.model.networks.norm import normalised


class BasicBlock(resnet.BasicBlock):
    """torchvision's block; each norm is called together with the operations that follow it."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, c, h, w) -> maps (n, c', h', w')."""
        out = normalised(self.bn1, self.conv1(x))
        return normalised(self.bn2, self.conv2(out), residual=_shortcut(self.downsample, x))


class Bottleneck(resnet.Bottleneck):
    """torchvision's block; each norm is called together with the operations that follow it."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (n, c, h, w) -> maps (n, c', h', w')."""
        out = normalised(self.bn1, self.conv1(x))
        out = normalised(self.bn2, self.conv2(out))
        return normalised(self.bn3, self.conv3(out), residual=_shortcut(self.downsample, x))


def _shortcut(downsample: nn.Module | None, x: Tensor) -> Tensor:
    if not isinstance(downsample, nn.Sequential):
        return x
    convolution, norm = downsample
    return normalised(norm, convolution(x), relu=False)


RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of at most 32 groups (Wu & He 2018, arXiv 1803.08494) of at least four channels each.

    A group of one channel would erase maps of one pixel, which the last stage has for small images.
    """
    groups = math.gcd(32, channels)
    while groups > 1 and channels // groups < 4:
        groups //= 2
    return nn.GroupNorm(groups, channels)


class ResNet(nn.Module):
    """ResNet (He et al. 2016, arXiv 1512.03385) without its last layer; parameter names are torchvision's.

    torchvision's own class fixes the first stage at 64 channels and the stem at 7x7, so the stages are put together
    here from its blocks.
    """

    plain: tuple[str, ...] = ()
    keeps_views_apart = True
    """Views that come in one call have statistics of their own where the kernels can do that (see `normalised`)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        block, layers = RESNETS[config.name]
        make_norm: Callable[..., nn.Module] = nn.BatchNorm2d if config.norm == "batch" else group_norm
        channels = config.width
        if config.stem == "cifar":
            self.conv1 = nn.Conv2d(3, channels, 3, stride=1, padding=config.stem_padding, bias=False)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = make_norm(channels)
        stages = []
        for index, depth in enumerate(layers):
            planes, stride = config.width * 2**index, 1 if index == 0 else 2
            out = planes * block.expansion
            downsample = None
            if stride != 1 or channels != out:
                downsample = nn.Sequential(conv1x1(channels, out, stride), make_norm(out))
            blocks = [block(channels, planes, stride, downsample, norm_layer=make_norm)]
            blocks += [block(out, planes, norm_layer=make_norm) for _ in range(1, depth)]
            stages.append(nn.Sequential(*blocks))
            channels = out
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.feature_dim = channels
        self.block_names = (block.__name__,)
        for module in self.modules():
            # A CIFAR stem keeps torch's own start, of standard deviation 0.11, as in the released code.
            if isinstance(module, nn.Conv2d) and not (config.stem == "cifar" and module is self.conv1):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def group_matcher(self, coarse: bool = True) -> dict[str, str]:
        """Regular expressions of the names of the stem and of the stages, as timm's models give them."""
        return {"stem": r"conv1|bn1", "blocks": r"layer(\d+)"}

    def forward(self, images: Tensor) -> Tensor:
        """Images (n, 3, h, w) -> features (n, feature_dim)."""
        x = self.maxpool(normalised(self.bn1, self.conv1(images)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return rearrange(self.avgpool(x), "n c 1 1 -> n c")


def build_encoder(config: EncoderConfig, image_size: int | None = None) -> Encoder:
    """The encoder that the configuration names, freshly initialised from torch's global generator, its parts frozen.

    Args:
        config: a ViT's has its patch, as a resolved configuration does.
        image_size: side of the images in pixels; our ResNets take any.
    """
    encoder = cast(Encoder, _built(config, image_size))
    key_drop_paths(encoder)
    freeze(encoder, config.freeze)
    if kind_of(config.name) != "own":  # which says so itself
        encoder.mixes_images = any(isinstance(part, _BatchNorm) for part in encoder.modules())
    return encoder


def _built(config: EncoderConfig, image_size: int | None) -> nn.Module:
    kind = kind_of(config.name)
    if kind == "resnet":
        return ResNet(config)
    if kind == "own":
        return build_own(config, image_size)
    assert image_size is not None
    if kind == "timm":
        from kaizen.model.networks.timm_encoder import build_timm

        return build_timm(config.name, image_size, config.drop_path)
    assert config.patch is not None
    from kaizen.model.networks.vit import ViT

    return ViT(config.name, image_size, config.patch, config.drop_path)
