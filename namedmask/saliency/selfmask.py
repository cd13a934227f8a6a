"""SelfMask, the method's saliency network: it predicts twenty masks per image and their objectness.

A ViT-S/8 encodes the image. Twenty learned queries attend to its patches in a DETR-style decoder.
The product of a query with the patches is a mask (method section 2). The layout is that of the
released checkpoint, which `load_selfmask` loads. The network is not trained here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from namedmask.weights.catalog import known_weights
from namedmask.weights.tensors import load_strict, read_tensors

PATCH = 8
"""Side of a patch in pixels."""
MASK_STRIDE = 4
"""Side of a mask cell in pixels. The patch features are upsampled twofold for the masks."""

WIDTH, HEADS, HIDDEN = 384, 6, 1536
"""Width of the tokens, attention heads, and hidden width of the feed-forward layers."""
ENCODER_DEPTH, DECODER_DEPTH, QUERIES = 12, 6, 20
GRID = 28
"""Patches per side of the position table, trained at 224 pixels. Method: all constants above."""


class SelfMask(nn.Module):
    """The network: encoder, decoder and objectness head; 36,174,337 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.ffn = Objectness()
        self.query_embed = nn.Parameter(torch.zeros(QUERIES, WIDTH))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask probabilities (B, 20, h, w) and objectness (B, 20), float32 in [0, 1].

        `images` is (B, 3, H, W) float32 RGB of any size, normalized with ImageNet's mean and
        standard deviation. A mask covers the image after it is padded at its right and bottom to
        whole patches, so that h = 2 ⌈H/8⌉ and w = 2 ⌈W/8⌉.
        """
        patches = self.encoder(images)
        queries = self.decoder(self.query_embed, patches.flatten(2).transpose(1, 2))
        pixels = F.interpolate(
            patches, scale_factor=PATCH // MASK_STRIDE, mode="bilinear", align_corners=False
        )
        masks = torch.einsum("bqc,bchw->bqhw", queries, pixels)
        return masks.sigmoid(), self.ffn(queries).squeeze(-1).sigmoid()


def padded_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) in pixels, padded at the right and the bottom to whole patches."""
    height, width = size
    return height + -height % PATCH, width + -width % PATCH


def best_mask(masks: Tensor, objectness: Tensor, height: int, width: int) -> Tensor:
    """Return the mask of highest objectness of each image, (B, height, width) float32 in [0, 1].

    `masks` (B, 20, h, w) and `objectness` (B, 20) are the outputs of `SelfMask` for images of
    (height, width) pixels. The masks are interpolated to the padded size, then cropped.
    """
    best = masks[torch.arange(len(masks), device=masks.device), objectness.argmax(dim=1)]
    padded = F.interpolate(
        best[:, None], scale_factor=MASK_STRIDE, mode="bilinear", align_corners=False
    )
    return padded[:, 0, :height, :width]


class Encoder(nn.Module):
    """A ViT-S/8 without a head; it gives one layer-normalized feature per patch."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID * GRID, WIDTH))
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, WIDTH, PATCH, PATCH)))
        self.blocks = nn.ModuleList(Block() for _ in range(ENCODER_DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 384, ⌈H/8⌉, ⌈W/8⌉) float32 for normalized images (B, 3, H, W) float32.

        Method: the padding is 0 after the normalization, and its patches are attended to as well.
        """
        height, width = images.shape[-2:]
        patches = self.patch_embed(F.pad(images, (0, -width % PATCH, 0, -height % PATCH)))
        rows, columns = patches.shape[-2:]
        tokens = torch.cat(
            [self.cls_token.expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1
        )
        tokens = tokens + self._positions(rows, columns)
        for block in self.blocks:
            tokens = block(tokens)
        features: Tensor = self.norm(tokens)[:, 1:]
        result: Tensor = features.transpose(1, 2).unflatten(2, (rows, columns))
        return result

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Return position embeddings (1, 1 + rows · columns, 384), the class token's first."""
        head, table = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        grid = table.transpose(1, 2).unflatten(2, (GRID, GRID))
        grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([head, grid.flatten(2).transpose(1, 2)], dim=1)


class Block(nn.Module):
    """An encoder layer with a norm before the attention and before the feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.mlp = nn.Sequential(
            OrderedDict(fc1=nn.Linear(WIDTH, HIDDEN), act=nn.GELU(), fc2=nn.Linear(HIDDEN, WIDTH))
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, N, 384) float32 for tokens (B, N, 384)."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return cast(Tensor, tokens + self.mlp(self.norm2(tokens)))


class Attention(nn.Module):
    """Self-attention; a fused kernel, if the device has one, does not store the N × N weights."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, N, 384) float32 for tokens (B, N, 384)."""
        split = self.qkv(tokens).unflatten(2, (3, HEADS, WIDTH // HEADS))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return cast(Tensor, self.proj(mixed.transpose(1, 2).flatten(2)))


class Decoder(nn.Module):
    """Six decoder layers; their targets, one per query, start at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(DECODER_DEPTH))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Return (B, 20, 384) float32 for the queries (20, 384) and the patches (B, N, 384)."""
        queries = queries.expand(len(memory), -1, -1)
        targets = torch.zeros_like(queries)
        for layer in self.layers:
            targets = layer(targets, queries, memory)
        return cast(Tensor, self.norm(targets))


class DecoderLayer(nn.Module):
    """A decoder layer: self-attention, cross-attention, feed-forward, each followed by a norm.

    Method: the learned queries are added to the targets where the targets are the queries or keys
    of an attention, but not where they are its values. The patches have no position embedding.
    """

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.linear1 = nn.Linear(WIDTH, HIDDEN)
        self.linear2 = nn.Linear(HIDDEN, WIDTH)
        self.norm1 = nn.LayerNorm(WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.norm3 = nn.LayerNorm(WIDTH)

    def forward(self, targets: Tensor, queries: Tensor, memory: Tensor) -> Tensor:
        """Return new targets of the same shape, float32.

        `targets` and the learned `queries` are (B, 20, 384), the patches `memory` (B, N, 384).
        """
        located = targets + queries
        update, _ = self.self_attn(located, located, targets, need_weights=False)
        targets = self.norm1(targets + update)
        update, _ = self.multihead_attn(targets + queries, memory, memory, need_weights=False)
        targets = self.norm2(targets + update)
        update = self.linear2(torch.relu(self.linear1(targets)))
        return cast(Tensor, self.norm3(targets + update))


class Objectness(nn.Module):
    """Three layers that predict the objectness of each query's mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, width) for width in (WIDTH, WIDTH, 1))

    def forward(self, queries: Tensor) -> Tensor:
        """Return logits (B, 20, 1) float32 for queries (B, 20, 384)."""
        first, second, last = self.layers
        return cast(Tensor, last(torch.relu(second(torch.relu(first(queries))))))


def load_selfmask(path: Path) -> SelfMask:
    """Return the SelfMask of a checkpoint in eval mode; torch's random state does not change.

    The file is a state dict, flat or under the entry `model`. Half precision is converted to
    float32.

    Raises:
        CheckpointError: the file is missing, truncated or contains code, or its entries are not
            exactly those of this network.
    """
    tree = read_tensors(path)
    state = tree["model"] if isinstance(tree.get("model"), Mapping) else tree
    with torch.device("meta"):
        model = SelfMask()
    model.to_empty(device="cpu")
    load_strict(model, state, path, f"SelfMask, released as {known_weights()['selfmask'].url}")
    return model.eval()
