"""RetinaFace on a ResNet-50, the method's face detector: its network, checkpoint and ONNX file.

The layout is that of the public PyTorch checkpoint. Stages run detectors in ONNX Runtime, so
`export_onnx` writes the checkpoint as such a file, once, and proves that both give the same; the
command is `namedmask export-faces CHECKPOINT OUT.onnx`. What the outputs mean stands in
`face_boxes.py`.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from namedmask.errors import MissingExtraError, NamedMaskError
from namedmask.faces.forms import priors_batch
from namedmask.storage.place import replaced
from namedmask.weights.tensors import load_strict, read_tensors

WIDTH = 256
"""Channels between the backbone and the heads."""
SQUARES = 2
"""How many squares a cell looks through."""
TOLERANCE = 1e-4
"""Relative error up to which an exported file is the network."""


class RetinaFace(nn.Module):
    """Backbone, feature pyramid, context modules, heads; 27,293,600 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.fpn = Pyramid()
        self.ssh1, self.ssh2, self.ssh3 = Context(), Context(), Context()
        self.ClassHead, self.BboxHead, self.LandmarkHead = _heads(2), _heads(4), _heads(10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return box deltas (B, N, 4), class softmax (B, N, 2) and landmarks (B, N, 10), float32.

        `images`: (B, 3, H, W) float32 BGR minus (104, 117, 123), not scaled. N is twice the sum of
        ⌈H/s⌉ · ⌈W/s⌉ over the strides s = 8, 16, 32, in that order; class 1 is a face.
        """
        fine, middle, coarse = self.fpn(self.body(images))
        levels = [self.ssh1(fine), self.ssh2(middle), self.ssh3(coarse)]
        chances = _flat(self.ClassHead, levels, 2).softmax(dim=-1)
        return _flat(self.BboxHead, levels, 4), chances, _flat(self.LandmarkHead, levels, 10)


class Body(ResNet):
    """ResNet-50 without its classifier."""

    def __init__(self) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3])
        del self.fc

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features at strides 8, 16 and 32: 512, 1024 and 2048 channels."""
        fine = self.layer2(self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images))))))
        middle = self.layer3(fine)
        return fine, middle, self.layer4(middle)


class Pyramid(nn.Module):
    """Each level gets what the coarser one knows."""

    def __init__(self) -> None:
        super().__init__()
        self.output1, self.output2, self.output3 = (
            _step(channels, WIDTH, kernel=1) for channels in (512, 1024, 2048)
        )
        self.merge1, self.merge2 = _step(WIDTH, WIDTH), _step(WIDTH, WIDTH)

    def forward(self, levels: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three levels, (B, 256, h, w) float32 each, finest first."""
        fine, middle, coarse = levels
        coarse = self.output3(coarse)
        middle = self.merge2(_added(self.output2(middle), coarse))
        return self.merge1(_added(self.output1(fine), middle)), middle, coarse


class Context(nn.Module):
    """Half the channels see 3 × 3 cells, a quarter 5 × 5, a quarter 7 × 7 ("SSH")."""

    def __init__(self) -> None:
        super().__init__()
        half, quarter = WIDTH // 2, WIDTH // 4
        self.conv3X3 = _step(WIDTH, half, relu=False)
        self.conv5X5_1 = _step(WIDTH, quarter)
        self.conv5X5_2 = _step(quarter, quarter, relu=False)
        self.conv7X7_2 = _step(quarter, quarter)
        self.conv7x7_3 = _step(quarter, quarter, relu=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, 256, h, w) float32 for the same."""
        wide = self.conv5X5_1(features)
        seen = [self.conv3X3(features), self.conv5X5_2(wide), self.conv7x7_3(self.conv7X7_2(wide))]
        return torch.relu(torch.cat(seen, dim=1))


def _step(inputs: int, outputs: int, *, kernel: int = 3, relu: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU()] if relu else []))


def _heads(width: int) -> nn.ModuleList:
    """Return a head a level, `width` numbers for each square of a cell."""
    return nn.ModuleList(
        nn.Sequential(OrderedDict(conv1x1=nn.Conv2d(WIDTH, SQUARES * width, 1))) for _ in range(3)
    )


def _added(features: Tensor, coarser: Tensor) -> Tensor:
    return features + F.interpolate(coarser, features.shape[-2:], mode="nearest")


def _flat(heads: nn.ModuleList, levels: Sequence[Tensor], width: int) -> Tensor:
    """Return (B, N, width): by level, row, column, square."""
    read = [head(level).permute(0, 2, 3, 1) for head, level in zip(heads, levels, strict=True)]
    return torch.cat([each.reshape(each.shape[0], -1, width) for each in read], dim=1)


def load_retinaface(path: Path) -> RetinaFace:
    """Return the RetinaFace of a checkpoint in eval mode; torch's random generator is not touched.

    The file is a state dict, flat or under `state_dict`, its keys with or without `module.`, which
    a training on many GPUs leaves; half precision is widened.

    Raises:
        CheckpointError: missing, truncated, holding code, or not exactly this network's entries.
    """
    tree = read_tensors(path)
    state = tree["state_dict"] if isinstance(tree.get("state_dict"), Mapping) else tree
    with torch.device("meta"):
        model = RetinaFace()
    model.to_empty(device="cpu")
    plain = {str(key).removeprefix("module."): value for key, value in state.items()}
    load_strict(model, plain, path, "RetinaFace on a ResNet-50")
    return model.eval()


def export_onnx(checkpoint: Path, out: Path, side: int = 640) -> dict[str, Any]:
    """Write a checkpoint as the ONNX file for `faces.detector = "retinaface_priors"`.

    Args:
        checkpoint: as `load_retinaface` takes it.
        out: the file; an older one is replaced whole, or stays.
        side: of the square canvas that the file will take, pixels.

    Returns:
        The path, the side, and the largest relative error of the file's three outputs.

    Raises:
        CheckpointError: as `load_retinaface`.
        MissingExtraError: onnxruntime is not installed.
        NamedMaskError: the file's outputs are not the network's.
    """
    model = load_retinaface(checkpoint)
    rng = np.random.default_rng(0)
    batch = priors_batch(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    with replaced(out) as part:
        _write_onnx(model, batch, part)
        error = _relative_error(model, batch, part)
        if not error < TOLERANCE:
            raise NamedMaskError(
                f"{out} is not written: its outputs differ from the network's by {error:.1e}, "
                f"expected below {TOLERANCE:.0e}. Check the versions of torch, onnx and "
                "onnxruntime with `namedmask doctor`."
            )
    return {"file": str(out), "side": side, "relative_error": error}


def _write_onnx(model: RetinaFace, batch: np.ndarray, path: Path) -> None:
    with warnings.catch_warnings():
        # the newer exporter needs one package more, for the same graph
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.onnx.export(
            model, (torch.from_numpy(batch),), str(path), input_names=["image"],
            output_names=["boxes", "scores", "landmarks"], opset_version=17, dynamo=False,
        )  # fmt: skip


def _relative_error(model: RetinaFace, batch: np.ndarray, path: Path) -> float:
    """Return the largest ‖a−b‖/‖b‖ of the outputs of the file and the network."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            f"an exported detector is checked in onnxruntime, which is not installed: {error}. "
            "Run: pip install 'namedmask[cpu]'"
        ) from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {"image": batch})
    with torch.inference_mode():
        expected = [output.numpy() for output in model(torch.from_numpy(batch))]
    return max(
        float(np.linalg.norm(a - b) / np.linalg.norm(b))
        for a, b in zip(found, expected, strict=True)
    )
