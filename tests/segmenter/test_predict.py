"""Label maps in bounded memory are those of all logits at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from namedmask.segmenter.deeplab import deeplabv3plus_tiny
from namedmask.segmenter.predict import predict_labels, resized_argmax

pytestmark = pytest.mark.numerical


def resized(logits: torch.Tensor, sizes: list[tuple[int, int]]) -> torch.Tensor:
    for size in sizes:
        if logits.shape[-2:] != size:
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    return logits


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_predict_labels_of_parts_are_those_of_all_logits(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    for _ in range(100):
        labels, height, width = (int(n) for n in rng.integers(1, 30, 3))
        sizes = [tuple(rng.integers(1, 90, 2).tolist()) for _ in range(rng.integers(1, 3))]
        logits = torch.randn(1, labels, height, width).contiguous(memory_format=layout)
        expected = resized(logits, sizes).argmax(dim=1)
        for logit_bytes in (1, 100_000, 1 << 30):
            assert torch.equal(resized_argmax(logits, sizes, logit_bytes), expected)


@pytest.mark.parametrize("max_side", [0, 40])
def test_predict_in_parts_equals_predict_at_once(max_side: int) -> None:
    torch.manual_seed(0)
    model = deeplabv3plus_tiny(31)
    image = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    parts = predict_labels(model, image, max_side, logit_bytes=1)
    assert np.array_equal(parts, predict_labels(model, image, max_side))
    assert parts.shape == (70, 90) and parts.dtype == np.uint16 and len(np.unique(parts)) > 1
    if not max_side:  # a model without `coarse` gives its logits at the size of the image
        only_forward = torch.nn.Sequential(model)
        assert np.array_equal(predict_labels(only_forward, image), parts)
