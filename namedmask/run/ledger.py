"""What is done in a run folder: one writer, committed units, finished verbs.

A *unit* is the smallest work that is done or not done: a wave of rows, a category's expert. Its
files go to temporary names in their own folder, are flushed and renamed; then its commit record
`<folder>/commit-<unit>.json` follows the same way. A file that no record names never happened:
`sweep` removes it. So a run that is killed anywhere loses the unit under way and nothing else.

`run.json` tells, verb by verb, the settings that shaped its output and what it ended with. The same
verb again with the same settings has nothing to do; with others it is refused, key by key.

No file carries a time, a path or a run id: equal input and settings give equal bytes.
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
from namedmask.run.verb_table import Work
from namedmask.storage import Place
from namedmask.storage import place as storage
from namedmask.storage.files import (
    Content,
    _json,
    _parsed,
    read_json,
    refuse_newer,
    write_file,
    write_json,
)
from namedmask.storage.locks import locked


@dataclass(frozen=True)
class Commit:
    """The record of one finished unit."""

    unit: str
    files: dict[str, dict[str, Any]]  # name below the run folder → {sha256, size}
    rows: int
    counts: dict[str, int]  # rows by status
    input_digest: str  # of what the unit was made from; empty where its name says it


class Ledger:
    """The record keeper of one run folder; get it from `open_run`."""

    def __init__(self, folder: Place) -> None:
        self.folder = folder
        self._run = _read_run(folder)
        self._verbs: dict[str, Any] = self._run["verbs"]

    def finished(
        self, work: Work, settings: Mapping[str, Any], categories_digest: str = ""
    ) -> dict[str, Any] | None:
        """Return what a verb ended with, None when it is not finished.

        Args:
            work: the verb's row in the table of verbs.
            settings: its flat settings; see `settings_of`.
            categories_digest: digest of what may change from one time to the next: with another
                digest there is work again.

        Raises:
            ConfigError: the verb has written something here with other settings.
        """
        entry = self._verbs.get(work.name)
        if entry is None or self._binds_nothing(entry):
            return None
        is_same = entry["content"] == categories_digest
        if is_same or work.reuse_when_categories_change:
            self._refuse_others(work.name, entry["settings"], settings)
        records = {name: len(_records(self.folder / name)) for name in entry["units"]}
        is_finished = is_same and entry["finished"] and entry["units"] == records
        return dict(entry["result"]) if is_finished else None

    def is_begun(self, work: Work, categories_digest: str = "") -> bool:
        """Return whether the folder is bound to a verb for categories with this digest."""
        entry = self._verbs.get(work.name)
        if entry is None or self._binds_nothing(entry):
            return False
        return bool(entry["content"] == categories_digest)

    def start(self, work: Work, settings: Mapping[str, Any], categories_digest: str = "") -> None:
        """Bind the folder to these settings, before the first write of a verb.

        The bond counts for nothing as long as `work.store_name` has no committed unit, and, of work
        whose settings hold only when it is finished, until then.
        """
        if not self.is_begun(work, categories_digest):
            self._verbs[work.name] = {
                "settings": dict(settings), "finished": False, "units": {},
                "store": work.store_name, "content": categories_digest,
                "loose": work.settings_hold_only_when_finished,
            }  # fmt: skip
            self._save()

    def unfinish(self, name: str) -> None:
        """Note that what a verb ended with does not hold any more."""
        if self._verbs.get(name, {}).get("finished"):
            self._verbs[name]["finished"] = False
            self._save()

    def finish(
        self, name: str, result: Mapping[str, Any], store_name: str = "", output_digest: str = ""
    ) -> None:
        """Record that a verb is done, what it ended with, and a digest of its output.

        With `store_name`, it counts as done as long as that store has as many units as now.
        """
        units = {store_name: len(_records(self.folder / store_name))} if store_name else {}
        self._verbs[name].update(
            finished=True, result=dict(result), units=units, made=output_digest
        )
        self._save()

    def output_digest(self, name: str) -> str:
        """Return the digest that a verb was last finished with; empty: none is known."""
        return str(self._verbs.get(name, {}).get("made", ""))

    def commits(self, store_name: str) -> dict[str, Commit]:
        """Return the committed units of a store, by name in ascending order.

        Raises:
            InputError: a record is unreadable or newer, or a file it names is gone or cut short.
        """
        return read_commits(self.folder, store_name)

    def sweep(self, *stores: str) -> list[str]:
        """Remove the leftovers of killed runs from these stores; return their names.

        A leftover is a file without a commit record under a name that the store itself gives, or
        the temporary part of one. A store that is a link to a folder elsewhere, or a file that is a
        link, is left alone: what lies behind it may be somebody else's.
        """
        kept = {
            name for store in layout.STORE_FILES for commit in self.commits(store).values()
            for name in commit.files
        }  # fmt: skip
        orphans = []
        for store in stores:
            if storage.is_link(self.folder / store):
                continue
            own = re.compile(
                rf"{layout.STORE_FILES[store]}|\.({layout.STORE_FILES[store]}|commit-.+\.json)\.part"
            )
            for file in sorted(storage.sizes_in(self.folder / store)):
                path, name = self.folder / store / file, f"{store}/{file}"
                if name not in kept and own.fullmatch(file) and not storage.is_link(path):
                    path.unlink()
                    orphans.append(name)
        return orphans

    def _binds_nothing(self, entry: Mapping[str, Any]) -> bool:
        if entry["finished"]:
            return False
        store = entry["store"]
        return entry["loose"] or (bool(store) and not _records(self.folder / store))

    def _save(self) -> None:
        write_json(self.folder / layout.RUN_RECORD, self._run)

    def _refuse_others(self, verb: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        absent = "absent"
        changed = [
            f"{key} was {_short(old.get(key, absent))}, is {_short(new.get(key, absent))}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key, absent) != new.get(key, absent)
        ]
        if changed:
            raise ConfigError(
                f"run folder {self.folder} holds '{verb}' made by another config: "
                f"{'; '.join(changed)}. Give another run.out, or set the old value again."
            )


def write_unit(
    folder: Place,
    store_name: str,
    unit: str,
    files: Mapping[str, Content],
    *,
    rows: int,
    counts: Mapping[str, int],
    input_digest: str = "",
    over: Commit | None = None,
) -> Commit:
    """Write the files of a unit (by name below the run folder), then its record; return it.

    Needs no lock: whoever holds the folder's may let others write, a unit each. A unit with a
    record of the same `input_digest` is done and stays: whoever writes it again was thought lost.
    With `over`, the record there, it is made anew of other files; a sweep takes the old ones.
    """
    path = folder / store_name / layout.commit_file(unit)
    if input_digest and path.is_file() and not over:
        done = read_commit(folder, store_name, unit)
        if done.input_digest == input_digest:
            return done
    written = {name: write_file(folder / name, what) for name, what in files.items()}
    commit = Commit(unit, written, rows, dict(counts), input_digest)
    if over:
        storage.replace(path, _record_of(over), _record_of(commit))
    else:
        storage.create(path, _record_of(commit))
    return commit


@contextmanager
def open_run(folder: Place) -> Iterator[Ledger]:
    """Yield the ledger of a run folder, made when missing, locked against a second writer.

    Raises:
        ConfigError: the folder cannot be written, or holds something that is no run.
        InputError: another process writes to it, or its format is newer than this package.
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
    """Return the committed units of a store of a run folder, as `Ledger.commits` does."""
    sizes = cache(lambda store: storage.sizes_in(folder / store))
    paths = _records(folder / store_name)
    commits = {}
    for path, data in zip(paths, storage.read_many(paths), strict=True):
        commit = _commit_of(_parsed(data, path), path)
        for name, file in commit.files.items():
            place, _, base = name.rpartition("/")
            found = sizes(place).get(base)
            if found != file["size"]:
                raise InputError(
                    f"{folder / name} should have {file['size']} bytes as {path} says, and has "
                    f"{'none' if found is None else found}. Remove that record and run the verb "
                    "again: only this unit is redone."
                )
        commits[commit.unit] = commit
    return commits


def read_commit(folder: Place, store_name: str, unit: str) -> Commit:
    """Return one committed unit; raises as `Ledger.commits`, but looks at no other file."""
    path = folder / store_name / layout.commit_file(unit)
    return _commit_of(read_json(path), path)


def _record_of(commit: Commit) -> bytes:
    return _json({"format_version": schema.FORMAT_VERSION} | asdict(commit))


def _commit_of(record: Mapping[str, Any], path: Place) -> Commit:
    refuse_newer(record, path)
    return Commit(**{key: record[key] for key in Commit.__dataclass_fields__})


def _read_run(folder: Place) -> dict[str, Any]:
    path = folder / layout.RUN_RECORD
    if path.exists():
        run = read_json(path)
        refuse_newer(run, path)
        return run
    known = (*layout.STORE_FILES, layout.ARCHIVE)
    strangers = [name for name in known if (folder / name).exists()]
    if strangers:
        raise ConfigError(
            f"run.out: {folder} has no {layout.RUN_RECORD}, yet a folder '{strangers[0]}', which a "
            "run would write to. Give another run.out."
        )
    run = {"format_version": schema.FORMAT_VERSION, "verbs": {}}
    write_json(path, run)
    return run


def _records(folder: Place) -> Sequence[Place]:
    return sorted(folder.glob(layout.commit_files()))


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
