"""Which label id a category has: given once in the life of a run folder, never moved.

A category that is taken off the list keeps its id, which nobody else gets; back on the list it has
it again. A category with a new name and the query of one that left is the same category.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from namedmask import schema
from namedmask.categories import CategorySet
from namedmask.errors import ConfigError
from namedmask.run import layout
from namedmask.storage import Place
from namedmask.storage.files import read_json, refuse_newer, write_json


@dataclass(frozen=True)
class Label:
    """A category of a run folder: what it is called, what CLIP is asked, its id."""

    label_id: int
    name: str
    query: str


def assign_labels(known: Sequence[Label], category_set: CategorySet) -> list[Label]:
    """Return the label of each category of the set, in its order.

    `known` are all labels ever given in the run folder.

    Raises:
        ConfigError: there is no label id left.
    """
    of_name = {label.name: label for label in known}
    left = {label.query: label for label in known if label.name not in category_set.names}
    following = max((label.label_id for label in known), default=schema.BACKGROUND) + 1
    labels = []
    for name, query in zip(category_set.names, category_set.queries, strict=True):
        before = of_name.get(name) or left.pop(query, None)
        labels.append(Label(before.label_id if before else following, name, query))
        following += before is None
    if following > schema.IGNORE:
        raise ConfigError(
            f"the run folder has given out {following - 1:,} label ids, removed categories "
            f"included; label id {schema.IGNORE} would collide with the ignore id. Give another "
            "run.out."
        )
    return labels


def read_labels(folder: Place) -> list[Label]:
    """Return all labels ever given in a run folder, by ascending id; none in a new one."""
    path = folder / layout.LABEL_IDS
    if not path.exists():
        return []
    record = read_json(path)
    refuse_newer(record, path)
    return [Label(**label) for label in record["labels"]]


def write_labels(folder: Place, known: Sequence[Label], labels: Sequence[Label]) -> None:
    """Write the labels given now over those `known`: a renamed category has its new name."""
    by_id = {label.label_id: label for label in (*known, *labels)}
    listed = [asdict(by_id[label_id]) for label_id in sorted(by_id)]
    write_json(
        folder / layout.LABEL_IDS, {"format_version": schema.FORMAT_VERSION, "labels": listed}
    )
