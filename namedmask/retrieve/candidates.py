"""Categories → what each may choose from: its best-ranked images, kept in the run folder.

An offer is a unit of the store `offers`, named by a digest of all that it follows from. So a
category is looked for once, however often the list around it changes, and a renamed one not at all.
What close neighbors a candidate has is found here, from vectors that are then let go.

Memory: the vectors of the candidates of `GROUP` categories, a few numbers for each of the others.
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
from namedmask.embed.text import AskSide, Wording
from namedmask.metadata.urls import normalize_url
from namedmask.retrieve.faiss_index import scan_of
from namedmask.retrieve.pick import near_neighbors, pick_archive
from namedmask.retrieve.published import PublishedStore
from namedmask.retrieve.queries import Ask
from namedmask.retrieve.safety import Test, load_tests
from namedmask.retrieve.top_k import merge_top_k
from namedmask.retrieve.vectors import VectorStore
from namedmask.run.executor import Executor
from namedmask.run.job import Job
from namedmask.run.label_ids import Label
from namedmask.run.layout import CANDIDATE_LISTS
from namedmask.run.ledger import write_unit
from namedmask.schema.status import BLOCKED, NEGATIVE, PENDING, VETOED, VIOLENT
from namedmask.storage import Place
from namedmask.storage.files import read_parquet

NONE: Mapping[str, int] = MappingProxyType({})

GROUP = 64
"""Categories whose candidates' vectors are in memory together."""


@dataclass(frozen=True)
class Offer:
    """What one category may choose from, best-ranked first."""

    label: Label
    sample_ids: list[str]
    urls: list[str]
    scores: np.ndarray  # (k,) float32, descending
    neighbors: list[list[int]]  # of each the better ranks that it nearly equals, ascending
    own: dict[str, str] = field(default_factory=dict)  # verdicts that hold for this category alone

    blocked: tuple[int, ...] = ()  # hashes of images that the category must not get

    def pick(
        self, verdicts: Mapping[str, str], config: RetrieveConfig, hashes: Mapping[str, int] = NONE
    ) -> list[tuple[str, str | None]]:
        """Return (status, duplicate_of) of each candidate; see retrieve.pick_archive."""
        own = self.own | self._blocked_by_hash(verdicts, hashes, config.hash_distance)
        return pick_archive(
            self.sample_ids,
            self.neighbors,
            {**verdicts, **own} if own else verdicts,
            config.archive_size,
            chained=config.near_duplicates == "components",
            replenish_faces=config.replenish_faces,
            hashes=hashes,
            hash_distance=config.hash_distance,
        )

    def _blocked_by_hash(
        self, verdicts: Mapping[str, str], hashes: Mapping[str, int], distance: int
    ) -> dict[str, str]:
        return {
            one: BLOCKED
            for one in (self.sample_ids if self.blocked else ())
            if verdicts.get(one) == schema.OK
            and one in hashes
            and any((hashes[one] ^ bits).bit_count() <= distance for bits in self.blocked)
        }


def write_offers(
    folder: Place,
    store: VectorStore,
    asks: Sequence[tuple[Ask, np.ndarray, np.ndarray]],
    found: tuple[np.ndarray, np.ndarray],
    config: RetrieveConfig,
    tests: Sequence[tuple[str, Test]],
) -> Iterator[Ask]:
    """Commit an offer for each category asked for, and yield it when it is there.

    Args:
        asks: each with its vectors; see `Ask.vectors`.
        found: scores (C, k) float32 and rows (C, k) int64, as `exact_top_k` returns them.
        tests: what vectors may tell against an image, each with the status it gives.

    Raises:
        InputError: a vector cannot be used.
    """
    scores, rows = found
    for start in range(0, len(asks), GROUP):
        part = slice(start, start + GROUP)
        unique, places = np.unique(rows[part], return_inverse=True)
        places = places.reshape(rows[part].shape)
        sample_ids, urls, vectors = store.take(unique)
        for (ask, query, negatives), score, place in zip(
            asks[part], scores[part], places, strict=True
        ):
            offered = [sample_ids[one] for one in place], [urls[one] for one in place]
            mine: list[tuple[str, Test]] = [*tests]
            mine.append((NEGATIVE, partial(is_nearer, query, negatives)))
            statuses = statuses_of(vectors[place], mine)
            against = _against(store, offered[0], unique[place])
            statuses = [against.get(one, status)
                        for one, status in zip(offered[0], statuses, strict=True)]  # fmt: skip
            expected = vectors[place] if isinstance(store, PublishedStore) else None
            table = _offer_table(*offered, score, statuses, vectors[place], expected, config)
            files = {f"{CANDIDATE_LISTS}/{ask.unit}.parquet": table}
            counts = schema.counts_by_status(table["status"].to_pylist())
            write_unit(folder, CANDIDATE_LISTS, ask.unit, files, rows=table.num_rows, counts=counts)
            yield ask


def _against(store: VectorStore, sample_ids: list[str], rows: np.ndarray) -> dict[str, str]:
    """Return what the store says against a category's images: of two rows of one, one is enough."""
    pairs = zip(sample_ids, rows.tolist(), strict=True)
    return {one: store.verdicts[row] for one, row in pairs if row in store.verdicts}


def statuses_of(vectors: np.ndarray, tests: Sequence[tuple[str, Test]]) -> list[str]:
    """Return of each vector (N, D) the status of the first test that it fails, or pending."""
    statuses = np.full(len(vectors), PENDING, object)
    for status, is_bad in reversed(tests) if len(vectors) else ():
        statuses[is_bad(vectors)] = status
    return list(statuses)


def is_nearer(query: np.ndarray, others: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return (N,) bool: which vectors are closer to one of `others` (M, D) than to `query` (D,)."""
    if not len(others):
        return np.zeros(len(vectors), bool)
    nearer: np.ndarray = (vectors @ others.T).max(axis=1) > vectors @ query
    return nearer


def is_close(others: np.ndarray, cosine: float, vectors: np.ndarray) -> np.ndarray:
    """Return (N,) bool: which vectors are at least `cosine` close to one of `others` (M, D)."""
    close: np.ndarray = (vectors @ others.T >= cosine).any(axis=1)
    return close


def read_offer(folder: Place, ask: Ask) -> Offer:
    """Return the committed offer of a category, with what its rules say of it today."""
    names = [name for name in schema.OFFERS.names if name != "expected"]
    table = read_parquet(folder / CANDIDATE_LISTS / f"{ask.unit}.parquet", names)
    sample_ids, urls = table["sample_id"].to_pylist(), table["url"].to_pylist()
    own = dict(zip(sample_ids, table["status"].to_pylist(), strict=True))
    own = {one: status for one, status in own.items() if status != PENDING}
    own |= dict(_unwanted(sample_ids, urls, ask.rules))
    neighbors = table["neighbors"].to_pylist()
    blocked = tuple(int(text, 16) for text in ask.rules.blocked_hashes)
    return Offer(ask.label, sample_ids, urls, table["score"].to_numpy(), neighbors, own, blocked)


def expected_of(folder: Place, unit: str) -> dict[str, np.ndarray]:
    """Return the published vectors (D,) float16 of a committed offer, by sample id.

    Of an image that is there twice the better-ranked.
    """
    table = read_parquet(folder / CANDIDATE_LISTS / f"{unit}.parquet", ["sample_id", "expected"])
    pairs = zip(table["sample_id"].to_pylist(), table["expected"].to_numpy(), strict=True)
    return dict(reversed(list(pairs)))


def _offer_table(
    sample_ids: list[str],
    urls: list[str],
    scores: np.ndarray,
    statuses: list[str],
    vectors: np.ndarray,
    expected: np.ndarray | None,
    config: RetrieveConfig,
) -> pa.Table:
    count, chained = len(sample_ids), config.near_duplicates == "components"
    neighbors = near_neighbors(vectors, config.near_duplicate_cosine, chained=chained)
    kept = [None] * count if expected is None else list(expected.astype(np.float16))
    values = (range(count), scores, sample_ids, urls, statuses, neighbors, kept)
    arrays = [
        pa.array(value, kind) for value, kind in zip(values, schema.OFFERS.types, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema.OFFERS)


def _unwanted(
    sample_ids: Sequence[str], urls: Sequence[str], rules: CategoryConfig
) -> Iterator[tuple[str, str]]:
    """Yield the candidates that the category's rules speak against, each with its status."""
    vetoed, blocked = set(rules.vetoed), {normalize_url(url) or url for url in rules.blocked_urls}
    hosts = tuple(_host_of(f"http://{host}/") or host for host in rules.blocked_hosts)
    for one, url in zip(sample_ids, urls, strict=True):
        if one in vetoed:
            yield one, VETOED
        elif (blocked and (normalize_url(url) or url) in blocked) or _is_below(url, hosts):
            yield one, BLOCKED


def _is_below(url: str, hosts: Sequence[str]) -> bool:
    """Return whether the host of a url is one of `hosts` or a name below one."""
    host = _host_of(url) if hosts else ""
    return any(host == one or host.endswith(f".{one}") for one in hosts)


def _host_of(url: str) -> str:
    """Return the host of a url, lower case and ASCII; empty where it has none."""
    return urlsplit(normalize_url(url)).hostname or ""


def _look_for(executor: Executor, job: Job, vectors: VectorStore, asks: Sequence[Ask]) -> None:
    """Commit the offers of those categories that were not asked for before in the same way."""
    config, folder = job.config, job.ledger.folder
    retrieve = config.retrieve
    there = job.ledger.commits(CANDIDATE_LISTS)
    job.ledger.sweep(CANDIDATE_LISTS)
    new = list({ask.unit: ask for ask in asks if ask.unit not in there}.values())
    with job.clock("retrieve"), job.progress.step("retrieve", len(asks)) as step:
        step.advance(len(asks) - len(new))
        if not new:
            return
        text = [retrieve.violence_text] if retrieve.violence_text else []
        wordings = [*(ask.wording for ask in new), Wording(text, ("{}",))]
        sides = executor.map(job, "embed", partial(AskSide, config.embed), [wordings])
        *found, violence = next(iter(sides))
        asked = [(ask, *ask.vectors(one)) for ask, one in zip(new, found, strict=True)]
        queries = np.stack([query for _, query, _ in asked])
        if isinstance(vectors, PublishedStore):
            vectors.require_width(queries.shape[1], config.embed.model)
        tests = load_tests(retrieve, queries.shape[1])
        tests.append((VIOLENT, partial(is_close, violence, retrieve.violence_cosine)))
        scan, parts = scan_of(retrieve, vectors, queries, executor.parts)
        best = merge_top_k(executor.map(job, "retrieve", scan, parts), retrieve.candidates)
        for _ in write_offers(folder, vectors, asked, best, retrieve, tests):
            step.advance()
