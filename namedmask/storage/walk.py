"""The one rule about which files below a folder count, for photos, tables and benchmarks.

Names that begin with a dot and the names in `SYSTEM_NAMES` are hidden: systems and programs put
such files and folders beside a person's own. Links are followed, and no folder is entered twice.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

SYSTEM_NAMES = frozenset(
    (
        "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "recycler", "found.000",
        "system volume information", "lost+found", "__macosx", "temporary items",
        "network trash folder", "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle",
        "#snapshot",
    )
)  # fmt: skip
"""Lower-case names of files and folders that Windows, macOS, Linux and network disks create."""


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is left out wherever a folder is read."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


@dataclass(frozen=True)
class Found:
    """A file below a folder, or a folder that cannot be read."""

    path: str  # as it was reached
    real_path: str  # without links
    is_folder: bool
    error: OSError | None = None  # why the folder cannot be read


class Walk:
    """An iterable over all files below a folder, in the order of their paths' parts.

    `hidden` is the number of hidden files and folders that the iteration has left out.
    """

    def __init__(self, root: str | Path) -> None:
        self._root = str(root)
        self.hidden = 0

    def __iter__(self) -> Iterator[Found]:
        entered: set[tuple[int, int]] = set()
        root = Found(self._root, os.path.realpath(self._root), is_folder=True)
        stack = [iter((root,))]
        while stack:
            found = next(stack[-1], None)
            if found is None:
                stack.pop()
            elif not found.is_folder:
                yield found
            else:
                try:
                    status = os.stat(found.path)
                    if (status.st_dev, status.st_ino) not in entered:
                        entered.add((status.st_dev, status.st_ino))
                        stack.append(iter(self._entries(found)))
                except OSError as error:
                    yield replace(found, error=error)

    def _entries(self, folder: Found) -> list[Found]:
        with os.scandir(folder.path) as listed:
            entries = list(listed)
        shown = [entry for entry in entries if not is_hidden(entry.name)]
        self.hidden += len(entries) - len(shown)
        return [
            Found(entry.path, _real_path(entry, folder), _is_folder(entry))
            for entry in sorted(shown, key=attrgetter("name"))
        ]


def _real_path(entry: os.DirEntry[str], folder: Found) -> str:
    # asking the disk for each part of each path takes longer than all the rest
    if entry.is_symlink():
        return os.path.realpath(entry.path)
    return os.path.join(folder.real_path, entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or a fault of the disk
        return False


def existing_form(path: Path, below: Path) -> Path:
    """Return `path`, or the file of the same name in the other Unicode normal form, if it exists.

    macOS writes an ü as two code points, and most other systems write it as one. Only the part of
    the path that is below the folder `below` is written in another form.
    """
    if not os.path.lexists(path):
        for form in ("NFC", "NFD"):
            other = below / unicodedata.normalize(form, str(path.relative_to(below)))
            if os.path.lexists(other):
                return other
    return path
