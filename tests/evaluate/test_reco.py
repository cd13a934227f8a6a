"""ReCo: co-segmentation worked out by hand and by plain loops, inference by hand, encoders."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from namedmask.config import BaselinesConfig
from namedmask.errors import CheckpointError, ConfigError
from namedmask.evaluate import reco
from namedmask.evaluate.crf import dense_crf
from namedmask.saliency.selfmask import Encoder
from tests.golden import golden_weights

pytestmark = pytest.mark.numerical

VIT = "vit_tiny_patch16_224"


def features_of(*images: list[list[float]]) -> Tensor:
    """Return features (N, E, 1, P) of N images, each a list of the vectors of its P places."""
    return torch.tensor(images).transpose(1, 2)[:, :, None]


def test_seeds_by_hand() -> None:
    """Both images have the first axis in common; the second is the first image's own."""
    features = features_of([[0.0, 3.0], [2.0, 0.0]], [[4.0, 0.0], [-1.0, -1.0]])
    vector = reco.cosegment(features, torch.ones(2, 1, 2))
    np.testing.assert_allclose(vector, [1, 0], atol=1e-6)  # the mean of (2, 0) and (4, 0)


def test_seeds_are_averaged_as_they_are_not_as_directions() -> None:
    features = features_of([[3.0, 4.0]], [[1.0, 0.0]])
    vector = reco.cosegment(features, torch.ones(2, 1, 1))
    expected = np.array([4.0, 4.0]) / np.hypot(4, 4)
    np.testing.assert_allclose(vector, expected, atol=1e-6)


def test_weights_turn_away_from_what_is_everywhere() -> None:
    """Both images show sky at their first place; where that counts little, the second wins."""
    sky, thing, other = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.9, 0.1]
    features = features_of([sky, thing], [sky, other])
    plain = reco.cosegment(features, torch.ones(2, 1, 2))
    np.testing.assert_allclose(plain, sky, atol=1e-6)
    weighted = reco.cosegment(features, torch.tensor([[[0.2, 1.0]], [[0.2, 1.0]]]))
    assert weighted[1] > 0.99


def by_loops(features: Tensor, weights: Tensor, leak: bool = False) -> Tensor:
    """Return the class vector by plain loops; with `leak`, with the slip of the original."""
    count, _, height, width = features.shape
    places = height * width
    rows = features.permute(0, 2, 3, 1).reshape(count * places, -1)
    unit = F.normalize(rows, dim=1)
    affinity = unit @ unit.T * weights.reshape(1, -1)
    worth, start = torch.zeros(count, count * places), 0
    for image in range(count):
        end = start + places
        columns = affinity[:, start : start + end] if leak else affinity[:, start:end]
        worth[image] = columns.max(dim=1).values
        start = end
    mean = worth.mean(dim=0).view(count, places)
    seeds = [rows[image * places + int(mean[image].argmax())] for image in range(count)]
    return F.normalize(torch.stack(seeds).mean(dim=0), dim=0)


def test_cosegmentation_equals_plain_loops_without_the_leak() -> None:
    generator = torch.Generator().manual_seed(0)
    leaked = 0
    for _ in range(20):
        features = torch.randn(5, 6, 3, 4, generator=generator)
        weights = torch.rand(5, 3, 4, generator=generator)
        found = reco.cosegment(features, weights)
        torch.testing.assert_close(found, by_loops(features, weights), atol=1e-5, rtol=0)
        leaked += not torch.allclose(found, by_loops(features, weights, leak=True), atol=1e-4)
    assert leaked > 5, "columns of later images would change the seeds"


class ToyPlaces:
    """Two places with known features, and a CLIP that says how like two texts they are."""

    clip = SimpleNamespace(stride=1)

    def texts(self, queries: Any) -> Tensor:
        return torch.eye(len(queries), 3)

    def features(self, pictures: Any) -> Tensor:
        return torch.tensor([[[[2.0, 0.0]], [[0.0, 5.0]]]])  # (1, 2, 1, 2): along each axis

    def attention(self, pictures: Any, texts: Tensor) -> Tensor:
        cosines = torch.tensor([[[[0.3, 0.1]], [[0.2, 0.3]]]])
        return torch.sigmoid(reco.SHARPNESS * cosines)


IMAGE = np.array([[[200, 60, 60], [60, 60, 200]]], np.uint8)
CLASSES = np.array([[1.0, 0.0], [0.6, 0.8]], np.float32)


def predicted(**settings: Any) -> np.ndarray:
    config = BaselinesConfig.model_validate({"shorter_side": 0, **settings})
    places: Any = ToyPlaces()
    return reco.ReCo(places, ["a", "b"], CLASSES, config)(IMAGE).numpy()


def sigmoid(values: Any) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(values)))


def test_products_by_hand() -> None:
    likeness = sigmoid([[1.0, 0.0], [0.6, 0.8]])  # category, place
    attention = sigmoid([[3.0, 1.0], [2.0, 3.0]])
    product = likeness * attention
    np.testing.assert_allclose(predicted(post="none")[:, 0], product, atol=1e-6)
    assert product[0, 0] == pytest.approx(0.731059 * 0.952574, abs=1e-5)
    powers = np.exp(7 * product)
    expected = powers / powers.sum(0)
    np.testing.assert_allclose(predicted(post="softmax", scale=7)[:, 0], expected, atol=1e-5)
    after = dense_crf(IMAGE, expected[:, None].astype(np.float32))
    np.testing.assert_allclose(predicted(post="crf", scale=7), after, atol=1e-5)


def test_released_scale_cannot_reach_the_papers_threshold() -> None:
    """Why `scale` is not 1: a whole image as sure as cosines that are not negative can make it."""
    product = np.full((20, 24, 24), 0.25, np.float32)
    product[0] = 0.73
    powers = np.exp(product)
    image = np.full((24, 24, 3), 128, np.uint8)
    assert dense_crf(image, powers / powers.sum(0)).max() < 0.15
    powers = np.exp(100 * (product - 0.73))
    assert dense_crf(image, powers / powers.sum(0)).max() > reco.THRESHOLD


def places_of(**settings: Any) -> tuple[reco.Places, BaselinesConfig]:
    config = BaselinesConfig.model_validate({"crop": 64, "normalization": "clip"} | settings)
    return reco.Places(config, "cpu", ("a {}",)), config


def test_class_vector_multiplies_attention_and_context() -> None:
    from namedmask.images.codec import encode_png

    places, _ = places_of()
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(12)]
    encoded = [encode_png(picture) for picture in pictures]
    features = torch.cat([places.features(pictures[:10]), places.features(pictures[10:])])
    context = F.normalize(torch.randn(2, features.shape[1]), dim=1)
    attention = places.attention(pictures, places.texts(["fish"]))
    weights = F.interpolate(attention, features.shape[2:], mode="bilinear")[:, 0]
    like = torch.sigmoid(torch.einsum("nehw,ce->nchw", F.normalize(features, dim=1), context))
    weights = weights * (1 - like[:, 0]) * (1 - like[:, 1])
    expected = by_loops(features, weights)
    found = places.class_vector(encoded, "fish", {"sky": context[0], "road": context[1]})
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_timm_encoder_reads_a_file_and_any_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(VIT, pretrained=False)  # with its classifier
    torch.save({"model": model.state_dict()}, tmp_path / "vit.pth")
    encoder = reco.TimmEncoder(
        BaselinesConfig(encoder=f"timm:{VIT}", encoder_weights=str(tmp_path / "vit.pth"))
    ).eval()
    batch = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        tokens = model.eval().forward_features(batch)[:, 1:]
        found = encoder(batch)
        assert encoder(torch.rand(2, 3, 32, 48)).shape == (2, 192, 2, 3)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), tokens, atol=1e-5, rtol=0)
    assert encoder.stride == 16


def test_timm_encoder_reads_dinos_files(tmp_path: Path) -> None:
    """SelfMask's encoder is a DINO ViT-S/8 in its published layout, and equals the original's."""
    dino = Encoder().eval()
    golden_weights(dino)
    torch.save(dino.state_dict(), tmp_path / "dino.pth")
    config = BaselinesConfig(
        encoder="timm:vit_small_patch8_224", encoder_weights=str(tmp_path / "dino.pth")
    )
    batch = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        found, expected = reco.TimmEncoder(config).eval()(batch), dino(batch)
    assert found.shape == (1, 384, 28, 28)
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_timm_encoder_refuses_what_does_not_fit(tmp_path: Path) -> None:
    for weights in ("", str(tmp_path / "none.pth")):
        with pytest.raises(CheckpointError, match=r"encoder_weights .* cannot be loaded"):
            reco.TimmEncoder(BaselinesConfig(encoder=f"timm:{VIT}", encoder_weights=weights))
    other = tmp_path / "other.pth"
    torch.save(timm.create_model("resnet18").state_dict(), other)
    with pytest.raises(CheckpointError, match="it lacks cls_token"):
        reco.TimmEncoder(BaselinesConfig(encoder=f"timm:{VIT}", encoder_weights=str(other)))
    with pytest.raises(ConfigError, match="timm model"):
        reco.TimmEncoder(BaselinesConfig(encoder="timm:vit_tiny_patch17"))
    resnet = reco.TimmEncoder(
        BaselinesConfig(encoder="timm:resnet18", encoder_weights=str(other))
    ).eval()
    with torch.inference_mode():
        assert resnet(torch.rand(1, 3, 64, 96)).shape == (1, 512, 2, 3)
