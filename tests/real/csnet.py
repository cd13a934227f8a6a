"""A saliency detector from outside the tree: CSNet, an ONNX file that was trained with masks.

Named in a run file as `detector = "tests.real.csnet:csnet"`. A stand-in to try real photos with,
not part of the method.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import onnxruntime

from namedmask.config import SaliencyConfig
from namedmask.images.codec import resize, to_tensor

SIDE = 224


class CSNet:
    """Runs the network one image at a time; its input has batch size 1."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # a second thread costs more than it gains here
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(str(path), options, providers=providers)

    def saliency(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """Return (H, W) float32 in [0, 1] for each image (H, W, 3) uint8 RGB."""
        return [self._saliency(image) for image in images]

    def _saliency(self, image: np.ndarray) -> np.ndarray:
        blob = to_tensor([resize(image, SIDE, SIDE)]).numpy()
        small = self._session.run(None, {"image": blob})[0][0]
        height, width = image.shape[:2]
        result: np.ndarray = np.clip(
            cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR), 0, 1
        )
        return result


def csnet(config: SaliencyConfig) -> CSNet:
    """Return the detector of `saliency.weights`."""
    return CSNet(Path(config.weights))
