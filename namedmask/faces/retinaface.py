"""RetinaFace on a ResNet-50, the method's face detector: its network, checkpoint and ONNX file.

The layout is that of the public PyTorch checkpoint. The faces stage runs detectors in ONNX Runtime.
Therefore `export_onnx` converts a checkpoint to an ONNX file once and checks that the file gives
the same outputs as the network. The command is `namedmask export-faces CHECKPOINT OUT.onnx`. The
decoder of the outputs is in forms.py.
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
"""Number of channels between the backbone and the heads."""
ANCHORS = 2
"""Number of anchors per cell."""
TOLERANCE = 1e-4
"""Upper bound on the relative error of an exported file's outputs."""


class RetinaFace(nn.Module):
    """The network: backbone, feature pyramid, context modules, heads; 27,293,600 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()
        self.fpn = Pyramid()
        self.ssh1, self.ssh2, self.ssh3 = Context(), Context(), Context()
        self.ClassHead, self.BboxHead, self.LandmarkHead = _heads(2), _heads(4), _heads(10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return box deltas (B, N, 4), class softmax (B, N, 2) and landmarks (B, N, 10), float32.

        `images` is (B, 3, H, W) float32 BGR minus (104, 117, 123), not scaled. N is twice the sum
        of ⌈H/s⌉ · ⌈W/s⌉ over the strides s = 8, 16, 32, in that order. Class 1 is a face.
        """
        fine, middle, coarse = self.fpn(self.body(images))
        levels = [self.ssh1(fine), self.ssh2(middle), self.ssh3(coarse)]
        classes = _flat(self.ClassHead, levels, 2).softmax(dim=-1)
        return _flat(self.BboxHead, levels, 4), classes, _flat(self.LandmarkHead, levels, 10)


class Body(ResNet):  # type: ignore[misc]  # torchvision ships no types
    """A ResNet-50 without its classifier."""

    def __init__(self) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3])
        del self.fc

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return float32 features (B, C, h, w) at strides 8, 16, 32: C is 512, 1024, 2048."""
        fine = self.layer2(self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images))))))
        middle = self.layer3(fine)
        return fine, middle, self.layer4(middle)


class Pyramid(nn.Module):
    """The feature pyramid: the features of the next coarser level are added to each level."""

    def __init__(self) -> None:
        super().__init__()
        self.output1, self.output2, self.output3 = (
            _step(channels, WIDTH, kernel=1) for channels in (512, 1024, 2048)
        )
        self.merge1, self.merge2 = _step(WIDTH, WIDTH), _step(WIDTH, WIDTH)

    def forward(self, levels: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the three merged levels, each (B, 256, h, w) float32, finest first."""
        fine, middle, coarse = levels
        coarse = self.output3(coarse)
        middle = self.merge2(_added(self.output2(middle), coarse))
        return self.merge1(_added(self.output1(fine), middle)), middle, coarse


class Context(nn.Module):
    """The context module "SSH".

    Half of the channels see 3 × 3 cells, a quarter 5 × 5 cells and a quarter 7 × 7 cells.
    """

    def __init__(self) -> None:
        super().__init__()
        half, quarter = WIDTH // 2, WIDTH // 4
        self.conv3X3 = _step(WIDTH, half, relu=False)
        self.conv5X5_1 = _step(WIDTH, quarter)
        self.conv5X5_2 = _step(quarter, quarter, relu=False)
        self.conv7X7_2 = _step(quarter, quarter)
        self.conv7x7_3 = _step(quarter, quarter, relu=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, 256, h, w) float32 for features of the same shape."""
        wide = self.conv5X5_1(features)
        small, medium = self.conv3X3(features), self.conv5X5_2(wide)
        large = self.conv7x7_3(self.conv7X7_2(wide))
        return torch.relu(torch.cat([small, medium, large], dim=1))


def _step(inputs: int, outputs: int, *, kernel: int = 3, relu: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU()] if relu else []))


def _heads(width: int) -> nn.ModuleList:
    """Return one head per level, with `width` outputs per anchor."""
    return nn.ModuleList(
        nn.Sequential(OrderedDict(conv1x1=nn.Conv2d(WIDTH, ANCHORS * width, 1))) for _ in range(3)
    )


def _added(features: Tensor, coarser: Tensor) -> Tensor:
    return features + F.interpolate(coarser, features.shape[-2:], mode="nearest")


def _flat(heads: nn.ModuleList, levels: Sequence[Tensor], width: int) -> Tensor:
    """Return the outputs of the heads as (B, N, width), ordered by level, row, column, anchor."""
    outputs = [head(level).permute(0, 2, 3, 1) for head, level in zip(heads, levels, strict=True)]
    return torch.cat([output.reshape(output.shape[0], -1, width) for output in outputs], dim=1)


def load_retinaface(path: Path) -> RetinaFace:
    """Return the RetinaFace of a checkpoint in eval mode; torch's random state does not change.

    The file is a state dict, flat or under the entry `state_dict`. Its keys may begin with
    `module.`, which a training on several GPUs adds. Half precision is converted to float32.

    Raises:
        CheckpointError: the file is missing, truncated or contains code, or its entries are not
            exactly those of this network.
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
        checkpoint: a file that `load_retinaface` accepts.
        out: the ONNX file. An existing file is replaced atomically, and kept if the export fails.
        side: side, in pixels, of the square canvas that the network will take.

    Returns:
        A dict with the path `file`, the `side`, and `relative_error`, which is the largest relative
        error of the three outputs.

    Raises:
        CheckpointError: the checkpoint is not valid; see `load_retinaface`.
        MissingExtraError: onnxruntime is not installed.
        NamedMaskError: the outputs of the ONNX file differ from the network's.
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
        # the newer exporter gives the same graph but needs one more package
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.onnx.export(
            model, (torch.from_numpy(batch),), str(path), input_names=["image"],
            output_names=["boxes", "scores", "landmarks"], opset_version=17, dynamo=False,
        )  # fmt: skip


def _relative_error(model: RetinaFace, batch: np.ndarray, path: Path) -> float:
    """Return the largest ‖a − b‖ / ‖b‖ over the outputs a of the file and b of the network."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            f"the export of a face detector needs onnxruntime, which is not installed: {error}. "
            "Run: pip install 'namedmask[cpu]'"
        ) from error
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    exported = session.run(None, {"image": batch})
    with torch.inference_mode():
        expected = [output.numpy() for output in model(torch.from_numpy(batch))]
    return max(
        float(np.linalg.norm(a - b) / np.linalg.norm(b))
        for a, b in zip(exported, expected, strict=True)
    )
