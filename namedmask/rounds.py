"""Retrieved candidates → full archives, in rounds of trying; says nothing about who tries.

A *look* takes sample ids and returns the verdict on each image: a plain loop here, a graph on a
cluster. What is tried next follows from the verdicts of the rounds before and from nothing else, so
equal verdicts end in equal archives, however often the work was cut off in between.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from namedmask import schema
from namedmask.categories import CategorySet
from namedmask.config import RetrieveConfig
from namedmask.errors import InputError
from namedmask.heads import VIOLENT
from namedmask.published import PublishedStore, VectorFile
from namedmask.retrieve import (
    NEAR_DUPLICATE,
    PENDING,
    SURPLUS,
    candidates_table,
    exact_top_k,
    next_to_try,
    pick_archive,
)
from namedmask.storage import Place
from namedmask.stores import EmbeddingStore, read_vectors

UNTRIED = "untried"
"""Status of a candidate that no round came to: its archive was full, or the rounds were over."""

Look = Callable[[list[str]], Mapping[str, str]]

NONE: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class Offer:
    """What one category may choose from, best-ranked first."""

    sample_ids: list[str]
    vectors: np.ndarray  # (k, D) float32, unit L2 norm

    def pick(
        self, verdicts: Mapping[str, str], config: RetrieveConfig, hashes: Mapping[str, int] = NONE
    ) -> list[tuple[str, str | None]]:
        """Return (status, duplicate_of) of each candidate; see retrieve.pick_archive."""
        return pick_archive(
            self.sample_ids,
            self.vectors,
            verdicts,
            config.archive_size,
            config.near_duplicate_cosine,
            hashes,
            config.hash_distance,
        )


@dataclass(frozen=True)
class Offers:
    """The candidates of all categories (schema.CANDIDATES, by label and rank) and their vectors."""

    candidates: pa.Table
    index: np.ndarray  # (C, k) int64: row of `vectors` of each candidate
    vectors: np.ndarray  # (U, D) float32, unit L2 norm; an image two categories share is there once

    def __iter__(self) -> Iterator[Offer]:
        ids = self.candidates["sample_id"].to_pylist()
        k = self.index.shape[1]
        for number, rows in enumerate(self.index):
            yield Offer(ids[number * k : (number + 1) * k], self.vectors[rows])


@dataclass(frozen=True)
class FilePart:
    """Files of vectors that follow one another, and the number of their first row."""

    paths: Sequence[Place | VectorFile]
    first: int

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield all their vectors, (N, D) float16 or float32."""
        for path in self.paths:
            if isinstance(path, VectorFile):
                yield from path.chunks()
            else:
                yield read_vectors(path)


def file_parts(store: EmbeddingStore | PublishedStore, count: int) -> list[FilePart]:
    """Return the store's files cut into at most `count` parts of about as many files."""
    files = [(path, first) for path, first, rows in store.files() if rows]
    size = max(1, math.ceil(len(files) / count))
    cut = [files[start : start + size] for start in range(0, len(files), size)]
    return [FilePart([path for path, _ in part], part[0][1]) for part in cut] or [FilePart([], 0)]


class TopK:
    """The best rows of some files for all queries; see retrieve.exact_top_k."""

    def __init__(self, queries: np.ndarray, k: int) -> None:
        self._queries, self._k = queries, k

    def __call__(self, part: FilePart) -> tuple[np.ndarray, np.ndarray]:
        """Return scores (C, k) float32 and rows (C, k) int64 of the whole store."""
        return exact_top_k(part.chunks(), self._queries, self._k, part.first)


def offers_of(
    store: EmbeddingStore | PublishedStore,
    category_set: CategorySet,
    scores: np.ndarray,
    rows: np.ndarray,
) -> Offers:
    """Return what each category may choose from: the rows (C, k) int64 that were found best.

    Raises:
        InputError: a vector cannot be used.
    """
    unique, index = np.unique(rows, return_inverse=True)
    index = index.reshape(rows.shape)
    sample_ids, urls, vectors = store.take(unique)
    candidates = candidates_table(category_set, scores, index, sample_ids, urls)
    return Offers(candidates, index, vectors)


def violent(offers: Offers, texts: np.ndarray, cosine: float) -> dict[str, str]:
    """Return the verdict `violent` on each candidate at least `cosine` close to one of `texts`.

    `texts`: (T, D) float32, unit L2 norm; with none there is none. Differs: LAION's detector is two
    learned prompts.
    """
    return flagged(offers, (offers.vectors @ texts.T >= cosine).any(axis=1), VIOLENT)


def flagged(offers: Offers, bad: np.ndarray, verdict: str) -> dict[str, str]:
    """Return a verdict on each candidate whose vector is bad; `bad` (U,) bool."""
    ids = offers.candidates["sample_id"].to_numpy()
    return dict.fromkeys(ids[bad[offers.index.ravel()]].tolist(), verdict)


def fill_archives(
    offers: Offers,
    config: RetrieveConfig,
    look: Look,
    known: Mapping[str, str] | None = None,
    hashes: Mapping[str, int] = NONE,
) -> dict[str, str]:
    """Return the verdicts on the images tried until archives are full or the rounds are over.

    `known` verdicts come from vectors and metadata alone: those images are not tried. `hashes` are
    of the good images by sample id, and grow as `look` looks.
    """
    known = known or {}
    verdicts = dict(known)
    for _ in range(1 + config.top_up_rounds):
        wanted: dict[str, None] = {}  # by category, so that a category's images are stored together
        for offer in offers:
            statuses = [status for status, _ in offer.pick(verdicts, config, hashes)]
            rate = _pass_rate(offer.sample_ids, statuses, verdicts.keys() - known.keys())
            ranks = next_to_try(statuses, config.archive_size, rate, config.overfetch)
            wanted.update((offer.sample_ids[rank], None) for rank in ranks)
        if not wanted:
            break
        verdicts.update(look(list(wanted)))
    return verdicts


def settle(
    offers: Offers,
    verdicts: Mapping[str, str],
    config: RetrieveConfig,
    hashes: Mapping[str, int] = NONE,
) -> pa.Table:
    """Return the candidates with their final statuses; those never tried are `untried`."""
    statuses: list[str] = []
    duplicates: list[str | None] = []
    for offer in offers:
        for status, duplicate_of in _settled(offer, verdicts, config, hashes):
            statuses.append(status)
            duplicates.append(duplicate_of)
    table = offers.candidates
    for name, values in (("status", statuses), ("duplicate_of", duplicates)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.array(values, schema.TYPES[name]))
    return table


def accepted(candidates: pa.Table, category_set: CategorySet) -> Iterator[pa.Table]:
    """Yield the candidates that make up the archive of each category, ascending rank."""
    good = candidates.filter(pc.equal(candidates["status"], schema.OK))
    for name in category_set.names:
        yield good.filter(pc.equal(good["category"], name))


def candidate_funnel(candidates: pa.Table, category_set: CategorySet) -> dict[str, Any]:
    """Return candidates_in, candidates_by_status and, for each category, its counts by status."""
    names, statuses = candidates["category"].to_pylist(), candidates["status"].to_pylist()
    by_category: dict[str, dict[str, int]] = {name: {} for name in category_set.names}
    for (name, status), count in Counter(zip(names, statuses, strict=True)).most_common():
        by_category[name][status] = count
    return {
        "candidates_in": len(statuses),
        "candidates_by_status": schema.counts_by_status(statuses),
        "by_category": by_category,
    }


def refuse_empty_archives(by_category: Mapping[str, Mapping[str, int]]) -> None:
    """Raise InputError when a category has no image, naming each with what became of its offers."""
    empty = [
        f"'{name}' ({', '.join(f'{status} {n}' for status, n in counts.items()) or 'no candidate'})"
        for name, counts in by_category.items()
        if not counts.get(schema.OK)
    ]
    if empty:
        raise InputError(
            f"no image is left for {'; '.join(empty)}. Drop the category, give more metadata, or "
            "raise retrieve.candidates; candidates.parquet tells the fate of each."
        )


def _settled(
    offer: Offer, verdicts: Mapping[str, str], config: RetrieveConfig, hashes: Mapping[str, int]
) -> list[tuple[str, str | None]]:
    """Return what `Offer.pick` says once nothing pending holds a place or hides a duplicate."""
    final = dict(verdicts)
    while True:
        picked = offer.pick(final, config, hashes)
        pending = [
            sample_id
            for sample_id, (status, _) in zip(offer.sample_ids, picked, strict=True)
            if status == PENDING
        ]
        if not pending:
            return picked
        final.update(dict.fromkeys(pending, UNTRIED))


def _pass_rate(sample_ids: Sequence[str], statuses: Sequence[str], looked_at: Set[str]) -> float:
    """Return the share of tried candidates that were accepted, 1 before any was tried.

    Near duplicates and urls that repeat are left out: such candidates are not tried.
    """
    tried = [
        status
        for sample_id, status in zip(sample_ids, statuses, strict=True)
        if sample_id in looked_at and status not in (NEAR_DUPLICATE, schema.DUPLICATE_URL)
    ]
    good = sum(status in (schema.OK, SURPLUS) for status in tried)
    return good / len(tried) if tried else 1.0
