"""Prediction of the label map of an image."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from namedmask import images
from namedmask.schema.columns import LABEL_DTYPE


def predict_labels(model: nn.Module, image: np.ndarray, max_side: int = 0) -> np.ndarray:
    """Return the label map of an image, (H, W) uint16 label ids; 0 is background.

    `image` is (H, W, 3) uint8 RGB; `model` is put into eval mode. If `max_side` is positive, an
    image with a longer side is shrunk to `max_side` pixels for the network, and the logits are
    resized to the image's own size before the argmax.
    """
    height, width = image.shape[:2]
    if 0 < max_side < max(height, width):
        scale = max_side / max(height, width)
        image = images.resize(image, max(1, round(height * scale)), max(1, round(width * scale)))
    model.eval()
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        logits = model(images.to_tensor([image]).to(device))
        if logits.shape[-2:] != (height, width):
            logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        labels: np.ndarray = logits[0].argmax(dim=0).cpu().numpy()
    return labels.astype(LABEL_DTYPE)
