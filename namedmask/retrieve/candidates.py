"""Find the ranked candidates of each category, and commit them to the run folder.

A *candidate list* is a unit of the store `offers`. Its name is a digest of everything that the list
depends on. A category is therefore searched for once, even if other categories are added or
removed later, and a renamed category is not searched for again. Near duplicates among the
candidates are found here as well, because later steps do not load the vectors.

Memory: the vectors of all candidates of `GROUP` categories, and a few numbers per candidate of all
other categories.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.config import CategoryConfig, RetrieveConfig
from namedmask.embed.text import Prompts, QueryEncoder
from namedmask.metadata.urls import normalize_url
from namedmask.retrieve.faiss_index import scan_of
from namedmask.retrieve.pick import near_neighbors, pick_archive
from namedmask.retrieve.published import PublishedStore
from namedmask.retrieve.queries import CategoryQuery
from namedmask.retrieve.safety import Filter, load_filters
from namedmask.retrieve.top_k import merge_top_k
from namedmask.retrieve.vectors import VectorStore
from namedmask.run import layout
from namedmask.run.executor import Executor
from namedmask.run.job import VerbRun
from namedmask.run.label_ids import Label
from namedmask.run.layout import CANDIDATE_LISTS
from namedmask.run.ledger import write_unit
from namedmask.schema.status import BLOCKED, NEGATIVE, OK, PENDING, VETOED, VIOLENT
from namedmask.storage import Place
from namedmask.storage.files import read_parquet

NO_HASHES: Mapping[str, int] = MappingProxyType({})

GROUP = 64
"""Number of categories whose candidates' vectors are in memory at the same time."""


@dataclass(frozen=True)
class CandidateList:
    """The candidates of one category, best-ranked first."""

    label: Label
    sample_ids: list[str]
    urls: list[str]
    scores: np.ndarray  # (k,) float32, descending
    neighbors: list[list[int]]  # per candidate: better ranks that are near duplicates
    own_statuses: dict[str, str] = field(default_factory=dict)  # of excluded images, by sample id
    blocked_hashes: tuple[int, ...] = ()  # perceptual hashes to exclude
    unit: str = ""  # the name of the list in the run folder

    def pick(
        self,
        checked: Mapping[str, str],
        config: RetrieveConfig,
        hashes: Mapping[str, int] = NO_HASHES,
    ) -> list[tuple[str, str | None]]:
        """Return (status, duplicate_of) of each candidate, in rank order; see `pick_archive`.

        Args:
            checked: status of each checked image, by sample id.
            config: the section `retrieve`.
            hashes: perceptual hash of each image with status `ok`, by sample id.
        """
        own = self.own_statuses | self._blocked_by_hash(checked, hashes, config.hash_distance)
        return pick_archive(
            self.sample_ids,
            self.neighbors,
            {**checked, **own} if own else checked,
            config.archive_size,
            chained=config.near_duplicates == "components",
            replenish_faces=config.replenish_faces,
            hashes=hashes,
            hash_distance=config.hash_distance,
        )

    def _blocked_by_hash(
        self, checked: Mapping[str, str], hashes: Mapping[str, int], distance: int
    ) -> dict[str, str]:
        return {
            sample_id: BLOCKED
            for sample_id in (self.sample_ids if self.blocked_hashes else ())
            if checked.get(sample_id) == OK
            and sample_id in hashes
            and any((hashes[sample_id] ^ h).bit_count() <= distance for h in self.blocked_hashes)
        }


def find_candidates(
    executor: Executor, run: VerbRun, store: VectorStore, queries: Sequence[CategoryQuery]
) -> list[CandidateList]:
    """Return the candidate list of each category; search for the lists that do not exist yet.

    Raises:
        ConfigError: `retrieve.backend` is faiss and `retrieve.index` is empty.
        InputError: a vector is zero, not finite or of the wrong width, or a file cannot be read.
        CheckpointError: the file of a safety filter cannot be used.
    """
    folder, known = run.ledger.folder, run.ledger.commits(CANDIDATE_LISTS)
    run.ledger.sweep(CANDIDATE_LISTS)
    new = list({query.unit: query for query in queries if query.unit not in known}.values())
    with run.clock("retrieve"), run.progress.step("retrieve", len(queries)) as step:
        step.advance(len(queries) - len(new))
        if new:
            for _ in _search(executor, run, store, new):
                step.advance()
    return [read_candidate_list(folder, query) for query in queries]


def _search(
    executor: Executor, run: VerbRun, store: VectorStore, queries: Sequence[CategoryQuery]
) -> Iterator[str]:
    """Find and commit the candidates of these categories; yield each unit once it is committed."""
    config, retrieve = run.config, run.config.retrieve
    prompts = {query.unit: query.prompts for query in queries}
    violence = Prompts([retrieve.violence_text] if retrieve.violence_text else [], ("{}",))
    encode = partial(QueryEncoder, config.embed)
    encoded = executor.call(run, "embed", encode, prompts | {VIOLENT: violence})
    vectors = [query.vectors(encoded[query.unit]) for query in queries]
    wanted = np.stack([wanted for wanted, _ in vectors])
    if isinstance(store, PublishedStore):
        store.require_width(wanted.shape[1], config.embed.model)
    filters = load_filters(retrieve, wanted.shape[1])
    filters.append((VIOLENT, partial(is_close, encoded[VIOLENT], retrieve.violence_cosine)))
    scan, parts = scan_of(retrieve, store, wanted, executor.parts)
    best = merge_top_k(executor.map(run, "retrieve", scan, parts), retrieve.candidates)
    units = list(prompts)
    yield from write_candidate_lists(
        run.ledger.folder, store, units, vectors, best, retrieve, filters
    )


def write_candidate_lists(
    folder: Place,
    store: VectorStore,
    units: Sequence[str],
    vectors: Sequence[tuple[np.ndarray, np.ndarray]],
    best: tuple[np.ndarray, np.ndarray],
    config: RetrieveConfig,
    filters: Sequence[tuple[str, Filter]],
) -> Iterator[str]:
    """Commit the candidate list of each category, and yield its unit once it is committed.

    Args:
        folder: the run folder.
        store: the vectors that were searched.
        units: the name of each category's candidate list.
        vectors: per category, its query (D,) and its negative queries (N, D), float32, unit L2
            norm.
        best: scores (C, k) float32 and rows (C, k) int64, as `exact_top_k` returns them.
        config: the section `retrieve`.
        filters: pairs of a status and the safety filter on vectors that gives it.

    Raises:
        InputError: a vector cannot be read or is not of unit length.
    """
    scores, rows = best
    for start in range(0, len(units), GROUP):
        part = slice(start, start + GROUP)
        unique, indices = np.unique(rows[part], return_inverse=True)
        indices = indices.reshape(rows[part].shape)
        sample_ids, urls, taken = store.take(unique)
        for unit, (query, negatives), score, index in zip(
            units[part], vectors[part], scores[part], indices, strict=True
        ):
            ids, candidates = [sample_ids[i] for i in index], taken[index]
            own: list[tuple[str, Filter]] = [*filters]
            own.append((NEGATIVE, partial(is_nearer, query, negatives)))
            by_metadata = _statuses_by_metadata(store, ids, unique[index])
            statuses = [
                by_metadata.get(sample_id, status)
                for sample_id, status in zip(ids, statuses_of(candidates, own), strict=True)
            ]
            expected = candidates if isinstance(store, PublishedStore) else None
            table = _table_of(
                ids, [urls[i] for i in index], score, statuses, candidates, expected, config
            )
            counts = schema.counts_by_status(statuses)
            files = {layout.candidate_list_file(unit): table}
            write_unit(folder, CANDIDATE_LISTS, unit, files, rows=table.num_rows, counts=counts)
            yield unit


def _statuses_by_metadata(
    store: VectorStore, sample_ids: list[str], rows: np.ndarray
) -> dict[str, str]:
    """Return the statuses of the candidates that the metadata excludes, by sample id.

    If several rows have the same sample id, one excluded row excludes the image.
    """
    pairs = zip(sample_ids, rows.tolist(), strict=True)
    bad = store.row_statuses
    return {sample_id: bad[row] for sample_id, row in pairs if row in bad}


def statuses_of(vectors: np.ndarray, filters: Sequence[tuple[str, Filter]]) -> list[str]:
    """Return, per vector, the status of the first filter that excludes it, or `pending`.

    Args:
        vectors: (N, D) float32, unit L2 norm.
        filters: pairs of a status and the filter that gives it, in order of precedence.
    """
    statuses = np.full(len(vectors), PENDING, object)
    for status, is_bad in reversed(filters) if len(vectors) else ():
        statuses[is_bad(vectors)] = status
    return list(statuses)


def is_nearer(query: np.ndarray, others: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return (N,) bool, true for vectors closer to any of `others` (M, D) than to `query` (D,)."""
    if not len(others):
        return np.zeros(len(vectors), bool)
    nearer: np.ndarray = (vectors @ others.T).max(axis=1) > vectors @ query
    return nearer


def is_close(others: np.ndarray, cosine: float, vectors: np.ndarray) -> np.ndarray:
    """Return (N,) bool, true for vectors with a cosine ≥ `cosine` to any of `others` (M, D)."""
    close: np.ndarray = (vectors @ others.T >= cosine).any(axis=1)
    return close


def read_candidate_list(folder: Place, query: CategoryQuery) -> CandidateList:
    """Return the committed candidate list of a category.

    The category's exclusion rules are applied here. They can therefore change without a new search.
    """
    names = [name for name in schema.CANDIDATE_LIST.names if name != "expected"]
    table = read_parquet(folder / layout.candidate_list_file(query.unit), names)
    sample_ids, urls = table["sample_id"].to_pylist(), table["url"].to_pylist()
    statuses = zip(sample_ids, table["status"].to_pylist(), strict=True)
    own = {sample_id: status for sample_id, status in statuses if status != PENDING}
    own |= dict(_excluded(sample_ids, urls, query.rules))
    return CandidateList(
        query.label, sample_ids, urls, table["score"].to_numpy(), table["neighbors"].to_pylist(),
        own, tuple(int(digits, 16) for digits in query.rules.blocked_hashes), query.unit,
    )  # fmt: skip


def published_vectors_of(folder: Place, unit: str) -> dict[str, np.ndarray]:
    """Return the published vectors (D,) float16 of a committed candidate list, by sample id.

    If a sample id occurs twice, the vector is that of its better-ranked row.
    """
    table = read_parquet(folder / layout.candidate_list_file(unit), ["sample_id", "expected"])
    pairs = zip(table["sample_id"].to_pylist(), table["expected"].to_numpy(), strict=True)
    return dict(reversed(list(pairs)))  # a later pair replaces an earlier one


def _table_of(
    sample_ids: list[str],
    urls: list[str],
    scores: np.ndarray,
    statuses: list[str],
    vectors: np.ndarray,
    expected: np.ndarray | None,
    config: RetrieveConfig,
) -> pa.Table:
    """Return a candidate list as a table of `schema.CANDIDATE_LIST`."""
    count, chained = len(sample_ids), config.near_duplicates == "components"
    neighbors = near_neighbors(vectors, config.near_duplicate_cosine, chained=chained)
    published = [None] * count if expected is None else list(expected.astype(np.float16))
    values = (range(count), scores, sample_ids, urls, statuses, neighbors, published)
    arrays = [
        pa.array(value, kind)
        for value, kind in zip(values, schema.CANDIDATE_LIST.types, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema.CANDIDATE_LIST)


def _excluded(
    sample_ids: Sequence[str], urls: Sequence[str], rules: CategoryConfig
) -> Iterator[tuple[str, str]]:
    """Yield (sample_id, status) of each candidate that the category's rules exclude."""
    vetoed, blocked = set(rules.vetoed), {normalize_url(url) or url for url in rules.blocked_urls}
    hosts = tuple(_host_of(f"http://{host}/") or host for host in rules.blocked_hosts)
    for sample_id, url in zip(sample_ids, urls, strict=True):
        if sample_id in vetoed:
            yield sample_id, VETOED
        elif (blocked and (normalize_url(url) or url) in blocked) or _is_below(url, hosts):
            yield sample_id, BLOCKED


def _is_below(url: str, hosts: Sequence[str]) -> bool:
    """Return whether the host of a url is in `hosts` or is a subdomain of one of them."""
    host = _host_of(url) if hosts else ""
    return any(host == blocked or host.endswith(f".{blocked}") for blocked in hosts)


def _host_of(url: str) -> str:
    """Return the host of a url, lower case and ASCII; empty if the url has none."""
    return urlsplit(normalize_url(url)).hostname or ""
