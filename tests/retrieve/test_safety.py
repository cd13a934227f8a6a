"""The safety head and the violence prompts: by known arithmetic, in the forms LAION publishes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from namedmask.config import RetrieveConfig
from namedmask.errors import CheckpointError
from namedmask.retrieve.safety import load_filters, load_prompts, load_safety_head

pytestmark = pytest.mark.numerical


def unit(rows: int, width: int, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def h14(width: int = 1024) -> nn.Sequential:
    """Return the published network of OpenCLIP ViT-H/14, layer for layer."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inside, outside in [(width, 1024), (1024, 2048), (2048, 1024), (1024, 256), (256, 128)]:
        layers += [nn.Linear(inside, outside), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(128, 16), nn.Linear(16, 1)).eval()


def save_keras(path: Path, width: int, normalized: bool = True, seed: int = 0) -> list[np.ndarray]:
    """Write what Keras' get_weights() gives of LAION's network for vectors of this width."""
    rng = np.random.default_rng(seed)
    weights: list[np.ndarray] = []
    if normalized:
        weights = [rng.normal(size=width), rng.uniform(0.5, 2, width), np.array(9)]
    for inside, outside in [(width, 64), (64, 512), (512, 256), (256, 1)]:
        weights += [rng.normal(size=(inside, outside)) / inside**0.5, rng.normal(size=outside)]
    weights = [one.astype(np.float32) if one.ndim else one for one in weights]
    np.savez(path, *weights)
    return weights


def test_heads_torch_form_of_h14_gives_the_network_s_own_scores(tmp_path: Path) -> None:
    model = h14()
    vectors = unit(1500, 1024)
    with torch.inference_mode():
        expected = model(torch.from_numpy(vectors))[:, 0].numpy()
    for prefix in ("", "layers."):  # as the network is, and as the class around it saves it
        path = tmp_path / "h14_nsfw.pth"
        torch.save({prefix + key: value for key, value in model.state_dict().items()}, path)
        head = load_safety_head(str(path))
        np.testing.assert_allclose(head(vectors), expected, atol=1e-5)
    assert [layer.relu for layer in head.layers] == [True] * 5 + [False, False]


def test_heads_keras_form_normalises_and_ends_in_a_sigmoid(tmp_path: Path) -> None:
    weights = save_keras(tmp_path / "head.npz", 768)
    vectors = unit(20, 768)
    x = (vectors - weights[0]) / np.sqrt(weights[1])
    for kernel, bias in zip(weights[3:-2:2], weights[4:-2:2], strict=True):
        x = np.maximum(x @ kernel + bias, 0)
    expected = 1 / (1 + np.exp(-(x @ weights[-2] + weights[-1])[:, 0]))
    found = load_safety_head(str(tmp_path / "head.npz"))(vectors)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert 0 <= found.min() < found.max() <= 1


def test_heads_keras_form_without_normalisation_and_512_wide(tmp_path: Path) -> None:
    save_keras(tmp_path / "b32.npz", 512, normalized=False)
    head = load_safety_head(str(tmp_path / "b32.npz"))
    assert (head.mean.shape, head.scale.max(), len(head.layers)) == ((512,), 1, 4)
    assert np.isfinite(head(unit(3, 512))).all()


def test_heads_score_of_a_vector_does_not_depend_on_the_others(tmp_path: Path) -> None:
    save_keras(tmp_path / "head.npz", 768)
    head = load_safety_head(str(tmp_path / "head.npz"))
    vectors = unit(1500, 768)
    whole = head(vectors)
    assert whole[1400] == head(vectors[1400:])[0] == head(vectors[1400:1401])[0]


def test_heads_tests_by_hand(tmp_path: Path) -> None:
    # unsafe: the second coordinate above 0.8; violent: nearer to the second axis than to the third
    np.savez(tmp_path / "head.npz", np.array([[0.0], [1.0], [0.0]]), np.array([-0.8]))
    np.save(tmp_path / "prompts.npy", np.eye(3, dtype=np.float32)[[2, 1]])
    config = RetrieveConfig(
        safety_head=str(tmp_path / "head.npz"), violence_prompts=str(tmp_path / "prompts.npy")
    )
    vectors = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0.6, 0.8], [0, 0.8, 0.6]], np.float32)
    found = {status: test(vectors).tolist() for status, test in load_filters(config, 3)}
    assert found == {
        "unsafe": [False, True, False, False, False],
        "violent": [False, True, False, False, True],
    }
    (_, strict), _ = load_filters(config.model_copy(update={"safety_score": 0.4}), 3)
    assert strict(vectors).tolist() == [False, True, False, True, True]


def test_heads_of_a_config_without_any_are_none() -> None:
    assert load_filters(RetrieveConfig(), 768) == []


def test_heads_for_another_width_are_refused(tmp_path: Path) -> None:
    save_keras(tmp_path / "head.npz", 512)
    np.save(tmp_path / "prompts.npy", unit(2, 512))
    for key in ("safety_head", "violence_prompts"):
        file = tmp_path / ("head.npz" if key == "safety_head" else "prompts.npy")
        with pytest.raises(CheckpointError, match=rf"retrieve\.{key} .* 512 wide; .* 768 wide"):
            load_filters(RetrieveConfig(**{key: str(file)}), 768)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("head.zip", b"PK", r"ends in '\.zip'; expected \.npz, \.pth or \.pt"),
        ("head.npz", b"PK", "cannot be read as a safety head"),
        ("head.pth", b"nothing", "cannot be read as a safety head"),
        ("none.npz", None, "cannot be read as a safety head"),
    ],
)
def test_heads_file_of_no_head_is_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_safety_head(str(tmp_path / name))


def test_heads_of_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    ones = np.ones
    for name, arrays in {
        "no bias": [ones((4, 3))],
        "gap": [ones((4, 3)), ones(3), ones((2, 1)), ones(1)],
        "two outputs": [ones((4, 2)), ones(2)],
        "not finite": [np.full((4, 1), np.nan), ones(1)],
        "other mean": [ones(3), ones(3), ones(()), ones((4, 1)), ones(1)],
    }.items():
        np.savez(tmp_path / "head.npz", *arrays)
        with pytest.raises(CheckpointError):
            load_safety_head(str(tmp_path / "head.npz"))
            pytest.fail(name)


def test_heads_torch_file_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    torch.save(h14(8), tmp_path / "whole.pth")  # a pickled network, not its weights
    with pytest.raises(CheckpointError, match="cannot be read as a safety head"):
        load_safety_head(str(tmp_path / "whole.pth"))


@pytest.mark.parametrize("prompts", [np.ones((3, 4)) / 2, np.ones(4) / 2, np.ones((2, 4))])
def test_heads_prompts_of_another_form_are_refused(tmp_path: Path, prompts: np.ndarray) -> None:
    np.save(tmp_path / "prompts.npy", prompts.astype(np.float32))
    with pytest.raises(CheckpointError, match=r"expected (\(2, D\)|unit length)"):
        load_prompts(str(tmp_path / "prompts.npy"))
