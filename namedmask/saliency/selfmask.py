"""SelfMask: a normalised image batch in, twenty mask proposals and how object-like each is out.

The method's saliency network (method section 2): a ViT-S/8 reads the image, twenty learned queries
look at its patches through a DETR-style decoder, and each query's product with the patches is a
mask. The layout is that of the released checkpoint, whose weights `load_selfmask` fills in; the
network is run here and never trained.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from namedmask.weights.catalogue import known_weights
from namedmask.weights.tensors import load_strict, read_tensors

PATCH = 8
MASK_STRIDE = 4
"""Pixels of the image a side of one cell of a mask: the patches are doubled."""

WIDTH, HEADS, HIDDEN = 384, 6, 1536
ENCODER_DEPTH, DECODER_DEPTH, QUERIES = 12, 6, 20
GRID = 28
"""Patches a side of the position table: the 224 pixels it was trained at. Method: all of these."""


class SelfMask(nn.Module):
    """Encoder, decoder and objectness; forward (B, 3, H, W) → masks (B, 20, h, w), scores (B, 20).

    36,174,337 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.ffn = Objectness()
        self.query_embed = nn.Parameter(torch.zeros(QUERIES, WIDTH))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask probabilities (B, 20, h, w) and objectness (B, 20), float32 in [0, 1].

        `images`: (B, 3, H, W) float32 RGB of any size, ImageNet mean and deviation taken out. A
        mask covers the image padded right and below to whole patches: h = 2 ⌈H/8⌉, w = 2 ⌈W/8⌉.
        """
        patches = self.encoder(images)
        queries = self.decoder(self.query_embed, patches.flatten(2).transpose(1, 2))
        pixels = F.interpolate(
            patches, scale_factor=PATCH // MASK_STRIDE, mode="bilinear", align_corners=False
        )
        masks = torch.einsum("bqc,bchw->bqhw", queries, pixels)
        return masks.sigmoid(), self.ffn(queries).squeeze(-1).sigmoid()


def padded_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) padded right and below to whole patches."""
    height, width = size
    return height + -height % PATCH, width + -width % PATCH


def best_mask(masks: Tensor, objectness: Tensor, height: int, width: int) -> Tensor:
    """Return of each image the most object-like mask, (B, height, width) float32 in [0, 1].

    `masks` (B, 20, h, w) and `objectness` (B, 20) as `SelfMask` gives them for images of
    (height, width): the mask is interpolated to the padded image and the padding cut off.
    """
    best = masks[torch.arange(len(masks), device=masks.device), objectness.argmax(dim=1)]
    padded = F.interpolate(
        best[:, None], scale_factor=MASK_STRIDE, mode="bilinear", align_corners=False
    )
    return padded[:, 0, :height, :width]


class Encoder(nn.Module):
    """ViT-S/8 without a head: images to one normed feature a patch."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID * GRID, WIDTH))
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, WIDTH, PATCH, PATCH)))
        self.blocks = nn.ModuleList(Block() for _ in range(ENCODER_DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 384, ⌈H/8⌉, ⌈W/8⌉) float32 for normalised images (B, 3, H, W).

        Method: the padding is 0 after the normalisation, and takes part as any patch.
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
        found: Tensor = self.norm(tokens)[:, 1:]
        return found.transpose(1, 2).unflatten(2, (rows, columns))

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Return the position table (1, 1 + rows · columns, 384), the class token's first."""
        head, table = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        grid = table.transpose(1, 2).unflatten(2, (GRID, GRID))
        grid = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([head, grid.flatten(2).transpose(1, 2)], dim=1)


class Block(nn.Module):
    """One layer of the encoder: the norm comes before each of its two halves."""

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
    """Self-attention that never holds the N × N weights, where the device has such a kernel."""

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
    """The queries, starting from nothing, look at each other and at the patches six times."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(DECODER_DEPTH))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, places: Tensor, memory: Tensor) -> Tensor:
        """Return (B, 20, 384) float32 for the queries (20, 384) and the patches (B, N, 384)."""
        places = places.expand(len(memory), -1, -1)
        targets = torch.zeros_like(places)
        for layer in self.layers:
            targets = layer(targets, places, memory)
        return cast(Tensor, self.norm(targets))


class DecoderLayer(nn.Module):
    """Self-attention, attention to the patches, feed-forward; the norm comes after each.

    Method: the learned queries are added wherever a target asks or is asked, never to what is
    handed on; the patches carry no position.
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

    def forward(self, targets: Tensor, places: Tensor, memory: Tensor) -> Tensor:
        """Return targets (B, 20, 384) float32; `places` alike, `memory` (B, N, 384)."""
        asking = targets + places
        seen, _ = self.self_attn(asking, asking, targets, need_weights=False)
        targets = self.norm1(targets + seen)
        seen, _ = self.multihead_attn(targets + places, memory, memory, need_weights=False)
        targets = self.norm2(targets + seen)
        seen = self.linear2(torch.relu(self.linear1(targets)))
        return cast(Tensor, self.norm3(targets + seen))


class Objectness(nn.Module):
    """Three layers that tell how object-like a query's mask is."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, width) for width in (WIDTH, WIDTH, 1))

    def forward(self, queries: Tensor) -> Tensor:
        """Return logits (B, 20, 1) float32 for queries (B, 20, 384)."""
        first, second, last = self.layers
        return cast(Tensor, last(torch.relu(second(torch.relu(first(queries))))))


def load_selfmask(path: Path) -> SelfMask:
    """Return the SelfMask of a checkpoint in eval mode; torch's random generator is not touched.

    The file is a flat state dict, or one under the entry `model`; half precision is widened.

    Raises:
        CheckpointError: missing, truncated, holding code, or not exactly this network's entries.
    """
    tree = read_tensors(path)
    state = tree["model"] if isinstance(tree.get("model"), Mapping) else tree
    with torch.device("meta"):
        model = SelfMask()
    model.to_empty(device="cpu")
    load_strict(model, state, path, f"SelfMask, released as {known_weights()['selfmask'].url}")
    return model.eval()
