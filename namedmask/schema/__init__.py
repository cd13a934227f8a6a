"""The columns of every table, and the statuses of its rows."""

from typing import TYPE_CHECKING

from namedmask import lazy_names

if TYPE_CHECKING:
    from namedmask.schema.columns import (
        ARCHIVE as ARCHIVE,
    )
    from namedmask.schema.columns import (
        BACKGROUND as BACKGROUND,
    )
    from namedmask.schema.columns import (
        CANDIDATE_LIST as CANDIDATE_LIST,
    )
    from namedmask.schema.columns import (
        CANDIDATES as CANDIDATES,
    )
    from namedmask.schema.columns import (
        EMBEDDINGS as EMBEDDINGS,
    )
    from namedmask.schema.columns import (
        FETCHED as FETCHED,
    )
    from namedmask.schema.columns import (
        FORMAT_VERSION as FORMAT_VERSION,
    )
    from namedmask.schema.columns import (
        IGNORE as IGNORE,
    )
    from namedmask.schema.columns import (
        IMAGES as IMAGES,
    )
    from namedmask.schema.columns import (
        LABEL_DTYPE as LABEL_DTYPE,
    )
    from namedmask.schema.columns import (
        METADATA as METADATA,
    )
    from namedmask.schema.columns import (
        REFINED as REFINED,
    )
    from namedmask.schema.columns import (
        ROW_TOMBSTONES as ROW_TOMBSTONES,
    )
    from namedmask.schema.columns import (
        TYPES as TYPES,
    )
    from namedmask.schema.columns import (
        alive as alive,
    )
    from namedmask.schema.columns import (
        bury as bury,
    )
    from namedmask.schema.columns import (
        conform as conform,
    )
    from namedmask.schema.columns import (
        counts_by_status as counts_by_status,
    )
    from namedmask.schema.columns import (
        require_columns as require_columns,
    )
    from namedmask.schema.columns import (
        schema_of as schema_of,
    )
    from namedmask.schema.columns import (
        update as update,
    )
    from namedmask.schema.status import (
        DUPLICATE_URL as DUPLICATE_URL,
    )
    from namedmask.schema.status import (
        OK as OK,
    )

__all__ = [
    "ARCHIVE",
    "BACKGROUND",
    "CANDIDATES",
    "CANDIDATE_LIST",
    "DUPLICATE_URL",
    "EMBEDDINGS",
    "FETCHED",
    "FORMAT_VERSION",
    "IGNORE",
    "IMAGES",
    "LABEL_DTYPE",
    "METADATA",
    "OK",
    "REFINED",
    "ROW_TOMBSTONES",
    "TYPES",
    "alive",
    "bury",
    "conform",
    "counts_by_status",
    "require_columns",
    "schema_of",
    "update",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ARCHIVE": "columns",
        "BACKGROUND": "columns",
        "CANDIDATES": "columns",
        "DUPLICATE_URL": "status",
        "EMBEDDINGS": "columns",
        "FETCHED": "columns",
        "FORMAT_VERSION": "columns",
        "IGNORE": "columns",
        "IMAGES": "columns",
        "LABEL_DTYPE": "columns",
        "METADATA": "columns",
        "CANDIDATE_LIST": "columns",
        "OK": "status",
        "REFINED": "columns",
        "ROW_TOMBSTONES": "columns",
        "TYPES": "columns",
        "alive": "columns",
        "bury": "columns",
        "conform": "columns",
        "counts_by_status": "columns",
        "require_columns": "columns",
        "schema_of": "columns",
        "update": "columns",
    },
)
