"""TokenCut against a slow and obvious version, hand-made graphs, and DINO's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from namedmask.config import SaliencyConfig
from namedmask.config.registry import resolve
from namedmask.errors import CheckpointError, ConfigError
from namedmask.saliency.detectors import DETECTORS, TokenCutSaliency
from namedmask.saliency.selfmask import SelfMask
from namedmask.saliency.tokencut import (
    affinity,
    grid_of,
    key_features,
    load_dino,
    object_patches,
    second_eigenvector,
)
from tests.golden import golden_keys, golden_weights

pytestmark = pytest.mark.numerical


def slow_object_patches(features: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Return what `object_patches` does, by loops and the whole generalized spectrum."""
    count = len(features)
    weights = np.zeros((count, count))
    for a in range(count):
        for b in range(count):
            norms = np.linalg.norm(features[a]) * np.linalg.norm(features[b])
            weights[a, b] = 1 if features[a] @ features[b] / norms > 0.2 else 1e-5
    degrees = np.diag(weights.sum(axis=1))
    values, vectors = scipy.linalg.eigh(degrees - weights, degrees)
    vector = vectors[:, np.argsort(values)[1]].reshape(grid)
    seed = np.unravel_index(np.abs(vector).argmax(), grid)
    if vector[seed] < 0:
        vector = -vector
    found, open_ends = np.zeros(grid, bool), [seed]
    while open_ends:
        row, column = open_ends.pop()
        inside = 0 <= row < grid[0] and 0 <= column < grid[1]
        if inside and not found[row, column] and vector[row, column] > vector.mean():
            found[row, column] = True
            open_ends += [
                (row + 1, column),
                (row - 1, column),
                (row, column + 1),
                (row, column - 1),
            ]
    return found


def noisy_scene(seed: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Return features (N, 16) of two kinds of patches and much noise, and their grid."""
    rng = np.random.default_rng(seed)
    grid = (int(rng.integers(4, 14)), int(rng.integers(4, 14)))
    kinds = rng.normal(size=(2, 16))
    top, left = (int(rng.integers(0, side - 2)) for side in grid)
    inside = np.zeros(grid, int)
    inside[top : top + 3, left : left + 4] = 1
    noise = rng.normal(size=(grid[0] * grid[1], 16)) * rng.uniform(0.3, 1.2)
    return (kinds[inside.ravel()] + noise).astype(np.float32), grid


@pytest.mark.parametrize("seed", range(12))
def test_object_equals_the_slow_version(seed: int) -> None:
    features, grid = noisy_scene(seed)
    found = object_patches(features, grid)
    assert found.dtype == bool
    assert np.array_equal(found, slow_object_patches(features, grid))


@pytest.mark.parametrize("seed", range(3))
def test_second_eigenvector_solves_the_generalized_problem(seed: int) -> None:
    weights = affinity(noisy_scene(seed)[0])
    degrees = np.diag(weights.sum(axis=1))
    vector = second_eigenvector(weights)
    expected = scipy.linalg.eigh(degrees - weights, degrees, eigvals_only=True)[1]
    residual = (degrees - weights) @ vector - expected * (degrees @ vector)
    assert np.abs(residual).max() < 1e-9 * np.abs(degrees @ vector).max()
    assert abs(degrees.diagonal() @ vector) < 1e-9  # apart from the smallest, which is constant


def test_affinity_is_one_above_the_cosine_and_tiny_elsewhere() -> None:
    features = np.array([[3, 0], [0.25, 1], [0.15, 1], [-1, 0], [0, 0]], np.float32)
    row = affinity(features)[0]
    assert row.tolist() == [1.0, 1.0, 1e-5, 1e-5, 1e-5]


def test_one_blob_on_a_ground_is_the_object() -> None:
    inside = np.zeros((10, 12), bool)
    inside[3:7, 2:6] = True
    features = np.where(inside[..., None], [0.0, 1.0], [1.0, 0.0]).reshape(-1, 2)
    assert np.array_equal(object_patches(features.astype(np.float32), (10, 12)), inside)


def test_of_two_blobs_the_one_less_like_the_ground_is_the_object() -> None:
    """The far blob is like the near one, the near one like the ground too: the far is the end."""
    far, near = np.zeros((12, 12), bool), np.zeros((12, 12), bool)
    far[1:4, 1:5], near[7:11, 6:10] = True, True
    features = np.tile([1.0, 0.0], (12, 12, 1))
    features[far], features[near] = [0.0, 1.0], [0.5, 0.8]
    found = object_patches(features.reshape(-1, 2).astype(np.float32), (12, 12))
    assert np.array_equal(found, far)


def test_blobs_that_touch_at_a_corner_are_two() -> None:
    inside = np.zeros((8, 8), bool)
    inside[1:3, 1:3] = True
    corner = np.zeros((8, 8), bool)
    corner[3:6, 3:6] = True
    features = np.where((inside | corner)[..., None], [0.0, 1.0], [1.0, 0.0]).reshape(-1, 2)
    found = object_patches(features.astype(np.float32), (8, 8))
    assert np.array_equal(found, inside) or np.array_equal(found, corner)


@pytest.mark.parametrize("features", [np.ones((20, 3)), np.zeros((20, 3)), np.eye(1)])
def test_nothing_to_cut_is_no_object(features: np.ndarray) -> None:
    grid = (len(features) // 4, 4) if len(features) > 1 else (1, 1)
    assert not object_patches(features.astype(np.float32), grid).any()


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [
        ((375, 500), 16, (23, 31)), ((640, 640), 16, (40, 40)), ((375, 500), 8, (34, 46)),
        ((4000, 1000), 16, (80, 20)), ((5, 5), 16, (1, 1)), ((3, 90_000), 16, (1, 1600)),
        ((90_000, 3), 16, (1600, 1)),
    ],
)  # fmt: skip
def test_grid_is_whole_patches_up_to_a_limit(
    size: tuple[int, int], patch: int, expected: tuple[int, int]
) -> None:
    assert grid_of(size, patch) == expected
    assert expected[0] * expected[1] <= 1600


@pytest.fixture(scope="module", params=[8, 16])
def dino_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in the layout of DINO's ViT-S, made from the encoder that SelfMask has of it."""
    state = {
        key.removeprefix("encoder."): torch.empty(shape)
        for key, shape in golden_keys("selfmask").items()
        if key.startswith("encoder.")
    }
    if request.param == 16:
        state["pos_embed"] = torch.empty(1, 1 + 14 * 14, 384)
        state["patch_embed.proj.weight"] = torch.empty(384, 3, 16, 16)
    generator = torch.Generator().manual_seed(0)
    for key, value in state.items():
        ones = key.endswith("weight") and value.ndim == 1
        value.normal_(1.0 if ones else 0.0, 0.05, generator=generator)
    path = tmp_path_factory.mktemp("dino") / f"dino_deitsmall{request.param}_pretrain.pth"
    torch.save(state, path)
    return path


def test_load_dino_takes_exactly_the_released_layout(dino_file: Path, tmp_path: Path) -> None:
    state = torch.load(dino_file, weights_only=True)
    before = torch.get_rng_state()
    dino = load_dino(dino_file)
    assert torch.equal(torch.get_rng_state(), before)
    assert not dino.training
    assert dino.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in dino.state_dict().items())
    for change in ({"head.weight": torch.ones(3)}, {"norm.bias": torch.ones(3)}):
        torch.save(state | change, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match=r"other\.pth: does not fit DINO's ViT-S/"):
            load_dino(tmp_path / "other.pth")


@pytest.mark.parametrize("state", [{}, {"patch_embed.proj.weight": torch.ones(384, 3, 14, 14)}])
def test_load_dino_of_another_network_is_refused(tmp_path: Path, state: dict) -> None:
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="expected the state dict of a ViT-S/8 or ViT-S/16"):
        load_dino(tmp_path / "other.pth")


def test_key_features_are_those_of_the_last_block(tmp_path: Path) -> None:
    """Against the encoder of SelfMask, a DINO ViT-S/8 that the original's numbers prove right."""
    with torch.device("meta"):
        model = SelfMask()
    golden_weights(model.to_empty(device="cpu"))
    encoder: nn.Module = model.eval().encoder
    torch.save(encoder.state_dict(), tmp_path / "dino.pth")
    dino = load_dino(tmp_path / "dino.pth")
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    last = encoder.blocks[-1].attn.qkv
    last.register_forward_hook(lambda _module, _given, out: seen.append(out))
    with torch.inference_mode():
        encoder(images)
        found = key_features(dino, images)
    assert found.shape == (2, 28 * 28, 384)
    keys = seen[0].unflatten(2, (3, 6, 64))[:, 1:, 1].flatten(2)
    assert (found - keys).norm() / keys.norm() < 1e-4


@pytest.mark.parametrize("size", [(50, 61), (200, 90), (1, 300), (7, 7)])
def test_detector_map_is_a_mask_of_the_size_of_the_image(
    dino_file: Path, size: tuple[int, int]
) -> None:
    detector = TokenCutSaliency(dino_file, torch.device("cpu"))
    photos = [np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8) for i in range(2)]
    found = detector.saliency(photos)
    for one, photo in zip(found, photos, strict=True):
        assert one.shape == size and one.dtype == np.float32
        assert set(np.unique(one)) <= {0.0, 1.0}
        np.testing.assert_array_equal(detector.saliency([photo])[0], one)


def test_detector_by_name_reads_the_file_of_the_config(dino_file: Path) -> None:
    factory = resolve("saliency detector", "tokencut", DETECTORS)
    detector = factory(SaliencyConfig(detector="tokencut", weights=str(dino_file)))
    assert isinstance(detector, TokenCutSaliency)
    assert f"deitsmall{detector.patch}_" in dino_file.name
    assert detector.saliency([]) == []
    with pytest.raises(ConfigError, match="namedmask weights fetch dino-vits16"):
        factory(SaliencyConfig(detector="tokencut"))
