"""DeepLabv3+: a normalised image batch in, one logit a label and pixel out; its checkpoints.

`deeplabv3plus_resnet50` is the network of the method (method section 3.1), with the layout of the
released checkpoints; `deeplabv3plus_resnet101` has the same head over a deeper backbone;
`deeplabv3plus_tiny` has it narrow, over a small one for CPUs and pictures of 64 to 128 pixels.
Others come by a dotted path. How a file is read and filled in stands in checkpoints.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from namedmask.backbone import ResNet50, ResNet101, TinyResNet
from namedmask.checkpoints import load_strict, read_tensors, some_of, write_tree
from namedmask.config import SegmenterConfig
from namedmask.errors import CheckpointError
from namedmask.plugins import resolve
from namedmask.schema import FORMAT_VERSION, IGNORE
from namedmask.storage import Place, place_of
from namedmask.weights import path_of

CHECKPOINT = Path("segmenter") / "checkpoint.pt"
TRAINING = Path("segmenter") / "training.pt"
"""Where a run folder keeps its segmenter, and the state of its training until that is done."""

MINIWORLD_BACKBONE = Path(__file__).parent / "miniworld" / "weights" / "backbone.safetensors"


class DeepLabV3Plus(nn.Module):
    """A backbone and a head: (B, 3, H, W) normalised images to (B, K, H, W) logits."""

    def __init__(self, backbone: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (B, K, H, W) float32, K = labels with background first.

        `images`: (B, 3, H, W) float32 RGB, ImageNet mean and deviation taken out.
        """
        logits = self.classifier(self.backbone(images))
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)


class Head(nn.Module):
    """The DeepLabv3+ head: context at four scales, joined with the low-level features.

    Method: width 256, low-level width 48, rates (12, 24, 36), dropout 0.1, Kaiming start.
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
        self.project = nn.Sequential(*_point(backbone.low_channels, low_width))
        self.aspp = Pyramid(backbone.out_channels, width, rates)
        self.classifier = nn.Sequential(
            *_spread(width + low_width, width, rate=1), nn.Conv2d(width, num_labels, 1)
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
    """Atrous spatial pyramid pooling: one point, three rates and the mean of the picture."""

    def __init__(self, inputs: int, width: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Sequential(*_point(inputs, width)),
                *(nn.Sequential(*_spread(inputs, width, rate)) for rate in rates),
                nn.Sequential(nn.AdaptiveAvgPool2d(1), *_point(inputs, width)),
            ]
        )
        self.project = nn.Sequential(*_point(len(self.convs) * width, width), nn.Dropout(0.1))

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, width, h, w) float32 for features (B, inputs, h, w)."""
        size = features.shape[-2:]
        branches = [branch(features).expand(-1, -1, *size) for branch in self.convs]
        return cast(Tensor, self.project(torch.cat(branches, dim=1)))


class Separable(nn.Module):
    """A 3 × 3 convolution a channel, then a 1 × 1; no norm, no ReLU between them."""

    def __init__(self, inputs: int, outputs: int, rate: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, padding=rate, dilation=rate, groups=inputs, bias=False),
            nn.Conv2d(inputs, outputs, 1, bias=False),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, outputs, h, w) float32."""
        return cast(Tensor, self.body(features))


def _point(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()


def _spread(inputs: int, outputs: int, rate: int) -> tuple[nn.Module, ...]:
    return Separable(inputs, outputs, rate), nn.BatchNorm2d(outputs), nn.ReLU()


def deeplabv3plus_resnet50(num_labels: int) -> nn.Module:
    """Return the method's network for `num_labels` labels, background included; random weights."""
    backbone = ResNet50()
    return DeepLabV3Plus(backbone, Head(backbone, num_labels))


def deeplabv3plus_resnet101(num_labels: int) -> nn.Module:
    """Return the method's head over a ResNet-101, for as many labels; random weights.

    Differs: the method has a ResNet-50 alone.
    """
    backbone = ResNet101()
    return DeepLabV3Plus(backbone, Head(backbone, num_labels))


def deeplabv3plus_tiny(num_labels: int) -> nn.Module:
    """Return the same design in 0.5 M parameters, for pictures of about 100 pixels on a CPU.

    The rates are the method's over six: its crop has 48 cells a side at stride 8, ours 8 to 16.
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


def build_segmenter(config: SegmenterConfig, num_labels: int, seed: int = 0) -> nn.Module:
    """Return a new segmenter for `num_labels` labels, background included, backbone loaded.

    What no file gives is drawn from `seed`; torch's own generator stays as it was.

    Raises:
        ConfigError: no segmenter of this name.
        CheckpointError: the backbone's file is missing or made for another network.
    """
    factory = resolve("segmenter", config.name, SEGMENTERS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = factory(num_labels)
    if config.backbone_weights:
        shipped = config.backbone_weights == "miniworld"
        path = MINIWORLD_BACKBONE if shipped else path_of(config.backbone_weights)
        load_strict(cast(nn.Module, model.backbone), read_tensors(path), path, config.name)
    return model


def starting_segmenter(
    config: SegmenterConfig, names: Sequence[str], seed: int = 0, start: str = ""
) -> nn.Module:
    """Return a segmenter to train for these label names (background left out).

    With `start`, a checkpoint, it begins with that one's weights: labels of the same name take
    theirs over, whatever their place, and new ones are drawn from `seed`.

    Raises:
        ConfigError, CheckpointError: as `build_segmenter` and `load_checkpoint`; the checkpoint
            holds another network.
    """
    model = build_segmenter(config, len(names) + 1, seed)
    if start:
        path = place_of(start)
        old, old_names = load_checkpoint(path, config)
        before, state = old.state_dict(), model.state_dict()
        if type(old) is not type(model) or before.keys() != state.keys():
            raise CheckpointError(
                f"train.start: {path} holds another network than segmenter.name '{config.name}'. "
                "Name the one it was trained with, or leave train.start empty."
            )
        places = [(0, 0)] + [
            (place, old_names.index(name) + 1)
            for place, name in enumerate(names, start=1)
            if name in old_names
        ]
        to, of = (list(side) for side in zip(*places, strict=True))
        by_label = _keys_by_label(config)
        for key, value in before.items():
            if key in by_label:
                state[key][to] = value[of]
            else:
                state[key] = value
        load_strict(model, state, path, config.name)
    return model


def _keys_by_label(config: SegmenterConfig) -> set[str]:
    """Return the tensors of a segmenter that have a row for each label."""
    factory = resolve("segmenter", config.name, SEGMENTERS)
    with torch.device("meta"):
        two, three = factory(2).state_dict(), factory(3).state_dict()
    return {key for key, value in two.items() if value.shape != three[key].shape}


def save_checkpoint(
    path: Place,
    model: nn.Module,
    *,
    name: str,
    names: Sequence[str],
    step: int = 0,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the segmenter `name` with its label names (background left out) to `path`.

    `extra` is plain values kept beside the weights. A killed run leaves the old file or the new.

    Raises:
        NamedMaskError: the folder cannot be written.
    """
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    tree = {
        "format_version": FORMAT_VERSION,
        "segmenter": name,
        "names": list(names),
        "step": step,
        "extra": dict(extra or {}),
        "model": state,
    }
    write_tree(path, tree)


def load_checkpoint(
    path: Place, config: SegmenterConfig | None = None, names: Sequence[str] = ()
) -> tuple[nn.Module, tuple[str, ...]]:
    """Return the segmenter of a checkpoint in eval mode, and its label names without background.

    A file does not choose which code runs: one that names a dotted path is loaded only when
    `config` names the same. A flat state dict, as the original releases them, says neither which
    network it is of nor what its labels are called: `config` and `names` do.

    Raises:
        CheckpointError: missing, truncated, not ours, newer, or of another label count.
    """
    tree = read_tensors(path)
    if tree and all(isinstance(value, Tensor) for value in tree.values()):
        return _of_bare_weights(tree, path, config or SegmenterConfig(), names), tuple(names)
    version = tree.get("format_version")
    if not isinstance(version, int) or not isinstance(tree.get("model"), dict):
        raise CheckpointError(
            f"{path}: expected a NamedMask checkpoint with format_version and model, or a flat "
            f"state dict; got entries {some_of(tree)}."
        )
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: written in format {version}, this version reads up to {FORMAT_VERSION}. "
            "Upgrade namedmask."
        )
    name, held = tree.get("segmenter"), tree.get("names")
    if not isinstance(name, str) or not _are_label_names(held):
        raise CheckpointError(
            f"{path}: expected the name of a segmenter and 1 to {IGNORE - 1} different label names."
        )
    if name not in SEGMENTERS and (config is None or config.name != name):
        raise CheckpointError(
            f"{path}: holds segmenter '{name}'; known: {', '.join(SEGMENTERS)}. For a plug-in, "
            "name the same in segmenter.name of the run file."
        )
    model = resolve("segmenter", name, SEGMENTERS)(len(held) + 1)
    load_strict(model, tree["model"], path, f"{name} with {len(held) + 1} labels")
    return model.eval(), tuple(held)


def _of_bare_weights(
    state: Mapping[str, Tensor], path: Place, config: SegmenterConfig, names: Sequence[str]
) -> nn.Module:
    """Return the configured segmenter with these weights, whose last layer has a row a label."""
    rows = {state[key].shape[:1] for key in _keys_by_label(config) if key in state}
    count = next(iter(rows))[0] if len(rows) == 1 and all(rows) else None
    if count and not names:
        raise CheckpointError(
            f"{path}: holds bare weights of {count} labels, background included, without their "
            "names. Name the category set they were trained on: --set voc2012, or --set "
            "categories.set=FILE.toml."
        )
    if count and count != len(names) + 1:
        raise CheckpointError(
            f"{path}: its last layer has {count} labels, background included; the {len(names)} "
            f"names given and the background are {len(names) + 1}. Name the category set it was "
            "trained on: --set voc2012, or --set categories.set=FILE.toml."
        )
    model = resolve("segmenter", config.name, SEGMENTERS)(len(names) + 1)
    load_strict(model, state, path, f"{config.name} with {len(names) + 1} labels")
    return model.eval()


def _are_label_names(names: object) -> TypeGuard[list[str]]:
    return (
        isinstance(names, list)
        and 0 < len(names) < IGNORE
        and all(isinstance(name, str) and name for name in names)
        and len(set(names)) == len(names)
    )
