"""What LAION-2B costs, by two roads: the table of docs/scale.md from the figures below.

    python bench/scale.py [GFLOP/s of a scan of 919 queries on 2 virtual cores]

Nothing is measured here. Replace a figure by your own and read the table again; the last line is
JSON. What each figure is and where it comes from: docs/scale.md.
"""

from __future__ import annotations

import json
import sys

ROWS = 2.32e9  # laion2B-en
DIM = 768
CATEGORIES, KEPT = 919, 500
ALIVE = 0.5  # links that still give an image
NO_FACE = 0.926  # of the images that came, the paper's own share
NO_OTHER = 0.9  # neither near duplicate nor without a mask; assumed
IMAGE_BYTES = 96e3
METADATA_BYTES = 128 * 2.25e9

SCAN_GFLOPS = 184.0  # 919 queries, from files to answer, 2 virtual cores: bench/retrieve.py
ONE_GFLOPS = 1.1  # of the product with one query, the same: bound by memory
CONVERT_GBS = 0.63  # GB of float16 turned into float32 a second, one thread
FETCH_PER_VCPU = 200.0  # images a second
FACES_S, SOLVER_S = 0.2, 0.0179  # seconds of one core an image

GPU_TFLOPS = 121.0  # the L4's peak, float16, dense
USED = 0.3  # of it; assumed
GPU_PRICE, VCPU_PRICE = 1.30, 0.05  # dollars an hour; assumed

CLIP_FLOP = 2 * 257 * 24 * (12 * 1024**2 + 2 * 257 * 1024)  # ViT-L/14 at 224 pixels
TOKENS = (512 // 8) * (683 // 8)  # SelfMask at 512 × 683
SELFMASK_FLOP = 2 * TOKENS * 12 * (12 * 384**2 + 2 * TOKENS * 384)


def gpu_hours(flop: float) -> float:
    return flop / (GPU_TFLOPS * 1e12 * USED) / 3600


def scan(queries: int, gflops: float) -> dict[str, float]:
    """Return the cost of one exact scan of the published vectors, on CPUs alone."""
    cost = product(ROWS, queries, gflops)
    size = ROWS * DIM * 2
    converting = size / (CONVERT_GBS * 1e9) / 3600 if queries == 1 else 0.0  # else in the rate
    return cost | {"bytes": size, "vcpu_h": cost["vcpu_h"] + converting}


def own_scan(queries: int, gflops: float) -> dict[str, float]:
    """Return the same for the run's own vectors: float32, of the images that came."""
    rows = ROWS * ALIVE
    return product(rows, queries, gflops) | {"bytes": rows * DIM * 4}


def product(rows: float, queries: int, gflops: float) -> dict[str, float]:
    flop = 2 * queries * DIM * rows
    rate = gflops if queries > 1 else ONE_GFLOPS
    return {"flop": flop, "vcpu_h": flop / (rate * 1e9) / 3600 * 2}


def candidates(categories: int) -> dict[str, float]:
    """Return the cost of fetching and judging what fills these archives."""
    tried = categories * KEPT / (ALIVE * NO_FACE * NO_OTHER)
    came = tried * ALIVE
    flop = came * NO_FACE * SELFMASK_FLOP
    cpu_s = tried / FETCH_PER_VCPU + came * FACES_S + came * NO_FACE * SOLVER_S
    return {
        "tried": tried,
        "bytes": came * IMAGE_BYTES,
        "flop": flop,
        "vcpu_h": cpu_s / 3600,
        "gpu_h": gpu_hours(flop),
    }


def embed_all() -> dict[str, float]:
    """Return the cost of fetching every image and embedding those that come."""
    came = ROWS * ALIVE
    flop = came * CLIP_FLOP
    return {
        "tried": ROWS,
        "bytes": came * IMAGE_BYTES + METADATA_BYTES,
        "flop": flop,
        "vcpu_h": ROWS / FETCH_PER_VCPU / 3600,
        "gpu_h": gpu_hours(flop),
    }


def total(*parts: dict[str, float]) -> dict[str, float]:
    keys = ("tried", "bytes", "flop", "vcpu_h", "gpu_h")
    whole = {key: sum(part.get(key, 0.0) for part in parts) for key in keys}
    whole["dollars"] = whole["vcpu_h"] * VCPU_PRICE + whole["gpu_h"] * GPU_PRICE
    return whole


def main() -> None:
    gflops = float(sys.argv[1]) if len(sys.argv) > 1 else SCAN_GFLOPS
    many, one = scan(CATEGORIES, gflops), scan(1, gflops)
    own, own_one = own_scan(CATEGORIES, gflops), own_scan(1, gflops)
    roads = {
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
    for name, cost in (parts | roads).items():
        cells = [
            f"{cost['tried']:,.0f}",
            f"{cost['bytes'] / 1e12:.3g}",
            f"{cost['flop'] / 1e15:,.3g}",
            f"{cost['vcpu_h']:,.3g}",
            f"{cost['gpu_h']:,.3g}",
            f"{cost['dollars']:,.3g}",
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    print(json.dumps(roads))


if __name__ == "__main__":
    main()
