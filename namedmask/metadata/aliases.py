"""The names that sources use for the columns that are read."""

from __future__ import annotations

from collections.abc import Sequence

from namedmask.errors import SchemaError

ALIASES: dict[str, tuple[str, ...]] = {
    "url": ("url", "image_url", "img_url"),
    "caption": ("caption", "text", "alt_text", "alt"),
    "width": ("original_width", "width"),  # in img2dataset, `width` is that of the resized file
    "height": ("original_height", "height"),
    "similarity": ("similarity", "clip_similarity_vitl14", "clip_similarity_vitb32"),
    "punsafe": ("punsafe", "nsfw_score_opennsfw2"),
    "nsfw": ("nsfw",),
    "pwatermark": ("pwatermark", "watermark_score"),
    "md5": ("md5",),
    "sha256": ("sha256",),
}
"""Names that a source may use for each column, in lower case, the preferred name first.

Only `url` is required. The `status` column of img2dataset is ignored, because an image that it
could not download may be available now.
"""

FAULT = "fault"
"""Column of a table of raw rows: the status of a row that its source could not give, or null."""


def positions(columns: Sequence[str]) -> dict[str, int]:
    """Return the position of the column to read for each of our names that `columns` has.

    Of several columns of one name, also of a name in upper and in lower case, the first is read.
    """
    first = {_plain(column): number for number, column in reversed(list(enumerate(columns)))}
    return {
        name: first[alias]
        for name, aliases in ALIASES.items()
        for alias in reversed(aliases)
        if alias in first
    }


def require_url(columns: Sequence[str], place: str, way_out: str = "") -> dict[str, int]:
    """Return the positions of the columns to read.

    Raises:
        SchemaError: there is no column of urls.
    """
    found = positions(columns)
    if "url" not in found:
        raise SchemaError(
            f"table '{place}' has no column of urls (url, in any case, or "
            f"{', '.join(ALIASES['url'][1:])}); columns are {_shown(columns) or 'none'}.{way_out}"
        )
    return found


def _plain(column: str) -> str:
    # some programs keep the mark of UTF-8 at the start of a file as a part of the first name
    return column.strip().removeprefix("\ufeff").strip().lower()


def _shown(columns: Sequence[str], most: int = 20, longest: int = 40) -> str:
    names = [name if len(name) <= longest else f"{name[:longest]}…" for name in columns[:most]]
    rest = len(columns) - most
    return ", ".join(names) + (f" and {rest:,} more" if rest > 0 else "")
