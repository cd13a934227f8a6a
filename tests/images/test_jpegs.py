"""What is stored of an image: as it came or shrunk, and never a file that Pillow would refuse."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from namedmask import images
from namedmask.images import jpegs
from namedmask.images.codec import BadImage


def photo(height: int = 300, width: int = 400) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return images.resize(coarse, height, width)


def saved(array: np.ndarray, kind: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / error))


KINDS: dict[str, dict[str, Any]] = {
    "jpeg": {},
    "progressive": {"progressive": True},
    "unsampled": {"subsampling": 0},
    "gray": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "png": {"kind": "PNG"},
    "alpha": {"kind": "PNG", "mode": "RGBA"},
    "palette": {"kind": "GIF", "mode": "P"},
    "webp": {"kind": "WEBP"},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_to_store_small_enough_is_the_bytes_that_came(options: dict[str, Any]) -> None:
    data = saved(photo(), **options)
    for longest_side in (0, 400, 1000):
        assert jpegs.to_store(data, longest_side) == (data, 300, 400)


@pytest.mark.parametrize("side", [399, 250, 100, 49])
@pytest.mark.parametrize("kind", KINDS)
def test_to_store_larger_is_a_jpeg_of_that_size_close_to_lanczos(kind: str, side: int) -> None:
    data = saved(photo(), **KINDS[kind])
    stored, height, width = jpegs.to_store(data, side)
    assert (height, width) == (round(300 * side / 400), side)
    found = Image.open(io.BytesIO(stored))
    assert (found.format, found.size) == ("JPEG", (width, height))
    whole = Image.fromarray(images.decode(data))
    expected = np.asarray(whole.resize((width, height), Image.Resampling.LANCZOS))
    assert psnr(np.asarray(found.convert("RGB")), expected) > (
        21 if kind == "palette" else 18 if side < 10 else 27
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_to_store_turns_a_shrunk_image_and_tells_the_size_of_a_kept_one(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(photo(), exif=exif, quality=95)
    upright = images.decode(data)
    assert jpegs.to_store(data) == (data, *upright.shape[:2])
    stored, height, width = jpegs.to_store(data, 200)
    found = np.asarray(Image.open(io.BytesIO(stored)))
    assert found.shape[:2] == (height, width)
    assert psnr(found, images.resize(upright, height, width)) > 30
    assert "exif" not in Image.open(io.BytesIO(stored)).info


def verdict(data: bytes, side: int) -> str:
    try:
        jpegs.to_store(data, side)
    except BadImage as error:
        return error.status
    return "ok"


def verdict_of_pillow(data: bytes) -> str:
    try:
        images.decode(data)
    except BadImage as error:
        return error.status
    return "ok"


@pytest.mark.parametrize("side", [0, 200])
@pytest.mark.parametrize("progressive", [False, True])
def test_to_store_cut_or_spoiled_files_are_judged_as_by_pillow(
    side: int, progressive: bool
) -> None:
    whole = saved(photo(), progressive=progressive)
    files = [whole[: len(whole) * share // 20] for share in range(20)]
    files += [whole[:-1], whole[:-2], whole[:-10], whole + b"\0" * 50, b"", b"<html>", b"\xff\xd8"]
    for place in range(700, len(whole) - 50, len(whole) // 12):
        files.append(whole[:place] + b"\0" * 40 + whole[place + 40 :])
        files.append(whole[:place] + b"\xff\xd9" + whole[place + 2 :])
    verdicts = [verdict(data, side) for data in files]
    assert verdicts == [verdict_of_pillow(data) for data in files]
    assert {"ok", "truncated", "not_an_image"} <= set(verdicts)


def test_to_store_huge_header_and_many_scans_fail_before_pixels() -> None:
    with pytest.raises(BadImage, match="too_many_pixels"):
        jpegs.to_store(saved(photo()), 0, 119_999)
    data = saved(photo(), progressive=True)
    scan = data.index(b"\xff\xda")
    many = data[:scan] + data[scan : scan + 30] * (images.MAX_SCANS + 1) + data[scan:]
    with pytest.raises(BadImage, match="too_many_scans"):
        jpegs.to_store(many)


def test_to_store_real_photos_are_closer_to_lanczos_than_areas(real_data: Path) -> None:
    ours, areas = [], []
    for path in sorted(real_data.rglob("*.jpg"))[:60]:
        whole = images.decode(path.read_bytes())
        if max(whole.shape) <= 384:
            continue
        width, height = images.fitted(whole.shape[1], whole.shape[0], 384)
        lanczos = Image.fromarray(whole).resize((width, height), Image.Resampling.LANCZOS)
        ours.append(psnr(jpegs._shrunk(whole, width, height), np.asarray(lanczos)))
        areas.append(psnr(images.resize(whole, height, width), np.asarray(lanczos)))
    assert len(ours) >= 10
    assert np.mean(ours) > np.mean(areas)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("least_side", [40, 100, 1000])
def test_decode_coarse_is_pillows_to_the_bit(kind: str, orientation: int, least_side: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(photo(320, 400), **KINDS[kind], exif=exif)
    expected = images.decode_coarse(data, least_side)
    assert np.array_equal(jpegs.decode_coarse(data, least_side), expected)
    assert (min(expected.shape[:2]) < 320) == (
        kind in ("jpeg", "progressive", "unsampled", "gray", "cmyk") and least_side <= 160
    )


def test_decode_coarse_of_real_photos_is_pillows_to_the_bit(real_data: Path) -> None:
    paths = sorted(real_data.rglob("*.jpg"))
    for path in paths[:: max(1, len(paths) // 60)]:
        data = path.read_bytes()
        expected = images.decode_coarse(data, 150)
        assert np.array_equal(jpegs.decode_coarse(data, 150), expected), path.name
