"""Small tables of urls, written and read back as metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from namedmask import schema
from namedmask.config import MetadataConfig
from namedmask.metadata.clean import read_metadata


def read(*sources: str | Path, **options: Any) -> pa.Table:
    """Return all rows of the sources as metadata."""
    tables = list(read_metadata(MetadataConfig(source=tuple(map(str, sources)), **options)))
    return pa.concat_tables(tables) if tables else schema.METADATA.empty_table()


def write(path: Path, columns: Mapping[str, Any]) -> Path:
    """Write a parquet file; return its path."""
    pq.write_table(pa.table(dict(columns)), path)
    return path


def urls(count: int, start: int = 0) -> list[str]:
    """Return so many urls, all different."""
    return [f"https://example.com/{i}.jpg" for i in range(start, start + count)]
