"""The archive store: per category, the selected images with their masks, best rank first.

`<folder>/<label_id:05d>-<slug>.parquet` holds the entries of one category (schema.ARCHIVE).
`<folder>/manifest.json` lists the files that belong to the archive. It is written last, so an
archive is either complete or absent. Refined masks (schema.REFINED) are in the sibling folder
`refined`, one file per category with the same file name.

An image in the archives of two categories has two entries, each with its own label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.archive.samples import CACHE_MB, ROWS_PER_GROUP, ArchiveSamples, Shard
from namedmask.categories import slug
from namedmask.errors import InputError
from namedmask.run.label_ids import Label
from namedmask.run.layout import MANIFEST, REFINED
from namedmask.storage import Place, place_of
from namedmask.storage.files import (
    NO_LIMIT,
    TableWriter,
    content_of,
    read_json,
    read_parquet,
    refuse_newer,
    require_types,
    write_file,
    write_json,
)
from namedmask.storage.place import fetched


@dataclass(frozen=True)
class ArchivedCategory:
    """An entry of the manifest: one category and its file. Entries are in label id order."""

    name: str
    label_id: int
    query: str
    file: str
    count: int
    wanted: int
    sha256: str
    digest: str  # of everything the file depends on; files with equal digests are equal


def stem(label_id: int, name: str) -> str:
    """Return the stem that all files of a category share."""
    return f"{label_id:05d}-{slug(name)}"


@dataclass(frozen=True)
class Accepted:
    """The archive of one category before it is written; `entries` is called only if needed."""

    label: Label
    digest: str  # of everything the entries depend on
    entries: Callable[[], Iterable[pa.Table]]  # schema.ARCHIVE, ascending rank, in parts


def write_archive(folder: Place, categories: Iterable[Accepted], wanted: int) -> Archive:
    """Write one file per category, then the manifest, and return the archive.

    A file is not written again if it exists with an equal digest. Files of removed categories are
    deleted. The manifest is deleted before any file changes, so an interrupted write leaves no
    archive, and the next call writes all files again.

    Args:
        folder: the folder of the archive.
        categories: the archives of all categories.
        wanted: the value of `retrieve.archive_size`, for the manifest.

    Raises:
        SchemaError: the entries of a category do not fit schema.ARCHIVE.
    """
    before = _manifest_rows(folder) if (folder / MANIFEST).exists() else []
    by_digest = {(row.file, row.digest): row for row in before}
    rows = []
    for category in sorted(categories, key=lambda category: category.label.label_id):
        label = category.label
        file = f"{stem(label.label_id, label.name)}.parquet"
        row = by_digest.get((file, category.digest))
        if row is None or not (folder / file).exists():
            (folder / MANIFEST).unlink(missing_ok=True)
            counts: list[int] = []
            record = write_file(folder / file, partial(_write_shard, category, counts))
            row = ArchivedCategory(
                label.name, label.label_id, label.query, file, sum(counts), wanted,
                record["sha256"], category.digest,
            )  # fmt: skip
        rows.append(row)
    for path in folder.glob("*.parquet"):
        if path.name not in {row.file for row in rows}:
            (folder / MANIFEST).unlink(missing_ok=True)
            path.unlink()
    write_json(
        folder / MANIFEST,
        {"format_version": schema.FORMAT_VERSION, "categories": [asdict(row) for row in rows]},
    )
    return Archive(folder, rows)


def _manifest_rows(folder: Place) -> list[ArchivedCategory]:
    manifest = folder / MANIFEST
    record = read_json(manifest)
    refuse_newer(record, manifest)
    with content_of(manifest):
        return [_category_of(row) for row in record["categories"]]


def _category_of(row: dict[str, Any]) -> ArchivedCategory:
    require_types(row, {f.name: int if f.type == "int" else str for f in fields(ArchivedCategory)})
    return ArchivedCategory(**row)


class Archive:
    """An archive on disk. Create it with `Archive.open`."""

    def __init__(self, folder: Place, categories: Sequence[ArchivedCategory]) -> None:
        self.folder = folder
        self.categories = tuple(categories)

    @classmethod
    def open(cls, folder: Place | str, *, verify: bool = False) -> Archive:
        """Return the archive in a folder. With `verify`, check the sha256 of every file first.

        Raises:
            InputError: the manifest is missing or has another format, or a file is missing or, with
                `verify`, changed.
        """
        folder = place_of(folder)
        manifest = folder / MANIFEST
        if not manifest.exists():
            raise InputError(
                f"{folder} holds no archive: {MANIFEST} is missing. Run 'build' first, or give the "
                "folder 'archive' of a finished run."
            )
        categories = _manifest_rows(folder)
        for category in categories:
            _check_shard(folder / category.file, category, manifest, verify)
        return cls(folder, categories)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the category names in label id order."""
        return tuple(category.name for category in self.categories)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Return the names of all label ids but background: label id i + 1 is `label_names[i]`.

        The label id of a removed category keeps its place, with the name "(removed <label id>)".
        """
        names = self.names_by_label
        return tuple(
            names.get(label_id, f"(removed {label_id})") for label_id in range(1, self.num_labels)
        )

    @property
    def names_by_label(self) -> dict[int, str]:
        """Return the category names by label id, without background."""
        return {category.label_id: category.name for category in self.categories}

    @property
    def num_labels(self) -> int:
        """Return the number of logits that a segmenter needs, which is the highest label id + 1."""
        return max(category.label_id for category in self.categories) + 1

    def category(self, name: str) -> ArchivedCategory:
        """Return the manifest entry of a category.

        Raises:
            InputError: the archive has no such category.
        """
        for category in self.categories:
            if category.name == name:
                return category
        raise InputError(
            f"archive {self.folder} has no category '{name}'; it has {', '.join(self.names)}."
        )

    def entries(self, name: str) -> pa.Table:
        """Return the entries of a category (schema.ARCHIVE, ascending rank).

        If an expert has refined the masks, the table has an additional column `refined_mask`, in
        RLE like `mask`.

        Raises:
            InputError: the archive has no such category, or its refined masks are of other images.
        """
        category = self.category(name)
        table = read_parquet(self.folder / category.file)
        table = schema.conform(table, schema.ARCHIVE, str(self.folder / category.file))
        if self.refined_path(name).exists():
            table = table.append_column("refined_mask", pa.array(self._refined_masks(table, name)))
        return table

    def refined_path(self, name: str) -> Place:
        """Return the path of the refined masks of a category; the file may not exist yet."""
        return self.folder.parent / REFINED / self.category(name).file

    def samples(self, *, refined: bool, cache_mb: int = CACHE_MB) -> ArchiveSamples:
        """Return all entries of the archive as training samples, labeled with their label ids.

        `refined` selects the refined masks instead of the pseudo-masks.

        Raises:
            InputError: `refined` is true, and a category has no refined masks of this archive.
        """
        shards = [self._shard(category, category.label_id, refined) for category in self.categories]
        return ArchiveSamples(shards, cache_mb)

    def thing_samples(self, *names: str, cache_mb: int = CACHE_MB) -> ArchiveSamples:
        """Return the entries of these categories as samples for an expert.

        The label id is 1 on the pseudo-mask and 0 elsewhere.

        Raises:
            InputError: the archive has no such category.
        """
        shards = [self._shard(self.category(name), 1, refined=False) for name in names]
        return ArchiveSamples(shards, cache_mb)

    def _shard(self, category: ArchivedCategory, label: int, refined: bool) -> Shard:
        path = self.folder / category.file
        table = read_parquet(path, ["sample_id", "image_height", "image_width", "mask"])
        masks = self._refined_masks(table, category.name) if refined else table["mask"].to_pylist()
        sizes = np.stack([table["image_height"].to_numpy(), table["image_width"].to_numpy()], 1)
        return Shard(path, label, masks, sizes, category.sha256)

    def _refined_masks(self, entries: pa.Table, name: str) -> list[bytes]:
        path = self.refined_path(name)
        if not path.exists():
            raise InputError(
                f"category '{name}' has no refined masks: {path} is missing. Run 'refine' first, "
                "or set experts.enabled = false."
            )
        refined = schema.conform(read_parquet(path), schema.REFINED, str(path))
        if refined["sample_id"].to_pylist() != entries["sample_id"].to_pylist():
            raise InputError(
                f"{path} holds masks of other images than {self.folder} does. Run 'refine' again."
            )
        masks: list[bytes] = refined["mask"].to_pylist()
        return masks


def _write_shard(category: Accepted, counts: list[int], path: Path) -> None:
    """Write the entries of a category to `path`; append the number of rows of each part."""
    origin = f"the archive of '{category.label.name}'"
    with TableWriter(path, schema.ARCHIVE, ROWS_PER_GROUP, NO_LIMIT) as writer:
        for part in category.entries():
            writer.write(schema.conform(part, schema.ARCHIVE, origin))
            counts.append(part.num_rows)


def _check_shard(path: Place, category: ArchivedCategory, manifest: Place, verify: bool) -> None:
    if not path.exists():
        raise InputError(
            f"{path}, the archive of '{category.name}', is missing though {manifest} names it. "
            "Copy it back, or run 'build' into another run.out."
        )
    if verify:
        with fetched(path) as local, local.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != category.sha256:
            raise InputError(
                f"{path}, the archive of '{category.name}', has sha256 {found}; {manifest} says "
                f"{category.sha256}. Copy the right file back, or run 'build' into another run.out."
            )
