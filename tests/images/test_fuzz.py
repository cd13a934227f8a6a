"""The guard of decoding on spoiled real photos: no crash, no hang, no leak, one verdict."""

from __future__ import annotations

import os
import signal
import warnings
import zlib
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from namedmask import images
from namedmask.images import jpegs
from namedmask.images.codec import BadImage
from tests.image_mutations import mutated, seeds

INPUTS = 20_000
PROCESSES = 2
PHOTOS = 6
MAX_PIXELS = 1_000_000
SECONDS = 20
"""For one input; none needs a tenth of a second, but the machine may be busy."""

LEAST_DECODED = 0.1
"""Share of the inputs that must still give an image: else the guard's first line is all we test."""

GROWTH_MB = 40
PEAK_MB = 250
"""Above the memory that a process holds after its first inputs: at its end, and at any time."""

STATUSES = ("not_an_image", "truncated", "too_many_pixels", "too_many_scans")

SPAWN = get_context("spawn")


def verdict(data: bytes, decoder=images.decode, **options) -> tuple:
    """Return what a decoder makes of bytes, in a form to compare; other errors go through."""
    try:
        array = decoder(data, max_pixels=MAX_PIXELS, **options)
    except BadImage as error:
        assert error.status in STATUSES, error.status
        return (error.status,)
    assert array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3, array.shape
    assert 0 < array.shape[0] * array.shape[1] <= MAX_PIXELS
    return "ok", array.shape, zlib.crc32(array)


def judge(data: bytes) -> str:
    """Return the word for an input that every way of decoding agrees on."""
    whole = verdict(data)
    assert verdict(data) == whole
    small = verdict(data, longest_side=8)
    coarse = verdict(data, images.decode_coarse, least_side=16)
    assert small[0] == coarse[0] == whole[0], (whole, small, coarse)
    assert verdict(data, jpegs.decode_coarse, least_side=16) == coarse
    if whole[0] == "ok":
        assert max(small[1]) <= 8
        assert images.size_of(data, MAX_PIXELS) == whole[1][:2]
    return whole[0]


def megabytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) // 1024


def decode_share(photos: list[Path], rank: int, folder: Path) -> None:
    """Judge every second input; the one in work lies in `folder`, for whoever finds this dead."""
    warnings.simplefilter("ignore")
    silence = os.open(folder / f"native-{rank}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(silence, 2)  # libtiff writes its complaints there
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends native code too
    made = seeds(photos)
    counts = dict.fromkeys(("ok", *STATUSES), 0)
    warm = 0
    for number in range(rank, INPUTS, PROCESSES):
        name, data = mutated(number, made)
        (folder / f"input-{rank}.bin").write_bytes(data)
        (folder / f"input-{rank}.txt").write_text(f"input {number}, {name}")
        signal.alarm(SECONDS)
        counts[judge(data)] += 1
        if number // PROCESSES == INPUTS // PROCESSES // 4:
            warm = megabytes("VmRSS")
    signal.alarm(0)
    (folder / f"report-{rank}.txt").write_text(
        f"{warm} {megabytes('VmRSS')} {megabytes('VmHWM')} {' '.join(map(str, counts.values()))}"
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_decode_of_20000_spoiled_photos_gives_an_image_or_its_status(
    real_data: Path, tmp_path: Path
) -> None:
    photos = sorted((real_data / "coco" / "photos").glob("*.jpg"))[:PHOTOS]
    assert len(photos) == PHOTOS
    processes = [
        SPAWN.Process(target=decode_share, args=(photos, rank, tmp_path))
        for rank in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    for rank, process in enumerate(processes):
        if process.exitcode:
            what = (tmp_path / f"input-{rank}.txt").read_text()
            told = (tmp_path / f"native-{rank}.txt").read_text()[-2000:]
            pytest.fail(
                f"exit code {process.exitcode} (negative: a signal, {-signal.SIGALRM}: too slow) "
                f"at {what}; its bytes are {tmp_path / f'input-{rank}.bin'}.\n{told}"
            )
    reports = [(tmp_path / f"report-{rank}.txt").read_text().split() for rank in range(PROCESSES)]
    figures = np.array(reports, int)
    warm, end, peak = figures[:, :3].T
    assert (end - warm < GROWTH_MB).all() and (peak - warm < PEAK_MB).all(), figures
    decoded, *refused = figures[:, 3:].sum(axis=0)
    assert decoded + sum(refused) == INPUTS and min(refused[:3]) > 0, figures
    assert decoded > LEAST_DECODED * INPUTS, figures
