"""The backbones under the segmenter: an image batch in, features at two strides out.

A backbone returns `dict(low=…, out=…)`: `low` keeps the edges (stride 4), `out` the meaning
(stride 8). Its attributes `low_channels` and `out_channels` tell a head what to expect.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet


class ResNet50(ResNet):
    """ResNet-50 without its classifier, output stride 8.

    Method: the strides of layer3 and layer4 become dilation (first block as the layer before it,
    then 2 and 4); running statistics move by 0.01.
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

        `images`: (B, 3, H, W) float32, normalised.
        """
        low = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        return {"low": low, "out": self.layer4(self.layer3(self.layer2(low)))}


class ResNet101(ResNet50):
    """The same with 101 layers."""

    blocks = (3, 4, 23, 3)


class TinyResNet(nn.Module):
    """CLIP's ResNet, narrow, for small pictures on few cores: 0.34 M parameters, output stride 8.

    The image tower of the mini world's CLIP without its pooling head, so that it may start from
    there. Strides of the last two layers become dilation, as in `ResNet50`. Running statistics
    move by 0.1: a training of a few hundred steps has them right.
    """

    low_channels = 48
    out_channels = 384

    def __init__(self) -> None:
        super().__init__()
        from open_clip.modified_resnet import ModifiedResNet  # seconds to import, for one network

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
                module.ceil_mode = True  # an image of one pixel keeps it

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return `low` (B, 48, ⌈H/4⌉, ⌈W/4⌉) and `out` (B, 384, ⌈H/8⌉, ⌈W/8⌉) float32.

        `images`: (B, 3, H, W) float32, normalised.
        """
        low = self.trunk.layer1(self.trunk.stem(images))
        return {"low": low, "out": self.trunk.layer4(self.trunk.layer3(self.trunk.layer2(low)))}
