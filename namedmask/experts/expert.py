"""Category experts: each is trained on the pseudo-masks of one category and then redraws them.

An expert learns what hundreds of noisy masks of one category have in common, so its predictions are
cleaner than the masks. The functions here handle one expert; refine.py loops over the categories
and stores the results.

Method: sections 1 and 3.2; 2 labels, no copy-paste, masks at original size, one image at a time.
Differs: if an expert predicts no object in an image, the pseudo-mask is kept. An expert may also
start from an expert trained on all categories at once, to need fewer steps.

Cost on one thread of a Xeon at 2.8 GHz: `deeplabv3plus_tiny` refines 1,000 images of 136 × 136 in
43 s, with mirroring and snapping.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from namedmask.bilateral import snap
from namedmask.config import BilateralConfig, Config, ExpertsConfig
from namedmask.images.codec import to_tensor
from namedmask.schema.columns import BACKGROUND, IGNORE
from namedmask.segmenter.checkpoint import build_segmenter
from namedmask.train.augment import Samples
from namedmask.train.loop import train

EXPERT_LABELS = 2
"""Number of labels of an expert: background and object."""


class OneLabel:
    """Training samples of an expert: the given samples, with label id 1 for every object."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an image (H, W, 3) uint8 RGB and its labels (H, W) uint16: 0, 1 or `IGNORE`."""
        image, label = self._samples[index]
        is_object = (label != BACKGROUND) & (label != IGNORE)
        return image, np.where(is_object, label.dtype.type(1), label)


def train_expert(
    samples: Samples,
    config: Config,
    seed: int,
    start: nn.Module | None = None,
    *,
    checkpoint: Path | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Return an expert trained on `samples`, in eval mode on `experts.device`.

    Method: crop, scale and color augmentation as for the segmenter, with `n_max` 1.

    Args:
        samples: training samples; every label id other than background counts as the object.
        config: the config of the run.
        seed: seed of the initial weights and of the training.
        start: an expert to copy and train further. Without it, training starts from
            `segmenter.backbone_weights`.
        checkpoint: see `train`.
        on_step: called after each step with the number of steps done and the loss.

    Raises:
        as `build_segmenter` and `train`.
    """
    model = (
        copy.deepcopy(start)
        if start is not None
        else build_segmenter(config.segmenter, EXPERT_LABELS, seed)
    )
    augment = config.augment.model_copy(update={"n_max": 1})
    return train(
        model,
        OneLabel(samples),
        config.experts,
        augment,
        seed=seed,
        checkpoint=checkpoint,
        on_step=on_step,
    )


def train_shared_expert(
    samples: Samples, config: Config, *, on_step: Callable[[int, float], None] | None = None
) -> nn.Module:
    """Return an expert trained on all categories at once, in eval mode.

    Category experts may start from it. It is trained for `experts.shared_iterations` steps with
    seed `run.seed`. Raises as `train_expert`.
    """
    experts = config.experts.model_copy(update={"iterations": config.experts.shared_iterations})
    config = config.model_copy(update={"experts": experts})
    return train_expert(samples, config, config.run.seed, on_step=on_step)


@torch.inference_mode()
def refine_masks(
    expert: nn.Module,
    images: Sequence[np.ndarray],
    threshold: float = 0.5,
    mirror: bool = False,
) -> list[np.ndarray]:
    """Return the expert's mask of each image, (H, W) bool.

    A mask is true where the probability of the object is above `threshold`.
    Each image is a batch of its own, so its mask does not depend on the other images. Method: the
    more likely label, which is a threshold of 0.5; no mirroring.

    Args:
        expert: a segmenter with `EXPERT_LABELS` labels.
        images: (H, W, 3) uint8 RGB each, of any sizes.
        threshold: probability in (0, 1).
        mirror: average the logits with those of the horizontally mirrored image.
    """
    margin = math.log(threshold / (1 - threshold))
    expert.eval()
    device = next(expert.parameters()).device
    masks = []
    for image in images:
        batch = to_tensor([image]).to(device, memory_format=torch.channels_last)
        logits = expert(batch)
        if mirror:
            logits = (logits + expert(batch.flip(-1)).flip(-1)) / 2
        background, foreground = logits[0]
        masks.append((foreground - background > margin).cpu().numpy())
    return masks


def redraw(
    expert: nn.Module,
    samples: Samples,
    config: ExpertsConfig,
    solver: BilateralConfig | None = None,
) -> tuple[list[np.ndarray], int]:
    """Return the refined mask of each sample, (H, W) bool, and the number of pseudo-masks kept.

    With a `solver`, the expert's masks are snapped to the image's edges, as the pseudo-masks were.
    If the expert predicts no object, the pseudo-mask is kept, unless `experts.keep_unseen` is
    false. Differs: the method trains on empty masks and does not snap the expert's masks.
    """
    masks, kept = [], 0
    for index in range(len(samples)):  # not all decoded images may fit into memory
        image, label = samples[index]
        mask = refine_masks(expert, [image], config.threshold, config.mirror)[0]
        if mask.any():
            mask = mask if solver is None else snap(image, mask, solver)
        elif config.keep_unseen:
            mask, kept = label != BACKGROUND, kept + 1
        masks.append(mask)
    return masks, kept
