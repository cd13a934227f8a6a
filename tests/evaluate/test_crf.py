"""The dense CRF: against all pairs worked out one by one, and against the public densecrf."""

from __future__ import annotations

import math

import numpy as np
import pytest

from namedmask.errors import InputError
from namedmask.evaluate import crf
from tests.golden import golden_arrays

pytestmark = pytest.mark.numerical


def two_tones(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of two noisy halves, and probabilities of 3 labels that guess them badly."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), (200, 60, 60))
    image[:, width // 2 :] = (60, 60, 200)
    noisy = np.clip(image + rng.integers(-3, 4, image.shape), 0, 255).astype(np.uint8)
    logits = rng.normal(size=(3, height, width))
    logits[0, :, : width // 2] += 0.8
    logits[1, :, width // 2 :] += 0.8
    powers = np.exp(logits)
    return noisy, (powers / powers.sum(0)).astype(np.float32)


def all_pairs(features: np.ndarray) -> np.ndarray:
    """Return the Gaussian between all points, (N, N) float64."""
    features = features.astype(np.float64)
    distance = ((features[:, None] - features[None]) ** 2).sum(axis=2)
    return np.exp(-distance / 2)


def scaled(gaussian: np.ndarray) -> np.ndarray:
    scale = 1 / np.sqrt(gaussian.sum(axis=1))
    return gaussian * scale[:, None] * scale


def kernels_of(image: np.ndarray) -> list[tuple[float, np.ndarray]]:
    features = (crf.place_features(*image.shape[:2]), crf.color_features(image))
    weights = (crf.PLACE_WEIGHT, crf.COLOR_WEIGHT)
    return [(w, scaled(all_pairs(f))) for w, f in zip(weights, features, strict=True)]


def by_hand(image: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the marginals by the definition: energies added up pixel by pixel, label by label."""
    count, pixels = len(probabilities), image.shape[0] * image.shape[1]
    start = probabilities.reshape(count, pixels).T.astype(np.float64)
    kernels = kernels_of(image)
    marginals = start.copy()
    for _ in range(10):
        updated = np.empty_like(marginals)
        for pixel in range(pixels):
            logits = []
            for label in range(count):
                heard = sum(
                    weight * (kernel[pixel] * marginals[:, label]).sum()
                    for weight, kernel in kernels
                )
                logits.append(math.log(max(start[pixel, label], 1e-5)) + heard)
            powers = [math.exp(logit - max(logits)) for logit in logits]
            updated[pixel] = np.array(powers) / sum(powers)
        marginals = updated
    return marginals.T.reshape(probabilities.shape)


def test_mean_field_on_exact_kernels_equals_the_definition() -> None:
    image, probabilities = two_tones(12, 10)
    unary = np.log(probabilities.reshape(3, -1).T)
    exact = [(weight, kernel.__matmul__) for weight, kernel in kernels_of(image)]
    marginals = crf.mean_field(unary, exact).T.reshape(3, 12, 10)
    np.testing.assert_allclose(marginals, by_hand(image, probabilities), atol=1e-5)


@pytest.mark.parametrize("size", [(12, 10), (24, 20)])
def test_dense_crf_is_close_to_all_pairs_on_small_images(size: tuple[int, int]) -> None:
    """The lattice is an approximation, so single pixels at an edge may differ by more."""
    image, probabilities = two_tones(*size)
    found, expected = crf.dense_crf(image, probabilities), by_hand(image, probabilities)
    assert np.abs(found - expected).mean() < 0.01
    assert (found.argmax(0) == expected.argmax(0)).mean() > 0.98
    assert (found.argmax(0) != probabilities.argmax(0)).mean() > 0.2, "it had nothing to do"


def test_dense_crf_equals_the_public_densecrf() -> None:
    golden = golden_arrays("dense_crf")
    found = crf.dense_crf(golden["image"], golden["probabilities"])
    np.testing.assert_allclose(found, golden["marginals"], atol=2e-4)


def test_one_step_of_dense_crf_equals_the_public_densecrf(monkeypatch: pytest.MonkeyPatch) -> None:
    """After one step nothing is saturated yet: what is between 0 and 1 must agree too."""
    monkeypatch.setattr(crf, "ITERATIONS", 1)
    golden = golden_arrays("dense_crf")
    found = crf.dense_crf(golden["image"], golden["probabilities"])
    np.testing.assert_allclose(found, golden["one_step"], atol=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_lattice_is_close_to_the_gaussian_of_all_pairs(dims: int) -> None:
    rng = np.random.default_rng(dims)
    points = (rng.random((300, dims)) * 3).astype(np.float32)
    values = rng.random((300, 2)).astype(np.float32)
    exact = scaled(all_pairs(points)) @ values
    found = crf.Kernel.over(points)(values)
    assert np.abs(found - exact).max() < 0.15 * exact.max()


def test_lattice_shares_sum_to_one_and_reading_back_reverses_spreading() -> None:
    points = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32) * 20
    lattice = crf.build_lattice(points)
    np.testing.assert_allclose(lattice.splat.sum(axis=0), 1, atol=1e-5)
    assert lattice.splat.min() > -1e-5
    gain = 1 / (1 + 2.0**-5)
    np.testing.assert_allclose(lattice.slice.toarray(), gain * lattice.splat.toarray().T, rtol=1e-6)


def test_marginals_sum_to_one_and_certain_pixels_stay() -> None:
    image, probabilities = two_tones(9, 7, seed=4)
    probabilities[:, 4, 3] = (0, 0, 1)
    found = crf.dense_crf(image, probabilities)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    assert found.dtype == np.float32 and found.min() >= 0
    alone = crf.dense_crf(image[:1, :1], probabilities[:, :1, :1])
    assert alone.shape == (3, 1, 1)
    np.testing.assert_array_equal(crf.dense_crf(image, np.ones((1, 9, 7), np.float32)), 1)


def test_misfits_are_refused() -> None:
    image, probabilities = two_tones(9, 7)
    for wrong in (image[:, :-1], image.astype(np.float32)):
        with pytest.raises(InputError, match="dense CRF takes"):
            crf.dense_crf(wrong, probabilities)
    far = np.array([[0, 0, 0, 0, 0], [9000, 0, 0, 0, 0]], np.float32)
    with pytest.raises(InputError, match="smaller image"):
        crf.build_lattice(far)
