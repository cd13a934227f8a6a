"""Compute the cost of a run over LAION-2B in two ways: the table in docs/scale.md.

    python bench/scale.py [GFLOP/s of a scan of 919 queries on 2 virtual cores]

Nothing is measured here. To get the table for your hardware, replace the figures below, which
docs/scale.md explains, with your own. The last line is JSON.
"""

from __future__ import annotations

import json
import sys

ROWS = 2.32e9  # rows of laion2B-en
DIM = 768
CATEGORIES, KEPT = 919, 500  # categories, and images per category
ALIVE = 0.5  # share of the urls that still serve an image
NO_FACE = 0.926  # share of the fetched images; from the paper
NO_OTHER = 0.9  # share that is no near duplicate and has a mask; assumed
IMAGE_BYTES = 96e3
METADATA_BYTES = 128 * 2.25e9

SCAN_GFLOPS = 184.0  # 919 queries, from files to results, 2 virtual cores: bench/retrieve.py
ONE_GFLOPS = 1.1  # product with one query, 2 virtual cores; bound by memory
CONVERT_GBS = 0.63  # GB of float16 converted to float32 per second, one thread
FETCH_PER_VCPU = 200.0  # images per second
FACES_S, SOLVER_S = 0.2, 0.0179  # seconds of one core per image

GPU_TFLOPS = 121.0  # peak of an L4, float16, dense
USED = 0.3  # share of the peak that is reached; assumed
GPU_PRICE, VCPU_PRICE = 1.30, 0.05  # dollars per hour; assumed

CLIP_FLOP = 2 * 257 * 24 * (12 * 1024**2 + 2 * 257 * 1024)  # ViT-L/14 at 224 pixels
TOKENS = (512 // 8) * (683 // 8)  # SelfMask at 512 × 683
SELFMASK_FLOP = 2 * TOKENS * 12 * (12 * 384**2 + 2 * TOKENS * 384)


def gpu_hours(flop: float) -> float:
    """Return the GPU hours that so many operations take."""
    return flop / (GPU_TFLOPS * 1e12 * USED) / 3600


def scan(queries: int, gflops: float) -> dict[str, float]:
    """Return the cost of one exact scan of the published float16 vectors, on CPUs only."""
    cost = product(ROWS, queries, gflops)
    size = ROWS * DIM * 2
    converting = size / (CONVERT_GBS * 1e9) / 3600 if queries == 1 else 0.0  # SCAN_GFLOPS has it
    return cost | {"bytes": size, "vcpu_h": cost["vcpu_h"] + converting}


def own_scan(queries: int, gflops: float) -> dict[str, float]:
    """Return the cost of one exact scan of the run's own float32 vectors, on CPUs only."""
    rows = ROWS * ALIVE
    return product(rows, queries, gflops) | {"bytes": rows * DIM * 4}


def product(rows: float, queries: int, gflops: float) -> dict[str, float]:
    """Return the cost of the dot products of all rows with all queries."""
    flop = 2 * queries * DIM * rows
    rate = gflops if queries > 1 else ONE_GFLOPS
    return {"flop": flop, "vcpu_h": flop / (rate * 1e9) / 3600 * 2}


def candidates(categories: int) -> dict[str, float]:
    """Return the cost of fetching and checking the candidates of so many full archives."""
    tried = categories * KEPT / (ALIVE * NO_FACE * NO_OTHER)
    fetched = tried * ALIVE
    flop = fetched * NO_FACE * SELFMASK_FLOP
    cpu_s = tried / FETCH_PER_VCPU + fetched * FACES_S + fetched * NO_FACE * SOLVER_S
    return {
        "tried": tried,
        "bytes": fetched * IMAGE_BYTES,
        "flop": flop,
        "vcpu_h": cpu_s / 3600,
        "gpu_h": gpu_hours(flop),
    }


def embed_all() -> dict[str, float]:
    """Return the cost of fetching all images and embedding those that still exist."""
    fetched = ROWS * ALIVE
    flop = fetched * CLIP_FLOP
    return {
        "tried": ROWS,
        "bytes": fetched * IMAGE_BYTES + METADATA_BYTES,
        "flop": flop,
        "vcpu_h": ROWS / FETCH_PER_VCPU / 3600,
        "gpu_h": gpu_hours(flop),
    }


def total(*parts: dict[str, float]) -> dict[str, float]:
    """Return the sum of the costs, with its price in dollars."""
    keys = ("tried", "bytes", "flop", "vcpu_h", "gpu_h")
    whole = {key: sum(part.get(key, 0.0) for part in parts) for key in keys}
    whole["dollars"] = whole["vcpu_h"] * VCPU_PRICE + whole["gpu_h"] * GPU_PRICE
    return whole


def main() -> None:
    gflops = float(sys.argv[1]) if len(sys.argv) > 1 else SCAN_GFLOPS
    many, one = scan(CATEGORIES, gflops), scan(1, gflops)
    own, own_one = own_scan(CATEGORIES, gflops), own_scan(1, gflops)
    totals = {
        "scan published, 919": total(many, candidates(CATEGORIES)),
        "scan published, 1 more": total(one, candidates(1)),
        "embed everything, 919": total(embed_all(), own, candidates(CATEGORIES)),
        "embed everything, 1 more": total(own_one, candidates(1)),
    }
    parts = {
        "one scan, 919 queries": total(many),
        "one scan, 1 query": total(one),
        "candidates of 919": total(candidates(CATEGORIES)),
        "candidates of 1": total(candidates(1)),
        "fetch and embed all": total(embed_all()),
    }
    print("| what | urls tried | TB read | PFLOP | vCPU-h | GPU-h | $ |")
    print("|---|---|---|---|---|---|---|")
    for name, cost in (parts | totals).items():
        cells = [
            f"{cost['tried']:,.0f}",
            f"{cost['bytes'] / 1e12:.3g}",
            f"{cost['flop'] / 1e15:,.3g}",
            f"{cost['vcpu_h']:,.3g}",
            f"{cost['gpu_h']:,.3g}",
            f"{cost['dollars']:,.3g}",
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    print(json.dumps(totals))


if __name__ == "__main__":
    main()
