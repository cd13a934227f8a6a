"""Backbone networks of the segmenter, which map an image batch to features at two strides.

A backbone returns `dict(low=…, out=…)`. `low` has stride 4 and keeps edges sharp; `out` has
stride 8 and carries the semantics. A segmentation head reads their numbers of channels from the
attributes `low_channels` and `out_channels`.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet


class ResNet50(ResNet):  # type: ignore[misc]  # torchvision ships no types
    """A ResNet-50 without its classifier; its output stride is 8.

    Method: layer3 and layer4 use dilation instead of strides (2 and 4; the first block of each
    keeps the dilation of the layer before it). The momentum of batch norm is 0.01.
    """

    low_channels = 256
    out_channels = 2048

    blocks = (3, 4, 6, 3)

    def __init__(self) -> None:
        super().__init__(
            Bottleneck, list(self.blocks), replace_stride_with_dilation=[False, True, True]
        )
        del self.fc
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.01

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return `low` (B, 256, ⌈H/4⌉, ⌈W/4⌉) and `out` (B, 2048, ⌈H/8⌉, ⌈W/8⌉) float32.

        `images`: (B, 3, H, W) float32 RGB, normalized with the ImageNet mean and deviation.
        """
        low = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        return {"low": low, "out": self.layer4(self.layer3(self.layer2(low)))}


class ResNet101(ResNet50):
    """A ResNet-101 without its classifier, changed in the same ways as `ResNet50`."""

    blocks = (3, 4, 23, 3)


class TinyResNet(nn.Module):
    """A narrow CLIP ResNet with 0.34 M parameters and output stride 8, for small images on CPUs.

    It has the layers of the image tower of the mini world's CLIP except the pooling head, so
    training can start from the weights of that CLIP. As in `ResNet50`, the last two layers use
    dilation instead of strides. The momentum of batch norm is 0.1, so that the running statistics
    converge within a few hundred training steps.
    """

    low_channels = 48
    out_channels = 384

    def __init__(self) -> None:
        super().__init__()
        # imported here because the import takes seconds and only this backbone needs it
        from open_clip.modified_resnet import ModifiedResNet

        self.trunk = ModifiedResNet((1, 2, 2, 1), output_dim=8, heads=4, image_size=64, width=12)
        del self.trunk.attnpool
        for layer, rates in ((self.trunk.layer3, (1, 2)), (self.trunk.layer4, (2, 4))):
            for block, rate in zip(layer, rates, strict=False):
                block.avgpool = nn.Identity()
                if block.downsample is not None:
                    block.downsample[0] = nn.Identity()
                block.conv2.dilation = block.conv2.padding = (rate, rate)
        for module in self.modules():
            if isinstance(module, nn.AvgPool2d):
                module.ceil_mode = True  # otherwise a feature map of one pixel would become empty

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return `low` (B, 48, ⌈H/4⌉, ⌈W/4⌉) and `out` (B, 384, ⌈H/8⌉, ⌈W/8⌉) float32.

        `images`: (B, 3, H, W) float32 RGB, normalized with the ImageNet mean and deviation.
        """
        low = self.trunk.layer1(self.trunk.stem(images))
        return {"low": low, "out": self.trunk.layer4(self.trunk.layer3(self.trunk.layer2(low)))}
