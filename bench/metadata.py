"""Measure the time and peak memory of reading LAION-like metadata of one and four million rows.

    python bench/metadata.py [few] [many]

Each table is read three times in a process of its own: only read, also cleaned, and also
deduplicated. A tenth of the rows repeat a url. Peak memory must not depend on the number of rows:
`memory_ratio` is the peak for the long table over that for the short table. The last line is JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS_PER_GROUP = 100_000
WORDS = ("a", "photo", "of", "the", "brown", "fox", "that", "jumps", "over", "one", "lazy", "dog")


def write_table(path: Path, rows: int) -> None:
    """Write a table with the columns and types of LAION-2B-en-joined."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    writer = None
    for first in range(0, rows, ROWS_PER_GROUP):
        count = min(ROWS_PER_GROUP, rows - first)
        numbers = np.where(rng.random(count) < 0.1, rng.integers(0, rows, count),
                           np.arange(first, first + count))  # fmt: skip
        table = pa.table(
            {
                "URL": [f"https://cdn{n % 977}.shop.com/media/{n:09d}_large.jpg" for n in numbers],
                "TEXT": [" ".join(row) for row in rng.choice(WORDS, (count, 9))],
                "WIDTH": rng.integers(50, 1200, count).astype(np.int32),
                "HEIGHT": rng.integers(50, 1200, count).astype(np.int32),
                "similarity": rng.uniform(0.28, 0.45, count),
                "hash": rng.integers(-(2**62), 2**62, count),
                "punsafe": rng.beta(0.5, 6, count).astype(np.float32),
                "pwatermark": rng.beta(0.5, 2, count).astype(np.float32),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema, compression="snappy")
        writer.write_table(table)
    if writer:
        writer.close()


def measure(path: str) -> dict[str, float]:
    """Return the seconds of each reading of a table, and the peak memory of the process in MB."""
    from namedmask.config import MetadataConfig
    from namedmask.metadata.clean import clean_place, read_metadata
    from namedmask.metadata.sources import read_place
    from namedmask.run.machine import peak_rss_mb

    config = MetadataConfig(source=(path,), min_side=64, max_punsafe=0.5)
    readings = {
        "read": read_place(path),
        "read and clean": clean_place(path, config),
        "all": read_metadata(config),
    }
    result: dict[str, float] = {}
    for name, tables in readings.items():
        start = time.perf_counter()
        result["rows"] = sum(table.num_rows for table in tables)
        result[name] = round(time.perf_counter() - start, 2)
        result[f"{name}, MB"] = peak_rss_mb()
    return result | {"peak_mb": peak_rss_mb()}


def main() -> None:
    """Write the tables, measure each in a child process, and print the results."""
    counts = [int(text) for text in sys.argv[1:]] or [1_000_000, 4_000_000]
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            path = Path(folder) / f"{count}.parquet"
            write_table(path, count)
            child = [sys.executable, __file__, "--measure", str(path)]
            output = subprocess.run(child, check=True, capture_output=True, text=True).stdout
            results[f"{count:,} rows"] = json.loads(output)
            print(f"{count:,} rows: {output.strip()}", flush=True)
    peaks = [result["peak_mb"] for result in results.values()]
    print(json.dumps(results | {"memory_ratio": round(peaks[-1] / peaks[0], 3)}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2])))
    else:
        main()
