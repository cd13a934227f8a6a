"""Paths with wildcards on a disk or on S3, with the same rules for both."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase

from namedmask.errors import InputError
from namedmask.storage.place import is_s3
from namedmask.storage.s3 import S3Path
from namedmask.storage.walk import Walk, is_hidden


def expand(source: str) -> list[str]:
    """Return the files that a path with wildcards matches, sorted; `**` matches any depth.

    Hidden names (see `walk.is_hidden`) match no wildcard. A link to a file that does not exist is
    returned, so that it is not left out unseen.

    Raises:
        InputError: a folder on the way cannot be read.
        ValueError: `source` is an s3:// url without a valid bucket.
    """
    if not is_s3(source):
        try:
            return sorted(_files_on_disk("", source.split("/")))
        except OSError as error:
            raise InputError(
                f"'{source}': folder '{error.filename}' cannot be read: {error.strerror}. Change "
                "its permissions, or choose a narrower pattern."
            ) from error
    pattern = S3Path.of(source)
    parts = pattern.key.split("/")
    plain = next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    folder = S3Path(pattern.bucket, "/".join(parts[:plain]))
    return sorted(
        str(path)
        for path, _ in folder.files(deep=len(parts) > plain + 1 or "**" in parts)
        if _matches(path.key.split("/")[plain:], parts[plain:])
    )


def _files_on_disk(folder: str, patterns: list[str]) -> Iterator[str]:
    """Yield the files below `folder` (with its last slash) that match one pattern per part."""
    pattern, *others = patterns
    if not glob.has_magic(pattern):
        names = [pattern]
    elif not os.path.isdir(folder or "."):
        names = []
    elif "**" in patterns:
        names, others = [], []
        for found in Walk(folder or "."):
            if found.error:
                raise found.error
            name = found.path.removeprefix(folder or "./")
            if _matches(name.split("/"), patterns):
                names.append(name)
    else:
        names = [name for name in os.listdir(folder or ".") if _matches([name], [pattern])]
    for name in names:
        if others:
            yield from _files_on_disk(f"{folder}{name}/", others)
        elif _is_file(folder + name):
            yield folder + name


def _is_file(path: str) -> bool:
    return os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path))


def _matches(parts: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not parts
    part, pattern = (parts or [""])[0], patterns[0]
    if is_hidden(part) and glob.has_magic(pattern) and not pattern.startswith("."):
        return False
    if pattern == "**":
        return _matches(parts, patterns[1:]) or (bool(parts) and _matches(parts[1:], patterns))
    return bool(parts) and fnmatchcase(part, pattern) and _matches(parts[1:], patterns[1:])
