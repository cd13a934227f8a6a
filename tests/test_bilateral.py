"""The bilateral solver: golden output, a slow and obvious second version, and the stage."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from namedmask import images, schema
from namedmask.bilateral import Bilateral, bilateral_solver, build_grid, snap
from namedmask.config import BilateralConfig
from namedmask.errors import ConfigError, InputError, SchemaError

pytestmark = pytest.mark.numerical

GOLDEN = Path(__file__).parent / "golden" / "bilateral_solver.npz"


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def cell_of(pixel, row: int, column: int, config: BilateralConfig) -> tuple[int, ...]:
    """Return the five coordinates of a pixel's cell, in whole numbers throughout."""
    red, green, blue = (int(value) for value in pixel)
    luma = 299000 * red + 587000 * green + 114000 * blue
    u = -168736 * red - 331264 * green + 500000 * blue + 128_000_000
    v = 500000 * red - 418688 * green - 81312 * blue + 128_000_000
    million = 1_000_000
    return (
        int(luma // (million * config.sigma_luma)),
        int(u // (million * config.sigma_chroma)),
        int(v // (million * config.sigma_chroma)),
        int(column // config.sigma_spatial),
        int(row // config.sigma_spatial),
    )


def slow_solver(image: np.ndarray, mask: np.ndarray, config: BilateralConfig) -> np.ndarray:
    """Return the solver's result by a dictionary of cells, dense matrices and textbook CG."""
    height, width = mask.shape
    cells = {
        (r, c): cell_of(image[r, c], r, c, config) for r in range(height) for c in range(width)
    }
    numbers = {cell: number for number, cell in enumerate(sorted(set(cells.values())))}
    blur = np.diag(np.full(len(numbers), 10.0))
    for cell, number in numbers.items():
        for axis in range(5):
            for step in (-1, 1):
                near = (*cell[:axis], cell[axis] + step, *cell[axis + 1 :])
                if near in numbers:
                    blur[number, numbers[near]] = 1.0

    counts, sums = np.zeros(len(numbers)), np.zeros(len(numbers))
    for place, cell in cells.items():
        counts[numbers[cell]] += 1
        sums[numbers[cell]] += mask[place]
    scales = np.ones(len(numbers))
    for _ in range(10):
        scales = np.sqrt(scales * counts / (blur @ scales))
    masses = scales * (blur @ scales)

    smooth = np.diag(masses) - np.diag(scales) @ blur @ np.diag(scales)
    system = config.smoothness * smooth + np.diag(config.confidence * counts)
    target = config.confidence * sums
    values = sums / counts
    residual = target - system @ values
    preconditioned = residual / np.diag(system)
    direction = preconditioned
    for _ in range(config.cg_iterations):
        if np.linalg.norm(residual) <= 1e-5 * np.linalg.norm(target):
            break
        step = (residual @ preconditioned) / (direction @ system @ direction)
        values = values + step * direction
        new = residual - step * (system @ direction)
        ratio = (new @ (new / np.diag(system))) / (residual @ preconditioned)
        residual, preconditioned = new, new / np.diag(system)
        direction = preconditioned + ratio * direction
    return np.array([[values[numbers[cells[r, c]]] for c in range(width)] for r in range(height)])


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return smooth color with noise: neighbors in color as well as in place."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    noise = rng.integers(-12, 13, (height, width, 3))
    return np.clip(images.resize(coarse, height, width) + noise, 0, 255).astype(np.uint8)


def disk(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a bright disk on a dark ground, (H, W, 3) uint8, and its mask (H, W) bool."""
    rows, columns = np.mgrid[:height, :width]
    inside = np.hypot(rows - height / 2, columns - width / 2) < 0.3 * min(height, width)
    image = np.where(inside[..., None], (220, 200, 60), (30, 60, 90)).astype(np.uint8)
    return image, inside


def test_golden_image_gives_original_mask() -> None:
    with np.load(GOLDEN) as golden:
        soft = bilateral_solver(golden["image"], golden["target"])
        expected = golden["soft"]
        truth = golden["true"] > 0
    assert soft.dtype == np.float32 and soft.shape == expected.shape
    assert iou(soft > 0.5, expected > 0.5) >= 0.99
    assert np.abs(soft - expected).mean() < 1e-4
    assert iou(soft > 0.5, truth) > iou(golden_target() > 0, truth)


def golden_target() -> np.ndarray:
    with np.load(GOLDEN) as golden:
        return golden["target"]


@pytest.mark.parametrize(
    "options",
    [{}, {"sigma_spatial": 5.0, "sigma_luma": 20.0, "sigma_chroma": 12.0}, {"cg_iterations": 3},
     {"smoothness": 4.0, "confidence": 0.5}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("shape", [(40, 56), (33, 7)], ids=str)
def test_solver_equals_slow_version(shape, options) -> None:
    config = BilateralConfig(**options)
    image = photo(*shape)
    mask = np.random.default_rng(1).random(shape) * (image[..., 0] > 120)
    soft = bilateral_solver(image, mask, config)
    np.testing.assert_allclose(soft, slow_solver(image, mask, config), atol=2e-4)


def test_many_colors_on_many_places_equal_slow_version() -> None:
    # so many possible cells that they are found by sorting instead of a table
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (36, 48, 3), dtype=np.uint8)
    config = BilateralConfig(sigma_spatial=1.0, sigma_luma=8.0, sigma_chroma=4.0)
    mask = rng.random((36, 48))
    soft = bilateral_solver(image, mask, config)
    np.testing.assert_allclose(soft, slow_solver(image, mask, config), atol=2e-4)


def test_gray_pixels_fall_into_one_chroma_cell() -> None:
    grays = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    grid = build_grid(grays, BilateralConfig(sigma_spatial=1000.0))
    assert len(grid.counts) == 16  # one for each luma cell


def test_grid_counts_every_pixel_once() -> None:
    grid = build_grid(photo(50, 70), BilateralConfig())
    assert grid.counts.sum() == 50 * 70
    assert (grid.add_up(np.ones((50, 70))) == grid.counts).all()
    assert (grid.neighbors != grid.neighbors.T).nnz == 0


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_mask_stays_constant(value) -> None:
    soft = bilateral_solver(photo(30, 40), np.full((30, 40), value))
    np.testing.assert_allclose(soft, value, atol=1e-5)


def test_one_pixel_gives_its_own_value() -> None:
    soft = bilateral_solver(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1), bool))
    np.testing.assert_allclose(soft, 1.0, atol=1e-6)


def test_inputs_read_only_and_cut_out_of_a_larger_array_give_the_same() -> None:
    image, mask = disk(60, 80)
    large = np.zeros((90, 200, 3), np.uint8)
    large[10:70, 20:180:2] = image
    view = large[10:70, 20:180:2]
    view.flags.writeable = False
    mask.flags.writeable = False
    assert (bilateral_solver(view, mask) == bilateral_solver(image, mask)).all()


def test_misfit_of_image_and_mask_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(4, 4, 3\) uint8 and a mask \(4, 5\)"):
        bilateral_solver(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), bool))
    with pytest.raises(InputError, match="float64"):
        bilateral_solver(np.zeros((4, 5, 3)), np.zeros((4, 5), bool))


def test_sigma_below_a_gray_level_is_refused() -> None:
    config = BilateralConfig(sigma_chroma=0.1)
    with pytest.raises(ConfigError, match=r"sigma_chroma 0\.1 .* raise them"):
        bilateral_solver(np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), bool), config)


@pytest.mark.parametrize("shape", [(96, 130), (600, 800), (20, 1500)], ids=str)
def test_snap_brings_a_shifted_mask_back_to_the_object(shape) -> None:
    image, truth = disk(*shape)
    shift = max(2, min(shape) // 20)
    shifted = np.roll(truth, shift, axis=1)
    snapped = snap(image, shifted, BilateralConfig())
    assert snapped.dtype == bool and snapped.shape == shape
    assert iou(snapped, truth) > iou(shifted, truth) + 0.05


def test_snap_keeps_a_mask_that_would_vanish() -> None:
    image = np.full((200, 200, 3), 90, np.uint8)
    speck = np.zeros((200, 200), bool)
    speck[100, 100] = True
    assert (snap(image, speck, BilateralConfig()) == speck).all()


def table_of(rows: list[tuple[str, bytes | None, bytes | None]]) -> pa.Table:
    columns = {"sample_id": [f"{i:020x}" for i in range(len(rows))]}
    for place, name in enumerate(("status", "image", "mask")):
        columns[name] = [row[place] for row in rows]
    return pa.table(columns, schema.schema_of(*columns))


def good_row(height: int, width: int) -> tuple[str, bytes, bytes]:
    image, mask = disk(height, width)
    return "ok", images.encode_jpeg(image), images.encode_mask(np.roll(mask, 3, axis=1))


def test_stage_snaps_good_rows_and_leaves_tombstones() -> None:
    table = table_of([good_row(64, 80), ("has_face", None, None), good_row(72, 60)])
    before = table.to_pydict()
    out = Bilateral(BilateralConfig())(table)
    assert table.to_pydict() == before
    assert out.column_names == table.column_names
    assert out["status"].to_pylist() == ["ok", "has_face", "ok"]
    assert out["mask"][1].as_py() is None
    for row, (height, width) in {0: (64, 80), 2: (72, 60)}.items():
        mask = images.decode_mask(out["mask"][row].as_py(), height, width)
        truth = disk(height, width)[1]
        assert iou(mask, truth) > max(0.9, iou(np.roll(truth, 3, axis=1), truth))


def test_stage_buries_broken_rows_with_their_reason() -> None:
    status, image, mask = good_row(64, 80)
    other = images.encode_mask(np.ones((5, 5), bool))
    table = table_of([(status, image, other), (status, image[:200], mask), (status, b"no", mask),
                      (status, image, None)])  # fmt: skip
    out = Bilateral(BilateralConfig())(table)
    assert out["status"].to_pylist() == ["bad_mask", "truncated", "not_an_image", "bad_mask"]
    assert out["mask"].null_count == 4 and out["image"].null_count == 4


def test_stage_result_does_not_depend_on_the_batch() -> None:
    table = table_of([good_row(64, 80), good_row(50, 50), good_row(72, 60)])
    stage = Bilateral(BilateralConfig())
    parts = pa.concat_tables([stage(table.slice(row, 1)) for row in range(3)])
    assert parts.equals(stage(table))


def test_stage_takes_an_empty_table() -> None:
    out = Bilateral(BilateralConfig())(table_of([]))
    assert out.num_rows == 0 and out.schema == table_of([]).schema


def test_stage_switched_off_passes_all() -> None:
    table = table_of([good_row(64, 80)])
    assert Bilateral(BilateralConfig(enabled=False))(table).equals(table)


def test_stage_without_masks_names_the_column() -> None:
    with pytest.raises(SchemaError, match="'mask' missing before stage 'bilateral'"):
        Bilateral(BilateralConfig())(table_of([good_row(64, 80)]).drop(["mask"]))


def test_stage_pickles() -> None:
    stage = pickle.loads(pickle.dumps(Bilateral(BilateralConfig(smoothness=3.0))))
    assert stage.config.smoothness == 3.0


def test_real_photos_come_closer_to_their_true_masks(real_data: Path) -> None:
    gains = []
    for path in sorted((real_data / "ecssd" / "photos").iterdir())[:6]:
        image = images.decode(path.read_bytes())
        truth_bytes = (real_data / "ecssd" / "masks" / f"{path.stem}.png").read_bytes()
        truth = images.resize(images.decode_gray(truth_bytes), *image.shape[:2])
        coarse = images.resize(truth, image.shape[0] // 16, image.shape[1] // 16)
        coarse = images.resize(coarse, *image.shape[:2], nearest=True) > 127
        snapped = snap(image, coarse, BilateralConfig())
        gains.append(iou(snapped, truth > 127) - iou(coarse, truth > 127))
    assert np.mean(gains) > 0.01
