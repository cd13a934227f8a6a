"""MaskCLIP: worked out by hand, and against CLIP's own towers where the two must agree."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor
from torch.nn import functional as F

from namedmask.config import BaselinesConfig
from namedmask.errors import ConfigError
from namedmask.evaluate import maskclip
from namedmask.images.codec import IMAGENET_MEAN, to_tensor

pytestmark = pytest.mark.numerical

TEMPLATES = ("a {}",)


def resnet(image_size: int = 32) -> ModifiedResNet:
    """Return CLIP's ResNet, tiny, with random weights."""
    torch.manual_seed(0)
    return ModifiedResNet((1, 1, 1, 1), 8, heads=2, image_size=image_size, width=8).eval()


def transformer(layers: int = 2, side: int = 12) -> VisionTransformer:
    """Return CLIP's ViT, tiny, patch 4, with random weights."""
    torch.manual_seed(1)
    tower = VisionTransformer(side, 4, width=16, layers=layers, heads=2, mlp_ratio=2, output_dim=6)
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return tower.eval()


def picture(height: int, width: int) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(2))


def test_resnet_of_one_place_is_the_pooled_vector_without_positions() -> None:
    """All tokens of the pool are then equal, so its attention changes nothing."""
    tower = resnet()
    with torch.inference_mode():
        tower.attnpool.positional_embedding.zero_()
        vectors, keys = maskclip.dense_features(tower, picture(32, 32))
        pooled = F.normalize(tower(picture(32, 32)), dim=1)
    assert vectors.shape == (1, 8, 1, 1) and keys.shape == (1, 256, 1, 1)
    torch.testing.assert_close(vectors[:, :, 0, 0], pooled, atol=1e-5, rtol=0)


def test_resnet_places_lie_where_their_pixels_are() -> None:
    tower = resnet()
    with torch.inference_mode():
        vectors, _ = maskclip.dense_features(tower, picture(64, 96))
        trunk = picture(64, 96)
        for part in (tower.stem, tower.layer1, tower.layer2, tower.layer3, tower.layer4):
            trunk = part(trunk)
        pool = tower.attnpool
        one = pool.c_proj(pool.v_proj(trunk[0, :, 1, 2]))
    assert vectors.shape == (1, 8, 2, 3)
    torch.testing.assert_close(vectors[0, :, 1, 2], F.normalize(one, dim=0), atol=1e-5, rtol=0)


def test_transformer_equals_its_own_last_block_where_each_place_hears_itself_alone() -> None:
    tower, batch = transformer(), picture(12, 12)
    with torch.inference_mode():
        vectors, _ = maskclip.dense_features(tower, batch)
        tokens = tower.transformer.resblocks[0](tower._embeds(batch))
        alone = torch.full((10, 10), -torch.inf).fill_diagonal_(0)
        tokens = tower.transformer.resblocks[1](tokens, attn_mask=alone)
        expected = F.normalize(tower.ln_post(tokens)[:, 1:] @ tower.proj, dim=2)
    assert vectors.shape == (1, 6, 3, 3)
    torch.testing.assert_close(vectors.flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=0)


def test_transformer_of_one_layer_by_hand() -> None:
    """Identity projections, no FFN, no norms: a place is twice its patch, projected."""
    tower = transformer(layers=1)
    block = tower.transformer.resblocks[0]
    with torch.no_grad():
        block.attn.in_proj_weight[32:] = torch.eye(16)
        block.attn.in_proj_bias.zero_()
        block.attn.out_proj.weight.copy_(torch.eye(16))
        block.attn.out_proj.bias.zero_()
        block.mlp.c_proj.weight.zero_()
        block.mlp.c_proj.bias.zero_()
        for name in ("ln_1", "ln_2"):
            setattr(block, name, torch.nn.Identity())
        tower.ln_pre = tower.ln_post = torch.nn.Identity()
        vectors, keys = maskclip.dense_features(tower, picture(12, 12))
        patch = picture(12, 12)[0, :, 4:8, 8:12]  # row 1, column 2
        token = torch.einsum("ochw,chw->o", tower.conv1.weight, patch)
        token = token + tower.positional_embedding[1 + 1 * 3 + 2]
        expected = F.normalize(2 * token @ tower.proj, dim=0)
        key = F.normalize(block.attn.in_proj_weight[16:32] @ token, dim=0)
    torch.testing.assert_close(vectors[0, :, 1, 2], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(keys[0, :, 1, 2], key, atol=1e-5, rtol=0)


def test_position_table_grows_with_the_image() -> None:
    tower = transformer()
    with torch.inference_mode():
        same = maskclip._positions(tower, torch.Size((3, 3)))
        torch.testing.assert_close(same, tower.positional_embedding.data, atol=1e-6, rtol=0)
        wide = maskclip._positions(tower, torch.Size((3, 6)))
        assert wide.shape == (19, 16)
        vectors, _ = maskclip.dense_features(tower, picture(12, 24))
    assert vectors.shape == (1, 6, 3, 6)


TEXTS = torch.eye(2, 3)  # two categories
VECTORS = F.normalize(torch.tensor([[[1.0, 0.0]], [[0.5, 1.0]], [[0.0, 1.0]]]), dim=0)  # two places
KEYS = torch.tensor([[[1.0, 0.6]], [[0.0, 0.8]]])


def found(**settings: float) -> np.ndarray:
    config = BaselinesConfig.model_validate({"temperature": 10.0} | settings)
    return maskclip.probabilities(VECTORS, KEYS, TEXTS, (1, 2), config).numpy()


def test_probabilities_by_hand() -> None:
    first = np.exp([10 / np.sqrt(1.25), 5 / np.sqrt(1.25)])
    second = np.exp([0, 10 / np.sqrt(2)])
    expected = np.stack([first / first.sum(), second / second.sum()], axis=1)[:, None]
    np.testing.assert_allclose(found(), expected, atol=1e-6)
    assert abs(expected[0, 0, 0] - 0.98872) < 1e-4, "1 / (1 + e^-4.4721)"
    hotter = found(temperature=100.0)
    assert hotter[0, 0, 0] > expected[0, 0, 0]


def test_denoising_drops_categories_that_nothing_shows() -> None:
    np.testing.assert_allclose(found(denoise=0.98), found(), atol=1e-6)
    dropped = found(denoise=0.995)  # the first reaches 0.989, the second 0.999
    np.testing.assert_allclose(dropped[:, 0], [[0, 0], [1, 1]], atol=1e-6)


def test_smoothing_asks_the_places_alike() -> None:
    plain = found()[:, 0]
    mixed = found(smooth=0.99)[:, 0]  # only the first place is unsure
    np.testing.assert_allclose(mixed[:, 1], plain[:, 1], atol=1e-6)
    expected = (1.0 * plain[:, 0] + 0.6 * plain[:, 1]) / 1.6
    np.testing.assert_allclose(mixed[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(mixed.sum(0), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "side", "stride", "expected"),
    [
        ((375, 500), 512, 32, (512, 672)),
        ((100, 900), 512, 16, (224, 2048)),
        ((100, 130), 0, 32, (96, 128)),
        ((10, 10), 0, 32, (32, 32)),
    ],
)
def test_image_is_brought_to_whole_cells(
    size: tuple[int, int], side: int, stride: int, expected: tuple[int, int]
) -> None:
    image = np.zeros((*size, 3), np.uint8)
    assert maskclip.fit(image, side, stride).shape == (*expected, 3)


def test_baseline_reads_the_tiny_clip_at_any_size() -> None:
    config = BaselinesConfig(shorter_side=96, normalization="clip")
    clip = maskclip.DenseClip(config, "cpu")
    baseline = maskclip.MaskClip(clip, ["horse", "fish", "car"], TEMPLATES, config)
    image = np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8)
    probabilities = baseline(image)
    assert probabilities.shape == (3, 70, 50) and probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(0), torch.ones(70, 50))


def test_normalization_follows_the_config() -> None:
    image = np.full((32, 32, 3), 90, np.uint8)
    seen = {}
    for kind in ("imagenet", "clip"):
        config = BaselinesConfig.model_validate({"normalization": kind})
        seen[kind] = maskclip.DenseClip(config, "cpu").features([image])[0]
    assert not torch.allclose(seen["imagenet"], seen["clip"])
    tensor = to_tensor([image], IMAGENET_MEAN, (1.0, 1.0, 1.0))
    assert tensor[0, 0, 0, 0] == pytest.approx(90 / 255 - IMAGENET_MEAN[0])


def test_model_without_an_open_tower_is_refused() -> None:
    config = BaselinesConfig(model="tests.toys:embedder")
    with pytest.raises(ConfigError, match="no image tower that MaskCLIP can read"):
        maskclip.DenseClip(config, "cpu")
    build = partial(VisionTransformer, 12, 4, 16, 1, 2, 2)
    assert not maskclip.is_open(build(attentional_pool=True, output_dim=8))
    assert not maskclip.is_open(build(block_type="custom", qk_norm=True))
    assert maskclip.is_open(build())
    assert not maskclip.is_open(torch.nn.Linear(1, 1))
