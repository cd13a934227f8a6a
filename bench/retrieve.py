"""Compare the exact top-k with faiss.IndexFlatIP, from files of float16 vectors, on two threads.

    python bench/retrieve.py [--rows 1000000]

There are two data sets. `noise` consists of uniformly drawn directions. `spectrum` has dot products
like those of CLIP embeddings. Its rows share a mean, so that two rows have a cosine of 0.45 on
average; around the mean, the variance of the n-th direction falls as 1/n, in a random basis. Its
queries share another mean, and have a cosine of 0.2 with a row on average. Half of the rest of a
query lies in the directions of the rows.

Both sides use the same reader of the same files, which also converts float16 to float32 with torch.
Each side runs in a process of its own, whose peak memory is measured. Each pair runs twice, in both
orders, and the times are medians. `gemm_fraction` is the time of the bare float32 products, by the
faster of numpy and torch, over that of our scan without reading. It can be above 1, because we skip
most float32 products; see namedmask/retrieve/bounds.py. The last line is JSON.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

WIDTH, QUERIES, K = 768, 919, 500
FILE_ROWS, READ_ROWS = 100_000, 16_384
"""Number of rows per file and per chunk that is read."""

PRODUCT_ROWS = 4096
"""Number of rows per bare product."""


def write_vectors(folder: Path, rows: int, like_clip: bool) -> None:
    """Write queries.npy, (C, D) float32, and the rows in files of (≤ 100,000, D) float16.

    All vectors have unit L2 norm. With `like_clip`, they have the statistics of `spectrum`.
    """
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]
    spread = torch.arange(1, WIDTH + 1) ** -0.5
    own = turn[2:] * (spread[2:] / spread[2:].norm())[:, None]  # the first two are for the means
    mean, text_mean = turn[0], 0.66 * turn[0] + 0.75 * turn[1]

    def draw(count: int, center: torch.Tensor, share: float, mix: float) -> torch.Tensor:
        drawn = torch.randn(count, WIDTH, generator=generator)
        if like_clip:
            shaped = drawn[:, 2:] @ own
            drawn = mix * shaped + (1 - mix**2) ** 0.5 * drawn / WIDTH**0.5
            drawn = share**0.5 * center + (1 - share) ** 0.5 * drawn
        result: torch.Tensor = drawn / drawn.norm(dim=1, keepdim=True)
        return result

    np.save(folder / "queries.npy", draw(QUERIES, text_mean, 0.2, 0.7).numpy())
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        count = min(FILE_ROWS, rows - start)
        np.save(folder / f"rows-{number:03d}.npy", draw(count, mean, 0.45, 1.0).half().numpy())


def read(folder: Path, times: int = 1) -> Iterator[np.ndarray]:
    """Yield all rows as (≤ 16,384, D) float32 arrays; each overwrites the one before."""
    half = np.empty((READ_ROWS, WIDTH), np.float16)
    whole = torch.empty((READ_ROWS, WIDTH))
    for path in sorted(folder.glob("rows-*.npy")) * times:
        vectors = np.load(
            path, mmap_mode="r"
        )  # for its shape only: mapped pages would count as memory
        with path.open("rb") as file:
            file.seek(vectors.offset)
            for start in range(0, len(vectors), READ_ROWS):
                count = min(READ_ROWS, len(vectors) - start)
                file.readinto(half[:count].data)
                whole[:count].copy_(torch.from_numpy(half[:count]))
                yield whole[:count].numpy()


def ours(folder: Path, times: int) -> dict[str, float]:
    """Return the seconds of our exact top-k; `search_s` excludes the time spent reading."""
    from namedmask.retrieve.top_k import exact_top_k

    waited = 0.0

    def timed() -> Iterator[np.ndarray]:
        nonlocal waited
        chunks = read(folder, times)
        while True:
            start = time.perf_counter()
            chunk = next(chunks, None)
            waited += time.perf_counter() - start
            if chunk is None:
                return
            yield chunk

    queries = np.load(folder / "queries.npy")
    start = time.perf_counter()
    scores, rows = exact_top_k(timed(), queries, K, device="cpu")
    total = time.perf_counter() - start
    np.savez(folder / "ours.npz", scores=scores, rows=rows)
    return {"total_s": total, "search_s": total - waited}


def theirs(folder: Path, times: int) -> dict[str, float]:
    """Return the seconds of filling a flat FAISS index and searching it with all queries."""
    import faiss

    faiss.omp_set_num_threads(2)
    queries = np.load(folder / "queries.npy")
    start = time.perf_counter()
    index = faiss.IndexFlatIP(WIDTH)
    for chunk in read(folder, times):
        index.add(chunk)
    middle = time.perf_counter()
    scores, rows = index.search(queries, K)
    end = time.perf_counter()
    np.savez(folder / "theirs.npz", scores=scores, rows=rows)
    return {"total_s": end - start, "search_s": end - middle}


def products(folder: Path, times: int) -> dict[str, float]:
    """Return the seconds of all float32 products, by the faster of two libraries."""
    queries = np.load(folder / "queries.npy")
    sums = {"numpy": 0.0, "torch": 0.0}
    for chunk in read(folder, times):
        for first in range(0, len(chunk), PRODUCT_ROWS):
            part = chunk[first : first + PRODUCT_ROWS]
            for name, multiply in (("numpy", np.matmul), ("torch", torch_product)):
                start = time.perf_counter()
                multiply(part, queries.T)
                sums[name] += time.perf_counter() - start
    return {"total_s": min(sums.values()), "search_s": min(sums.values())}


def torch_product(left: np.ndarray, right: np.ndarray) -> torch.Tensor:
    """Return left @ right, float32."""
    return torch.from_numpy(left) @ torch.from_numpy(right)


SIDES = {"ours": ours, "theirs": theirs, "products": products}


def run(side: str, folder: Path, times: int = 1) -> dict[str, float]:
    """Return the seconds and the peak memory in MB of one side, run in a process of its own."""
    options = ["--side", side, "--folder", str(folder), "--times", str(times)]
    command = [sys.executable, __file__, *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, float] = json.loads(done.stdout)
    print(folder.name, side, f"× {times}", measured, flush=True)
    return measured


def peak_mb() -> int:
    """Return the peak memory of this process in MB.

    `getrusage` is not used, because its peak includes that of the parent before the fork.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))


def recall(folder: Path) -> float:
    """Return the share of FAISS's scores that our scores reach, rank by rank, up to rounding."""
    own, expected = (np.load(folder / f"{side}.npz")["scores"] for side in ("ours", "theirs"))
    return float((np.sort(own, axis=1) >= np.sort(expected, axis=1) - 1e-6).mean())


def compare(folder: Path, rows: int, like_clip: bool) -> dict[str, float]:
    """Return the median measurements of both sides, and the recall."""
    folder.mkdir()
    write_vectors(folder, rows, like_clip)
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for side in ("ours", "theirs", "theirs", "ours"):
        runs[side].append(run(side, folder))
    result = {
        f"{side}_{key}": statistics.median(run[key] for run in of_side)
        for side, of_side in runs.items()
        for key in of_side[0]
    }
    return result | {"recall": recall(folder)}


def main() -> None:
    """Measure both sides and print the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--side", choices=list(SIDES))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--times", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(2)
    if options.side:
        measured = SIDES[options.side](options.folder, options.times)
        seconds = {name: round(value, 3) for name, value in measured.items()}
        seconds["cpu_s"] = round(time.process_time(), 1)  # more reliable on a shared machine
        print(json.dumps(seconds | {"peak_mb": peak_mb()}))
        return
    with tempfile.TemporaryDirectory(prefix="bench-retrieve-") as place:
        noise_folder = Path(place) / "noise"
        noise = compare(noise_folder, options.rows, like_clip=False)
        product = run("products", noise_folder)["total_s"]
        four = run("ours", noise_folder, 4)
        for path in noise_folder.iterdir():
            path.unlink()
        spectrum = compare(Path(place) / "spectrum", options.rows, like_clip=True)
    result = {
        "bench": "retrieve",
        "rows": options.rows,
        "ratio": noise["theirs_total_s"] / noise["ours_total_s"],
        "ratio_spectrum": spectrum["theirs_total_s"] / spectrum["ours_total_s"],
        "search_ratio": noise["theirs_search_s"] / noise["ours_search_s"],
        "gemm_fraction": product / noise["ours_search_s"],
        "memory_ratio": noise["ours_peak_mb"] / noise["theirs_peak_mb"],
        "memory_growth": four["peak_mb"] / noise["ours_peak_mb"],
        "cpu_ratio": noise["theirs_cpu_s"] / noise["ours_cpu_s"],
        "recall": min(noise["recall"], spectrum["recall"]),
        "ours_s": noise["ours_total_s"],
        "ours_spectrum_s": spectrum["ours_total_s"],
        "ours_mb": noise["ours_peak_mb"],
        "ours_mb_four_times": four["peak_mb"],
    }
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}))


if __name__ == "__main__":
    main()
