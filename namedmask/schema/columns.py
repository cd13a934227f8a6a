"""Column names and Arrow schemas of every table, and helpers for tables with a status column.

Samples pass through two funnels. The *row* funnel (metadata → fetch → embed) has one status per
sample. The *candidate* funnel (retrieve → faces → saliency → bilateral → archive) has one status
per (category, sample). A row that fails or is filtered out stays in its table as a tombstone: its
`status` says why, and its large columns are null. The counts by status therefore always add up to
the number of input rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from namedmask.errors import SchemaError
from namedmask.schema.status import OK

FORMAT_VERSION = 2
"""Version of the store layout, which is written to every manifest."""

BACKGROUND = 0
"""Label id of the pixels that belong to no category."""

IGNORE = 65535
"""Label id of ignored pixels inside the package.

Readers map 255 or 1000 to this id, and exports map it back."""

LABEL_DTYPE = np.uint16
"""NumPy type of the label ids on disk."""

TYPES: dict[str, pa.DataType] = {
    # the row funnel
    "sample_id": pa.string(),  # 20 hex digits, the hash of the normalized url
    "url": pa.string(),
    "caption": pa.string(),
    "width": pa.int32(),  # from the metadata; 0 where unknown
    "height": pa.int32(),
    "similarity": pa.float32(),  # from the metadata; null where absent or outside [-1, 1]
    "punsafe": pa.float32(),
    "md5": pa.string(),  # lower-case hex, of the image file that the metadata describes
    "sha256": pa.string(),
    "status": pa.string(),
    "image": pa.large_binary(),  # encoded bytes (JPEG, PNG, WebP); a wave may have more than 2 GiB
    "image_height": pa.int32(),  # of the decoded image, after EXIF orientation
    "image_width": pa.int32(),
    "embedding": pa.list_(pa.float32()),  # unit L2 norm; null on tombstones
    "expected": pa.list_(pa.float16()),  # published vector, unit L2 norm; null where absent
    "expected_cosine": pa.float32(),  # smallest allowed cosine of `embedding` and `expected`
    # the candidate funnel
    "category": pa.string(),  # label name
    "label_id": pa.uint16(),
    "rank": pa.int32(),  # 0 is the most similar
    "score": pa.float32(),  # cosine with the category's text feature
    "duplicate_of": pa.string(),  # sample_id of the better-ranked accepted candidate, or null
    "neighbors": pa.list_(pa.int32()),  # better ranks whose images are near duplicates of this one
    "num_faces": pa.int32(),
    "saliency": pa.large_binary(),  # PNG, 8 bit, (H, W): saliency map × 255
    "mask": pa.large_binary(),  # COCO compressed RLE `counts` of the (H, W) bool mask
    "hash": pa.uint64(),  # perceptual, of the decoded image; see images.hash_of
}


def schema_of(*names: str) -> pa.Schema:
    """Return the schema of the columns `names`, in this order."""
    return pa.schema([(name, TYPES[name]) for name in names])


METADATA = schema_of(
    "sample_id", "url", "caption", "width", "height", "similarity", "punsafe", "md5", "sha256",
    "status",
)  # fmt: skip
FETCHED = schema_of("sample_id", "url", "caption", "image", "image_height", "image_width", "status")
EMBEDDINGS = schema_of(
    "sample_id", "url", "caption", "image_height", "image_width", "embedding", "status"
)
ROW_TOMBSTONES = schema_of("sample_id", "url", "status")
CANDIDATE_LIST = schema_of("rank", "score", "sample_id", "url", "status", "neighbors", "expected")
CANDIDATES = schema_of(
    "category", "label_id", "rank", "score", "sample_id", "url", "status", "duplicate_of"
)
IMAGES = schema_of(  # one row per image between fetch and archive
    "sample_id", "url", "status", "image", "image_height", "image_width", "num_faces",
    "saliency", "mask", "hash",
)  # fmt: skip
ARCHIVE = schema_of(
    "category", "label_id", "rank", "score", "sample_id", "url", "image", "image_height",
    "image_width", "mask",
)  # fmt: skip
REFINED = schema_of(
    "category", "label_id", "rank", "sample_id", "image_height", "image_width", "mask"
)


def conform(table: pa.Table, schema: pa.Schema, place: str) -> pa.Table:
    """Return `table` with exactly the columns and types of `schema`.

    `place` names the origin of the table in error messages.

    Raises:
        SchemaError: a column is missing, or its values do not fit the type.
    """
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise SchemaError(
            f"column '{missing[0]}' missing at {place}; columns are "
            f"{', '.join(table.column_names)}. Expected {', '.join(schema.names)}."
        )
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(f"a column at {place} does not fit its type: {error}") from error


def require_columns(table: pa.Table, names: Sequence[str], stage: str) -> None:
    """Raise SchemaError unless `table` has `status` and the columns that `stage` reads."""
    for name in (*names, "status"):
        if name not in table.column_names:
            raise SchemaError(
                f"column '{name}' missing before stage '{stage}'; columns are "
                f"{', '.join(table.column_names)}. Run the stage that adds '{name}' first."
            )


def alive(table: pa.Table) -> np.ndarray:
    """Return the indices, (N,) int64 ascending, of the rows whose status is ok."""
    return np.flatnonzero(pc.equal(table["status"], OK).to_numpy(zero_copy_only=False))


def update(table: pa.Table, rows: np.ndarray, values: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Return a copy of `table` with `values[name][i]` in column `name` and row `rows[i]`.

    `rows` are (N,) int64, and each sequence in `values` has N entries. In all other rows, a new
    column is null, and an existing column, `status` included, keeps its values.
    """
    for name, new in values.items():
        if name in table.column_names:
            column = table[name].to_pylist()
        else:
            column = [None] * table.num_rows
        for row, value in zip(rows.tolist(), new, strict=True):
            column[row] = value
        array = pa.array(column, TYPES[name])
        index = table.schema.get_field_index(name)
        if index < 0:
            table = table.append_column(name, array)
        else:
            table = table.set_column(index, name, array)
    return table


def bury(table: pa.Table, heavy: Sequence[str]) -> pa.Table:
    """Return `table` with the `heavy` columns set to null in each row whose status is not ok."""
    dead = pc.not_equal(table["status"], OK)
    for name in heavy:
        if name in table.column_names:
            index = table.schema.get_field_index(name)
            nulls = pa.scalar(None, table[name].type)
            table = table.set_column(index, name, pc.if_else(dead, nulls, table[name]))
    return table


def counts_by_status(statuses: Iterable[str]) -> dict[str, int]:
    """Return the number of rows per status, `ok` first, the others by descending count."""
    counts = Counter(statuses)
    order = sorted(counts, key=lambda status: (status != OK, -counts[status], status))
    return {status: counts[status] for status in order}
