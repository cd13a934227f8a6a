"""Label ids of categories. An id is assigned once per run folder and never changes.

The id of a category that is removed from the list is not assigned to another category. If the
category returns to the list, it gets its old id. A category with a new name and the query of a
removed category counts as renamed, and keeps the id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from namedmask import schema
from namedmask.categories import CategorySet
from namedmask.errors import ConfigError
from namedmask.run import layout
from namedmask.storage import Place
from namedmask.storage.files import content_of, read_json, refuse_newer, write_json


@dataclass(frozen=True)
class Label:
    """A category of a run folder, with its label id, its name, and its text query for CLIP."""

    label_id: int
    name: str
    query: str


def assign_labels(known: Sequence[Label], category_set: CategorySet) -> list[Label]:
    """Return one label per category of the set, in the order of the set.

    `known` are all labels that were ever assigned in the run folder.

    Raises:
        ConfigError: all label ids below `schema.IGNORE` are assigned.
    """
    by_name = {label.name: label for label in known}
    removed = {label.query: label for label in known if label.name not in category_set.names}
    next_id = max((label.label_id for label in known), default=schema.BACKGROUND) + 1
    labels = []
    for name, query in zip(category_set.names, category_set.queries, strict=True):
        earlier = by_name.get(name) or removed.pop(query, None)
        labels.append(Label(earlier.label_id if earlier else next_id, name, query))
        next_id += earlier is None
    if next_id > schema.IGNORE:
        raise ConfigError(
            f"the run folder has assigned {next_id - 1:,} label ids, including those of removed "
            f"categories; label id {schema.IGNORE} would collide with the ignore id. Give another "
            "run.out."
        )
    return labels


def read_labels(folder: Place) -> list[Label]:
    """Return all labels that were ever assigned in a run folder, by ascending id.

    Raises:
        InputError: the file is unreadable or has another format version.
    """
    path = folder / layout.LABEL_IDS
    if not path.exists():
        return []
    record = read_json(path)
    refuse_newer(record, path)
    with content_of(path):
        labels = [Label(**label) for label in record["labels"]]
        for label in labels:
            if not (isinstance(label.label_id, int) and isinstance(label.name, str)):
                raise TypeError(f"a label is {label}")
    return labels


def write_labels(folder: Place, known: Sequence[Label], labels: Sequence[Label]) -> None:
    """Write all labels of a run folder; `labels` replace the `known` labels with the same ids."""
    by_id = {label.label_id: label for label in (*known, *labels)}
    listed = [asdict(by_id[label_id]) for label_id in sorted(by_id)]
    write_json(
        folder / layout.LABEL_IDS, {"format_version": schema.FORMAT_VERSION, "labels": listed}
    )
