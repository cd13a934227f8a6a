"""TokenCut finds the patches of one object in the patch features of a DINO ViT-S.

Patches are the nodes of a graph, and edges join patches with similar features. A normalized cut
splits the graph in two. The object is the connected component that contains the seed, the patch
with the most extreme value in the eigenvector of the cut. Nothing is trained.

Method: TokenCut (Wang et al., 2022). The features are the keys of the last block. An edge has
weight 1 where the cosine is above 0.2, else 1e-5. The cut is at the mean of the generalized
eigenvector of (D − W, D) with the second smallest eigenvalue; the seed is the patch where its
absolute value is largest. Patches are connected over their sides, not over their corners.
Differs: an image of more than 1,600 patches is shrunk (the original has no limit, and the time
grows with the third power); a graph whose edges are all equal has no object, where the original
returns an arbitrary one; timm interpolates the position embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import linalg, ndimage
from torch import Tensor, nn

from namedmask.errors import CheckpointError
from namedmask.weights.tensors import load_strict, read_tensors

SIMILAR = 0.2
"""Cosine of their features above which two patches are similar. Method: τ."""

UNLIKE = 1e-5
"""Edge weight of two patches that are not similar; it keeps the graph connected. Method: ε."""

WIDTH = 384
"""Width of the features of a ViT-S."""
PATCHES = (8, 16)
"""Sides, in pixels, of the patches of DINO's two ViT-S."""
MOST_PATCHES = 1600
"""Largest number of patches per image. The cut of 40 × 40 patches takes 0.3 s on one core."""


def load_dino(path: Path) -> nn.Module:
    """Return the ViT-S/8 or ViT-S/16 in a file that DINO released, in eval mode.

    The shapes of the weights show which of the two it is. `patch_embed.patch_size` of the returned
    model is (P, P), with P = 8 or 16 pixels.

    Raises:
        CheckpointError: the file is missing, truncated or contains code, or its entries are not
            exactly those of such a network.
    """
    import timm

    state = read_tensors(path)
    patch = _patch_of(state, path)
    with torch.device("meta"):
        model = timm.create_model(
            f"vit_small_patch{patch}_224", num_classes=0, dynamic_img_size=True
        )
    model.to_empty(device="cpu")
    load_strict(model, state, path, f"DINO's ViT-S/{patch}")
    dino: nn.Module = model.eval()
    return dino


def _patch_of(state: Mapping[str, Any], path: Path) -> int:
    shape = tuple(getattr(state.get("patch_embed.proj.weight"), "shape", ()))
    if len(shape) != 4 or shape[-1] not in PATCHES:
        raise CheckpointError(
            f"{path}: expected the state dict of a ViT-S/8 or ViT-S/16 as DINO releases it, with "
            f"patch_embed.proj.weight (384, 3, 8 or 16, …); got {shape or 'none'}. Run: "
            "namedmask weights fetch dino-vits16"
        )
    return int(shape[-1])


def grid_of(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Return (rows, columns) of patches, at most `MOST_PATCHES`, for an image (height, width)."""
    height, width = size[0] / patch, size[1] / patch
    shrink = min(1.0, (MOST_PATCHES / (height * width)) ** 0.5)
    rows, columns = (max(1, round(side * shrink)) for side in (height, width))
    # the product can exceed the limit if a side is below one patch or both sides are rounded up
    columns = min(columns, MOST_PATCHES)
    return min(rows, MOST_PATCHES // columns), columns


def key_features(dino: nn.Module, images: Tensor) -> Tensor:
    """Return (B, N, 384) float32: the last block's key of each patch, by rows, then columns.

    `images` is (B, 3, H, W) float32 RGB, normalized with ImageNet's mean and standard deviation. H
    and W are multiples of the patch side.
    """
    captured: list[Tensor] = []
    last: Any = dino.blocks[-1]  # type: ignore[index]
    with last.attn.qkv.register_forward_hook(lambda _module, _in, output: captured.append(output)):
        dino(images)
    return captured[0][:, 1:, WIDTH : 2 * WIDTH]


def object_patches(features: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the patches of the object, (h, w) bool; no patch if all edge weights are equal.

    `features` is (h · w, D) float32, by rows, then columns; `grid` is (h, w).
    """
    weights = affinity(features)
    if (weights == weights[0, 0]).all():
        return np.zeros(grid, bool)
    vector = second_eigenvector(weights)
    seed = int(np.abs(vector).argmax())
    above = vector > vector.mean()
    pieces, _ = ndimage.label((above == above[seed]).reshape(grid))
    piece: np.ndarray = pieces == pieces[np.unravel_index(seed, grid)]
    return piece


def affinity(features: np.ndarray) -> np.ndarray:
    """Return the edge weights, (N, N) float64, of features (N, D): 1 if similar, else 1e-5."""
    units = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return np.where(units @ units.T > SIMILAR, 1.0, UNLIKE)


def second_eigenvector(weights: np.ndarray) -> np.ndarray:
    """Return x of the second smallest λ in (D − W) x = λ D x, (N,) float64; its sign is arbitrary.

    `weights` is W, (N, N) float64, symmetric. D is the diagonal matrix of its row sums. The problem
    is solved for y = D^½ x, because its matrix is symmetric. No other eigenvector is computed.
    """
    root = np.sqrt(weights.sum(axis=1))
    scaled = np.eye(len(root)) - weights / np.outer(root, root)
    _, vectors = linalg.eigh(scaled, subset_by_index=[1, 1], overwrite_a=True, check_finite=False)
    vector: np.ndarray = vectors[:, 0] / root
    return vector
