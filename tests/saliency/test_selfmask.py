"""SelfMask against the original's numbers, its files, and the detector around it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from namedmask.config import SaliencyConfig
from namedmask.config.registry import resolve
from namedmask.errors import CheckpointError, ConfigError
from namedmask.images.codec import to_tensor
from namedmask.saliency.detectors import DETECTORS, SelfMaskSaliency
from namedmask.saliency.selfmask import best_mask, load_selfmask, padded_size
from namedmask.saliency.stage import SelfMask, pseudo_mask
from tests.golden import golden_arrays, golden_keys, golden_weights

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def network() -> SelfMask:
    with torch.device("meta"):
        model = SelfMask()
    model.to_empty(device="cpu")
    golden_weights(model)
    return model.eval()


@pytest.fixture(scope="module")
def weights(network: SelfMask, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("selfmask") / "selfmask.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def detector(weights: Path) -> SelfMaskSaliency:
    return SelfMaskSaliency(weights, torch.device("cpu"))


def proposals(model: SelfMask, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        masks, objectness = model(images)
    return masks, objectness


def test_selfmask_state_dict_has_the_released_layout(network: SelfMask) -> None:
    layout = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert layout == golden_keys("selfmask")
    assert sum(p.numel() for p in network.parameters()) == 36_174_337


def test_selfmask_golden_picture_gives_the_original_proposals(network: SelfMask) -> None:
    golden = golden_arrays("selfmask")
    masks, objectness = proposals(network, to_tensor([golden["image"]]))
    assert masks.shape == (1, 20, 26, 34)
    assert np.abs(masks[0].numpy() - golden["mask_pred"]).max() < 1e-4
    assert np.abs(objectness[0].numpy() - golden["objectness"]).max() < 1e-4


def test_best_mask_golden_picture_gives_the_original_mask(network: SelfMask) -> None:
    golden = golden_arrays("selfmask")
    masks, objectness = proposals(network, to_tensor([golden["image"]]))
    probability = best_mask(masks, objectness, 100, 132)[0].numpy()
    assert probability.shape == golden["mask"].shape
    clear = np.abs(probability - 0.5) > 1e-4
    assert clear.mean() > 0.99
    assert ((probability > 0.5) == golden["mask"].astype(bool))[clear].all()


def test_best_mask_takes_of_each_image_the_query_of_highest_objectness() -> None:
    masks = torch.arange(20.0).view(1, 20, 1, 1).expand(2, 20, 2, 4) / 20
    objectness = torch.zeros(2, 20)
    objectness[0, 3] = objectness[1, 17] = 0.9
    best = best_mask(masks, objectness, 7, 13)
    assert best.shape == (2, 7, 13)
    torch.testing.assert_close(best[:, 0, 0], torch.tensor([3 / 20, 17 / 20]))


def test_selfmask_pads_right_and_below_with_zeros(network: SelfMask) -> None:
    images = torch.randn(1, 3, 20, 35, generator=torch.Generator().manual_seed(0))
    padded = torch.zeros(1, 3, 24, 40)
    padded[..., :20, :35] = images
    for bare, whole in zip(proposals(network, images), proposals(network, padded), strict=True):
        assert torch.equal(bare, whole)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (9, 40), (224, 16)])
def test_selfmask_any_size_gives_masks_of_a_quarter(
    network: SelfMask, size: tuple[int, int]
) -> None:
    height, width = size
    masks, objectness = proposals(network, torch.zeros(2, 3, height, width))
    assert masks.shape == (2, 20, 2 * -(-height // 8), 2 * -(-width // 8))
    assert objectness.shape == (2, 20)
    for values in (masks, objectness):
        assert ((values >= 0) & (values <= 1)).all()


@pytest.mark.parametrize("wrapped", [False, True])
def test_load_released_forms_give_the_same_network(
    network: SelfMask, weights: Path, tmp_path: Path, wrapped: bool
) -> None:
    path = weights
    if wrapped:
        path = tmp_path / "wrapped.pt"
        torch.save({"model": network.state_dict(), "epoch": 12}, path)
    before = torch.get_rng_state()
    loaded = load_selfmask(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training
    images = torch.ones(1, 3, 16, 24)
    for ours, theirs in zip(proposals(loaded, images), proposals(network, images), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_embed": None}, r"1 entries missing \(query_embed\)"),
        ({"query_embed": torch.zeros(10, 384)}, r"query_embed \(10, 384\), expected \(20"),
        ({"query_embed": "text"}, "query_embed str, expected"),
        ({"head.weight": torch.zeros(3)}, r"1 unexpected \(head\.weight\)"),
    ],
)
def test_load_file_that_does_not_fit_is_refused(
    network: SelfMask, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    # one number each, repeated: the file stays small, and shapes are all that is looked at
    small = {key: torch.zeros(()).expand(v.shape) for key, v in network.state_dict().items()}
    path = tmp_path / "other.pt"
    changed = {**small, **change}
    torch.save({key: value for key, value in changed.items() if value is not None}, path)
    with pytest.raises(CheckpointError, match=message) as error:
        load_selfmask(path)
    assert str(path) in str(error.value)
    assert "selfmask_nq20.pt" in str(error.value)


def test_load_absent_or_cut_file_is_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_selfmask(tmp_path / "absent.pt")
    cut = tmp_path / "cut.pt"
    cut.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="truncated"):
        load_selfmask(cut)


@pytest.mark.parametrize("size", [(50, 61), (200, 90), (1, 300), (7, 7)])
def test_detector_map_has_the_size_of_the_image(
    detector: SelfMaskSaliency, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(detector, "SIDE", 48)
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    (found,) = detector.saliency([photo])
    assert found.shape == size
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1


def test_detector_golden_picture_gives_the_original_mask(
    detector: SelfMaskSaliency, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "SIDE", 100)
    golden = golden_arrays("selfmask")
    (found,) = detector.saliency([golden["image"]])
    clear = np.abs(found - 0.5) > 1e-4
    assert (pseudo_mask(found) == golden["mask"].astype(bool))[clear].all()


@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 150), (64, 96)), ((30, 60), (64, 128)), ((100, 400), (48, 192)), ((1, 900), (1, 192))],
)
def test_detector_long_side_is_limited_and_the_aspect_kept(
    detector: SelfMaskSaliency,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
    expected: tuple[int, int],
) -> None:
    monkeypatch.setattr(detector, "SIDE", 64)
    seen: list[tuple[int, ...]] = []
    hook = detector.net.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    with hook:
        detector.saliency([np.zeros((*size, 3), np.uint8), np.zeros((*size[::-1], 3), np.uint8)])
    assert seen == [(1, 3, *padded_size(one)) for one in (expected, expected[::-1])]


def test_detector_batches_images_of_one_padded_size_with_equal_maps(
    detector: SelfMaskSaliency, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = SelfMaskSaliency(weights, torch.device("cpu"), batch_size=2)
    for one in (detector, together):
        monkeypatch.setattr(one, "SIDE", 48)
    rng = np.random.default_rng(0)
    sizes = [(60, 80), (80, 60), (96, 123), (59, 75), (200, 200), (90, 120)]
    photos = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    alone = [detector.saliency([photo])[0] for photo in photos]
    seen: list[tuple[int, ...]] = []
    hook = together.net.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    with hook:
        found = together.saliency(photos)
    assert seen == [(2, 3, 48, 64), (2, 3, 48, 64), (1, 3, 64, 48), (1, 3, 48, 48)]
    for one, expected, size in zip(found, alone, sizes, strict=True):
        assert one.shape == size
        assert np.abs(one - expected).max() < 1e-5
        clear = np.abs(expected - 0.5) > 1e-5
        assert (pseudo_mask(one) == pseudo_mask(expected))[clear].all()


def test_detector_on_a_cpu_takes_one_at_a_time(weights: Path) -> None:
    made = DETECTORS["selfmask"](SaliencyConfig(weights=str(weights), batch_size=16))
    assert isinstance(made, SelfMaskSaliency)
    assert made.batch_size == 1


def test_detector_by_name_reads_the_file_of_the_config(weights: Path) -> None:
    factory = resolve("saliency detector", "selfmask", DETECTORS)
    detector = factory(SaliencyConfig(detector="selfmask", weights=str(weights)))
    assert isinstance(detector, SelfMaskSaliency)
    assert detector.SIDE == 512
    assert detector.saliency([]) == []


def test_detector_without_weights_says_how_to_get_them() -> None:
    with pytest.raises(ConfigError, match="Run 'namedmask weights fetch selfmask'"):
        DETECTORS["selfmask"](SaliencyConfig(detector="selfmask"))
