"""What every entry of every registry promises; an entry takes part by being registered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from namedmask.config import BaselinesConfig, Config
from namedmask.evaluate.label_maps import Benchmark
from namedmask.evaluate.reco import ENCODERS
from namedmask.schema import IGNORE
from namedmask.verbs import baselines
from namedmask.verbs.baselines import BASELINES
from tests import toys
from tests.parts import REGISTRIES, setting_of

PICTURES = [
    toys.disk(toys.COLORS["red"], 1),
    toys.disk(toys.COLORS["green"], 2)[:30],
    toys.disk(toys.COLORS["blue"], 3)[:, :25],
    np.full((40, 70, 3), 90, np.uint8),
]
SIZES = ((48, 48), (64, 96))


def entries(kind: str) -> list[str]:
    return sorted(REGISTRIES[kind].entries)


def made(kind: str, name: str, folder: Path) -> Any:
    return REGISTRIES[kind].entries[name](setting_of(kind, name, folder))


def copies(pictures: list[np.ndarray]) -> list[np.ndarray]:
    return [picture.copy() for picture in pictures]


def assert_unit(vectors: np.ndarray, count: int, dim: int) -> None:
    assert vectors.shape == (count, dim) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_part_that_nobody_set_up_for_the_tests_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"embedder 'new' is registered; add how to set it up"):
        setting_of("embedder", "new", tmp_path)


@pytest.mark.numerical
@pytest.mark.parametrize("name", entries("embedder"))
def test_embedder_gives_unit_vectors_that_depend_on_their_own_input_alone(
    name: str, tmp_path: Path
) -> None:
    embedder = made("embedder", name, tmp_path)
    given = copies(PICTURES)
    together = embedder.embed_images(given)
    assert_unit(together, len(PICTURES), embedder.dim)
    assert all(np.array_equal(a, b) for a, b in zip(given, PICTURES, strict=True))
    turned = embedder.embed_images(given[::-1])[::-1]
    np.testing.assert_array_equal(together, turned)
    texts = ["a photo of a cat", "a dog", "x" * 300]
    assert_unit(embedder.embed_texts(texts), len(texts), embedder.dim)
    np.testing.assert_array_equal(embedder.embed_texts(texts), embedder.embed_texts(texts))


@pytest.mark.numerical
@pytest.mark.parametrize("name", entries("embedder"))
def test_embedder_decodes_what_it_embeds(name: str, tmp_path: Path) -> None:
    embedder = made("embedder", name, tmp_path)
    if not hasattr(embedder, "decode"):
        return
    large = np.asarray(PICTURES[0]).repeat(20, 0).repeat(20, 1)
    decoded = embedder.decode(toys.jpeg(large, 100))
    assert decoded.dtype == np.uint8 and decoded.ndim == 3 and decoded.shape[2] == 3
    near = embedder.embed_images([decoded]) @ embedder.embed_images([large]).T
    assert near.item() > 0.98


@pytest.mark.parametrize("name", entries("face detector"))
def test_face_detector_gives_scored_boxes_of_a_square(name: str, tmp_path: Path) -> None:
    detector = made("face detector", name, tmp_path)
    side = detector.side
    canvas = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    before = canvas.copy()
    boxes = detector.detect(canvas)
    assert boxes.ndim == 2 and boxes.shape[1] == 5 and boxes.dtype == np.float32
    assert np.isfinite(boxes).all()
    assert ((boxes[:, 4] >= 0) & (boxes[:, 4] <= 1)).all()
    assert (boxes[:, 2] >= boxes[:, 0]).all() and (boxes[:, 3] >= boxes[:, 1]).all()
    np.testing.assert_array_equal(canvas, before)
    np.testing.assert_array_equal(detector.detect(canvas), boxes)


@pytest.mark.numerical
@pytest.mark.parametrize("name", entries("saliency detector"))
def test_saliency_detector_gives_a_map_of_each_image_at_its_size(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = made("saliency detector", name, tmp_path)
    if hasattr(detector, "SIDE"):
        monkeypatch.setattr(type(detector), "SIDE", 32)  # it works at 512: seconds per image
    given = copies(PICTURES)
    maps = detector.saliency(given)
    for picture, found in zip(PICTURES, maps, strict=True):
        assert found.shape == picture.shape[:2] and found.dtype == np.float32
        assert found.min() >= 0 and found.max() <= 1
    assert all(np.array_equal(a, b) for a, b in zip(given, PICTURES, strict=True))
    for alone, found in zip(PICTURES, maps, strict=True):
        np.testing.assert_array_equal(detector.saliency([alone])[0], found)


@pytest.mark.numerical
@pytest.mark.parametrize("name", entries("segmenter"))
def test_segmenter_gives_a_logit_per_label_and_pixel(name: str) -> None:
    factory = REGISTRIES["segmenter"].entries[name]
    with torch.device("meta"):
        shapes = [
            {key: value.shape for key, value in factory(count).state_dict().items()}
            for count in (2, 5)
        ]
    grown = {key for key, shape in shapes[0].items() if shape != shapes[1][key]}
    assert grown and all(shapes[1][key][0] == 5 for key in grown), "labels are the first dimension"
    assert any(key.startswith("backbone.") for key in shapes[0]), "its rate is that of a backbone"
    torch.manual_seed(0)
    model = factory(5).eval()
    for height, width in SIZES:
        batch = torch.rand(2, 3, height, width)
        with torch.inference_mode():
            logits = model(batch)
        assert logits.shape == (2, 5, height, width) and logits.dtype == torch.float32
        assert torch.isfinite(logits).all()


@pytest.mark.numerical
@pytest.mark.parametrize("name", entries("encoder"))
def test_encoder_gives_features_at_its_stride(name: str, tmp_path: Path) -> None:
    encoder = ENCODERS[name](setting_of("encoder", name, tmp_path)).eval()
    torch.manual_seed(0)
    batch = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        features = encoder(batch)
        alone = encoder(batch[1:])
    assert features.shape[0] == 2 and features.dtype == torch.float32
    assert features.shape[2:] == (64 // encoder.stride, 96 // encoder.stride)
    torch.testing.assert_close(alone[0], features[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", entries("benchmark"))
def test_benchmark_gives_images_with_labels_of_their_size(name: str, tmp_path: Path) -> None:
    root = setting_of("benchmark", name, tmp_path)
    split = {"coca": "all", "folder": "test", "miniworld": "test"}.get(name, "val")
    benchmark: Benchmark = REGISTRIES["benchmark"].entries[name](root, split)
    assert benchmark.names and len(set(benchmark.names)) == len(benchmark.names)
    assert benchmark.absent in ("skip", "zero")
    assert len(benchmark) > 0
    seen = set()
    for index in range(len(benchmark)):
        scene, image, labels = benchmark[index]
        seen.add(scene)
        assert image.dtype == np.uint8 and image.shape == (*labels.shape, 3)
        assert labels.dtype == np.uint16
        known = labels[labels != IGNORE]
        assert known.size == 0 or known.max() <= len(benchmark.names)
    assert len(seen) == len(benchmark), "a scene is named once"
    with pytest.raises(IndexError):
        benchmark[len(benchmark)]


@pytest.mark.numerical
@pytest.mark.parametrize("name", sorted(BASELINES))
def test_baseline_gives_probabilities_of_each_category_and_pixel(name: str) -> None:
    baseline = BASELINES[name]
    assert 0 <= baseline.threshold <= 1
    assert set(baseline.settings) <= set(BaselinesConfig.model_fields)
    config = Config.of({"run": {"out": "unused"}, "baselines": {"shorter_side": 64}})
    queries = ["a red disk", "a green disk", "a blue disk"]
    vectors = None
    if baseline.needs_archive:
        dim = ENCODERS[config.baselines.encoder](config.baselines).eval()(torch.zeros(1, 3, 64, 64))
        vectors = np.eye(3, dim.shape[1], dtype=np.float32)
    probabilities = baselines._open(name, config, queries, vectors)
    for picture in PICTURES[:2]:
        found = probabilities(picture.copy())
        assert tuple(found.shape) == (3, *picture.shape[:2]) and found.dtype == torch.float32
        assert float(found.min()) >= 0 and float(found.max()) <= 1 + 1e-5
