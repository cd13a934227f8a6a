"""DeepLabv3+ networks, which map a batch of normalized images to one logit per label and pixel.

`deeplabv3plus_resnet50` is the network of the method (method section 3.1); its state dict has the
keys of the released checkpoints. `deeplabv3plus_resnet101` has the same head on a deeper backbone.
`deeplabv3plus_tiny` has a narrower head on a small backbone, for CPUs and images of 64 to 128
pixels. A dotted path in `segmenter.name` selects any other network. Checkpoints are read and
written by checkpoint.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from namedmask.segmenter.backbone import ResNet50, ResNet101, TinyResNet


class DeepLabV3Plus(nn.Module):
    """A backbone with a head, which maps normalized images to logits at the same size."""

    def __init__(self, backbone: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (B, K, H, W) float32, of the K labels; background is the first.

        `images`: (B, 3, H, W) float32 RGB, normalized with the ImageNet mean and deviation.
        """
        logits = self.coarse(images)
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)

    def coarse(self, images: Tensor) -> Tensor:
        """Return the logits, (B, K, h, w) float32, before they are resized to the images."""
        return cast(Tensor, self.classifier(self.backbone(images)))


class Head(nn.Module):
    """The DeepLabv3+ head, which joins context at four scales with the low-level features.

    Method: width 256, low-level width 48, dilation rates (12, 24, 36), dropout 0.1, Kaiming
    initialization.
    """

    def __init__(
        self,
        backbone: ResNet50 | TinyResNet,
        num_labels: int,
        width: int = 256,
        low_width: int = 48,
        rates: Sequence[int] = (12, 24, 36),
    ) -> None:
        super().__init__()
        self.project = nn.Sequential(*_conv_1x1(backbone.low_channels, low_width))
        self.aspp = Pyramid(backbone.out_channels, width, rates)
        self.classifier = nn.Sequential(
            *_separable_3x3(width + low_width, width, rate=1), nn.Conv2d(width, num_labels, 1)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Return logits at the size of the low-level features, (B, K, h, w) float32."""
        low = self.project(features["low"])
        context = self.aspp(features["out"])
        context = F.interpolate(context, low.shape[-2:], mode="bilinear", align_corners=False)
        return cast(Tensor, self.classifier(torch.cat([low, context], dim=1)))


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling: a 1 × 1 branch, a branch per rate, and an image mean."""

    def __init__(self, inputs: int, width: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Sequential(*_conv_1x1(inputs, width)),
                *(nn.Sequential(*_separable_3x3(inputs, width, rate)) for rate in rates),
                nn.Sequential(nn.AdaptiveAvgPool2d(1), *_conv_1x1(inputs, width)),
            ]
        )
        self.project = nn.Sequential(*_conv_1x1(len(self.convs) * width, width), nn.Dropout(0.1))

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, width, h, w) float32 for features (B, inputs, h, w)."""
        size = features.shape[-2:]
        branches = [branch(features).expand(-1, -1, *size) for branch in self.convs]
        return cast(Tensor, self.project(torch.cat(branches, dim=1)))


class Separable(nn.Module):
    """A depthwise 3 × 3 and a 1 × 1 convolution, without a norm or ReLU between them."""

    def __init__(self, inputs: int, outputs: int, rate: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, padding=rate, dilation=rate, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1, bias=False),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, outputs, h, w) float32 for features (B, inputs, h, w)."""
        return cast(Tensor, self.body(features))


def _conv_1x1(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def _separable_3x3(inputs: int, outputs: int, rate: int) -> tuple[nn.Module, ...]:
    return Separable(inputs, outputs, rate), nn.BatchNorm2d(outputs), nn.ReLU()


def deeplabv3plus_resnet50(num_labels: int) -> nn.Module:
    """Return the method's network for `num_labels` labels, background included, random weights."""
    backbone = ResNet50()
    return DeepLabV3Plus(backbone, Head(backbone, num_labels))


def deeplabv3plus_resnet101(num_labels: int) -> nn.Module:
    """Return the method's head on a ResNet-101 for `num_labels` labels, with random weights.

    Differs: the method uses only a ResNet-50.
    """
    backbone = ResNet101()
    return DeepLabV3Plus(backbone, Head(backbone, num_labels))


def deeplabv3plus_tiny(num_labels: int) -> nn.Module:
    """Return a small DeepLabv3+ of 0.5 M random weights, for images of about 100 pixels on a CPU.

    The dilation rates are the method's divided by six. At stride 8, the method's crop has 48 cells
    per side, whereas a small image has 8 to 16.
    """
    backbone = TinyResNet()
    return DeepLabV3Plus(
        backbone, Head(backbone, num_labels, width=64, low_width=32, rates=(2, 4, 6))
    )


SEGMENTERS: dict[str, Callable[[int], nn.Module]] = {
    "deeplabv3plus_resnet50": deeplabv3plus_resnet50,
    "deeplabv3plus_resnet101": deeplabv3plus_resnet101,
    "deeplabv3plus_tiny": deeplabv3plus_tiny,
}
"""Registry of functions that build a segmenter for a number of labels, background included."""
