"""TokenCut: patch features of a DINO ViT-S in, the patches of one object out.

Patches are the nodes of a graph; two are joined where their features are alike. The graph is cut in
two so that little is cut of what either side has (a normalized cut), and the object is the piece
that holds the patch which the cut is surest of. Nothing is trained for it.

Method: TokenCut (Wang et al., 2022). Features are the keys of the last block; an edge is 1 where
the cosine is above 0.2, else 1e-5; the cut is at the mean of the second smallest generalized
eigenvector of (D − W, D); the seed is where that is largest in absolute value; pieces hang together
over sides, not corners.
Differs: an image of more than 1,600 patches is shrunk (the original sets no limit, and time grows
with the third power); a graph whose edges are all alike has no object instead of an accidental one;
positions are interpolated by timm.
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
"""Cosine above which two patches are joined. Method: τ."""

UNLIKE = 1e-5
"""Weight of an edge between any other two: the graph stays in one piece. Method: ε."""

WIDTH = 384
PATCHES = (8, 16)
MOST_PATCHES = 1600
"""40 × 40: 0.3 s of one core for the cut."""


def load_dino(path: Path) -> nn.Module:
    """Return the ViT-S/8 or ViT-S/16 of a file that DINO released, in eval mode.

    Which of the two is told by the file. `patch_embed.patch_size` of what comes back is (P, P).

    Raises:
        CheckpointError: missing, truncated, holding code, or not exactly such a network's entries.
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
    """Return how many patches high and wide an image of (height, width) is looked at."""
    height, width = size[0] / patch, size[1] / patch
    shrink = min(1.0, (MOST_PATCHES / (height * width)) ** 0.5)
    rows, columns = (max(1, round(side * shrink)) for side in (height, width))
    columns = min(columns, MOST_PATCHES)  # a side below one patch, or both rounded up, may pass it
    return min(rows, MOST_PATCHES // columns), columns


def key_features(dino: nn.Module, images: Tensor) -> Tensor:
    """Return (B, N, 384) float32: the last block's key of each patch, by rows, then columns.

    `images`: (B, 3, H, W) float32 RGB in whole patches, ImageNet mean and deviation taken out.
    """
    seen: list[Tensor] = []
    last: Any = dino.blocks[-1]  # type: ignore[index]
    with last.attn.qkv.register_forward_hook(lambda _module, _given, made: seen.append(made)):
        dino(images)
    return seen[0][:, 1:, WIDTH : 2 * WIDTH]


def object_patches(features: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return the patches of the one object, (h, w) bool; none where there is nothing to cut.

    `features` is (h · w, D) float32, by rows, then columns; `grid` is (h, w).
    """
    alike = affinity(features)
    if (alike == alike[0, 0]).all():
        return np.zeros(grid, bool)
    vector = second_eigenvector(alike)
    seed = int(np.abs(vector).argmax())
    above = vector > vector.mean()
    pieces, _ = ndimage.label((above == above[seed]).reshape(grid))
    piece: np.ndarray = pieces == pieces[np.unravel_index(seed, grid)]
    return piece


def affinity(features: np.ndarray) -> np.ndarray:
    """Return the weights of the graph's edges, (N, N) float64: 1 where alike, else 1e-5."""
    units = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return np.where(units @ units.T > SIMILAR, 1.0, UNLIKE)


def second_eigenvector(weights: np.ndarray) -> np.ndarray:
    """Return x of the second smallest λ in (D − W) x = λ D x, (N,) float64; its sign is arbitrary.

    `weights` is W, (N, N) float64, symmetric; D is its diagonal of row sums. Solved for
    y = D^½ x, where the matrix is symmetric, and for this one vector only.
    """
    root = np.sqrt(weights.sum(axis=1))
    scaled = np.eye(len(root)) - weights / np.outer(root, root)
    _, vectors = linalg.eigh(scaled, subset_by_index=[1, 1], overwrite_a=True, check_finite=False)
    vector: np.ndarray = vectors[:, 0] / root
    return vector
