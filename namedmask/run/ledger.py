"""The records of a run folder: its single writer, its committed units, and its finished verbs.

A *unit* is the smallest piece of work that is either done or not done, such as a wave of rows or
the expert of a category. Its files are written under temporary names in their final folder,
flushed, and renamed. Then its commit record `<store>/commit-<unit>.json` is written in the same
way. A file that no record names is not part of the store, and `Ledger.sweep` removes it. A run that
is killed therefore loses only its uncommitted units.

`run.json` records, per verb, the result and the settings that shaped the output. A finished verb
with the same settings has nothing to do. With other settings it is refused, and the error lists
each changed key. Recorded settings that a verb must keep are called *binding*; see `Ledger.start`.

No record contains a time, the path of the run folder, or a run id, so equal input and settings give
equal bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from namedmask import schema
from namedmask.errors import ConfigError, InputError
from namedmask.run import layout
from namedmask.run.failures import refuse_crashed
from namedmask.run.verb_table import Work
from namedmask.storage import Place
from namedmask.storage import place as storage
from namedmask.storage.files import (
    Content,
    _json,
    _parsed,
    content_of,
    read_json,
    refuse_newer,
    require_types,
    write_file,
    write_json,
)
from namedmask.storage.locks import locked

_COMMIT = {"unit": str, "files": dict, "rows": int, "counts": dict, "input_digest": str}
_ENTRY = {
    "settings": dict, "finished": bool, "units": dict, "store": str, "content": str, "loose": bool,
}  # fmt: skip
"""Types of the values in a commit record, and in the record of a verb in `run.json`."""


@dataclass(frozen=True)
class Commit:
    """The record of one finished unit."""

    unit: str
    files: dict[str, dict[str, Any]]  # path in the run folder → {sha256, size}
    rows: int
    counts: dict[str, int]  # rows by status
    input_digest: str  # digest of the unit's input; "" where the unit's name identifies the input


class Ledger:
    """Reads and writes the records of one run folder; `open_run` yields it."""

    def __init__(self, folder: Place) -> None:
        self.folder = folder
        self._run = _read_run(folder)
        self._verbs: dict[str, Any] = self._run["verbs"]

    def finished(
        self, work: Work, settings: Mapping[str, Any], categories_digest: str = ""
    ) -> dict[str, Any] | None:
        """Return the recorded result of a verb; None if the verb is not finished.

        Args:
            work: the verb's row in the table of verbs.
            settings: the verb's current settings; see config.run_file.settings_of.
            categories_digest: current digest of the categories and the image checks. A verb that
                finished with another digest counts as not finished.

        Raises:
            ConfigError: the run folder has output of the verb that was made with other settings.
        """
        entry = self._verbs.get(work.name)
        if entry is None or self._binds_nothing(work, entry):
            return None
        is_current = entry["content"] == categories_digest
        if is_current or work.reuse_when_categories_change:
            self._refuse_changed(work.name, entry["settings"], settings)
        units = {name: len(_records(self.folder / name)) for name in entry["units"]}
        is_finished = is_current and entry["finished"] and entry["units"] == units
        return dict(entry["result"]) if is_finished else None

    def is_begun(self, work: Work, categories_digest: str = "") -> bool:
        """Return whether binding settings of a verb are recorded with this categories digest."""
        entry = self._verbs.get(work.name)
        if entry is None or self._binds_nothing(work, entry):
            return False
        return bool(entry["content"] == categories_digest)

    def start(self, work: Work, settings: Mapping[str, Any], categories_digest: str = "") -> None:
        """Record the settings of a verb, before the verb's first write.

        Work that has committed nothing binds nothing: with `work.store_name` the settings become
        binding when that store has its first committed unit, with `work.unfinished` when one of
        these stores and files has content, and with `work.settings_hold_only_when_finished` when
        the verb is finished. Settings of other work are binding at once.
        """
        if not self.is_begun(work, categories_digest):
            self._verbs[work.name] = {
                "settings": dict(settings), "finished": False, "units": {},
                "store": work.store_name, "content": categories_digest,
                "loose": work.settings_hold_only_when_finished,
            }  # fmt: skip
            self._save()

    def unfinish(self, name: str) -> None:
        """Record that a verb is no longer finished."""
        if self._verbs.get(name, {}).get("finished"):
            self._verbs[name]["finished"] = False
            self._save()

    def finish(
        self, name: str, result: Mapping[str, Any], store_name: str = "", output_digest: str = ""
    ) -> None:
        """Record that a verb is finished, with its result and a digest of its output.

        With `store_name`, the verb counts as finished only while the number of units in that store
        stays the same.
        """
        units = {store_name: len(_records(self.folder / store_name))} if store_name else {}
        self._verbs[name].update(
            finished=True, result=dict(result), units=units, made=output_digest
        )
        self._save()

    def output_digest(self, name: str) -> str:
        """Return the output digest with which a verb last finished; "" if there is none."""
        return str(self._verbs.get(name, {}).get("made", ""))

    def commits(self, store_name: str) -> dict[str, Commit]:
        """Return the committed units of a store by name, in ascending order.

        Raises:
            InputError: a record is unreadable or has another format version, or a file that a
                record names is missing or has another size.
        """
        return read_commits(self.folder, store_name)

    def sweep(self, *stores: str) -> list[str]:
        """Remove the leftovers of killed runs from these stores; return the names of the files.

        A leftover is a file that no commit record names and whose name matches the store's pattern
        (layout.STORE_FILES), or the temporary version of such a file. A symbolic link, of a store
        or of a file, is never removed or followed, since its target may not belong to this run.
        """
        kept = {
            name for store in layout.STORE_FILES for commit in self.commits(store).values()
            for name in commit.files
        }  # fmt: skip
        orphans = []
        for store in stores:
            if storage.is_link(self.folder / store):
                continue
            pattern = re.compile(
                rf"{layout.STORE_FILES[store]}|\.({layout.STORE_FILES[store]}|commit-.+\.json)\.part"
            )
            for file in sorted(storage.sizes_in(self.folder / store)):
                path, name = self.folder / store / file, f"{store}/{file}"
                if name not in kept and pattern.fullmatch(file) and not storage.is_link(path):
                    path.unlink()
                    orphans.append(name)
        return orphans

    def _binds_nothing(self, work: Work, entry: Mapping[str, Any]) -> bool:
        if entry["finished"]:
            return False
        places = [place for place in (entry["store"], *work.unfinished) if place]
        is_empty = not any(self._has_content(place) for place in places)
        return entry["loose"] or (bool(places) and is_empty)

    def _has_content(self, place: str) -> bool:
        path = self.folder / place
        return bool(_records(path)) if place in layout.STORE_FILES else path.exists()

    def _save(self) -> None:
        write_json(self.folder / layout.RUN_RECORD, self._run)

    def _refuse_changed(self, verb: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        absent = "absent"
        changed = [
            f"{key} was {_short(old.get(key, absent))}, is {_short(new.get(key, absent))}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key, absent) != new.get(key, absent)
        ]
        if changed:
            raise ConfigError(
                f"run folder {self.folder} holds '{verb}' made by another config: "
                f"{'; '.join(changed)}. Give another run.out, or set the old values again."
            )


def write_unit(
    folder: Place, store_name: str, unit: str, files: Mapping[str, Content], *, rows: int,
    counts: Mapping[str, int], input_digest: str = "", over: Commit | None = None,
) -> Commit:  # fmt: skip
    """Write the files of a unit (content by path in the run folder), then its commit record.

    Return the record. The caller need not be the process that has locked the run folder; that
    process may let other processes write units. A unit that is recorded with the same
    `input_digest` is kept unchanged, since a process that was wrongly thought dead may write its
    unit a second time. `over` is the unit's current record if the unit is to be replaced; the next
    sweep then removes the files that only this old record names.

    Raises:
        TooManyFailuresError: so many rows have crashed that the run is at fault.
    """
    refuse_crashed(unit, rows, counts)
    path = folder / store_name / layout.commit_file(unit)
    if input_digest and path.is_file() and not over:
        done = read_commit(folder, store_name, unit)
        if done.input_digest == input_digest:
            return done
    written = {name: write_file(folder / name, content) for name, content in files.items()}
    commit = Commit(unit, written, rows, dict(counts), input_digest)
    if over:
        storage.replace(path, _record_of(over), _record_of(commit))
    else:
        storage.create(path, _record_of(commit))
    return commit


@contextmanager
def open_run(folder: Place) -> Iterator[Ledger]:
    """Yield the ledger of a run folder, which is locked against other writers during the block.

    The folder is created if it does not exist.

    Raises:
        ConfigError: the folder cannot be written, or holds files that belong to no run.
        InputError: another process writes to the folder, or it has another format version.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / layout.LOCK))
        except OSError as error:
            raise ConfigError(
                f"run.out: folder {folder} cannot be written: {error.strerror}. Give another "
                "run.out."
            ) from error
        yield Ledger(folder)


def read_commits(folder: Place, store_name: str) -> dict[str, Commit]:
    """Return the committed units of a store by name, in ascending order.

    Raises:
        InputError: as `Ledger.commits`.
    """
    sizes = cache(lambda store: storage.sizes_in(folder / store))
    paths = _records(folder / store_name)
    commits = {}
    for path, data in zip(paths, storage.read_many(paths), strict=True):
        commit = _commit_of(_parsed(data, path), path)
        for name, file in commit.files.items():
            parent, _, base = name.rpartition("/")
            size = sizes(parent).get(base)
            if size != file["size"]:
                found = "is missing" if size is None else f"has {size}"
                raise InputError(
                    f"{folder / name} should have {file['size']} bytes according to {path}, but it "
                    f"{found}. Remove that record and run the verb again; it redoes only this unit."
                )
        commits[commit.unit] = commit
    return commits


def read_commit(folder: Place, store_name: str, unit: str) -> Commit:
    """Return the record of one committed unit; the files that it names are not checked.

    Raises:
        InputError: the record is unreadable or has another format version.
    """
    path = folder / store_name / layout.commit_file(unit)
    return _commit_of(read_json(path), path)


def _record_of(commit: Commit) -> bytes:
    return _json({"format_version": schema.FORMAT_VERSION} | asdict(commit))


def _commit_of(record: Mapping[str, Any], path: Place) -> Commit:
    refuse_newer(record, path)
    with content_of(path):
        require_types(record, _COMMIT)
        for file in record["files"].values():
            require_types(file, {"sha256": str, "size": int})
        require_types(record["counts"], dict.fromkeys(record["counts"], int))
        return Commit(**{key: record[key] for key in _COMMIT})


def _read_run(folder: Place) -> dict[str, Any]:
    path = folder / layout.RUN_RECORD
    if path.exists():
        run = read_json(path)
        refuse_newer(run, path)
        with content_of(path):
            for entry in run["verbs"].values():
                require_types(entry, _ENTRY | ({"result": dict} if entry["finished"] else {}))
        return run
    known = (*layout.STORE_FILES, layout.ARCHIVE)
    present = [name for name in known if (folder / name).exists()]
    if present:
        raise ConfigError(
            f"run.out: {folder} has no {layout.RUN_RECORD}, but has a folder '{present[0]}', to "
            "which a run would write. Give another run.out."
        )
    run = {"format_version": schema.FORMAT_VERSION, "verbs": {}}
    write_json(path, run)
    return run


def _records(folder: Place) -> Sequence[Place]:
    return sorted(folder.glob(layout.commit_files()))


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
