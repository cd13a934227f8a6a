"""One image in, its label map out."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from namedmask import images
from namedmask.schema.columns import LABEL_DTYPE


def predict_labels(model: nn.Module, image: np.ndarray, max_side: int = 0) -> np.ndarray:
    """Return the label ids of an image, (H, W) uint16, 0 background.

    `image` is (H, W, 3) uint8 RGB; `model` is put into eval mode. With `max_side` a larger image is
    shrunk to it for the network, and the logits are brought back to the image's size before the
    argmax.
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
