"""The backbones under the segmenter: an image batch in, features at two strides out.

A backbone returns `dict(low=…, out=…)`: `low` keeps the edges (stride 4), `out` the meaning
(stride 8). Its attributes `low_channels` and `out_channels` tell a head what to expect.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet


class ResNet50(ResNet):
    """ResNet-50 without its classifier, output stride 8.

    Method: the strides of layer3 and layer4 become dilation (first block as the layer before it,
    then 2 and 4); running statistics move by 0.01.
    """

    low_channels = 256
    out_channels = 2048

    def __init__(self) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3], replace_stride_with_dilation=[False, True, True])
        del self.fc
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.01

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return `low` (B, 256, ⌈H/4⌉, ⌈W/4⌉) and `out` (B, 2048, ⌈H/8⌉, ⌈W/8⌉) float32.

        `images`: (B, 3, H, W) float32, normalised.
        """
        low = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        return {"low": low, "out": self.layer4(self.layer3(self.layer2(low)))}


class TinyResNet(nn.Module):
    """A residual network of 0.6 M parameters for small pictures on few cores, output stride 8.

    Running statistics move by 0.1, so that a training of a few hundred steps has them right.
    """

    low_channels = 32
    out_channels = 128

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.layer1 = Residual(16, self.low_channels, stride=2)
        self.layer2 = nn.Sequential(Residual(self.low_channels, 96, stride=2), Residual(96, 96))
        self.layer3 = Residual(96, self.out_channels, dilation=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return `low` (B, 32, ⌈H/4⌉, ⌈W/4⌉) and `out` (B, 128, ⌈H/8⌉, ⌈W/8⌉) float32.

        `images`: (B, 3, H, W) float32, normalised.
        """
        low = self.layer1(self.stem(images))
        return {"low": low, "out": self.layer3(self.layer2(low))}


class Residual(nn.Module):
    """Two 3 × 3 convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        first = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
        second = nn.Conv2d(outputs, outputs, 3, 1, dilation, dilation, bias=False)
        self.body = nn.Sequential(
            first, nn.BatchNorm2d(outputs), nn.ReLU(), second, nn.BatchNorm2d(outputs)
        )
        self.around: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            project = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.around = nn.Sequential(project, nn.BatchNorm2d(outputs))

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, outputs, ⌈H/stride⌉, ⌈W/stride⌉) float32, ≥ 0."""
        return torch.relu(self.body(features) + self.around(features))
