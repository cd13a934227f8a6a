"""Fills the archives from the ranked candidates, in rounds of fetching and checking.

`fill_archives` is independent of the engine. It passes sample ids to a function that checks the
images, in a plain loop or on a cluster, and returns their statuses. The images of the next round
depend only on the statuses so far. Equal statuses therefore lead to equal archives, even if the run
was interrupted and resumed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from namedmask import schema
from namedmask.config import RetrieveConfig
from namedmask.errors import InputError
from namedmask.retrieve.candidates import NO_HASHES, CandidateList
from namedmask.retrieve.pick import gaps, next_to_try
from namedmask.run.failures import refuse_none_ok
from namedmask.schema.status import NEAR_DUPLICATE, PENDING, SURPLUS, UNTRIED

NONE_OK = "candidates.parquet lists the status of each candidate."
"""Way out of a run whose archives are all empty."""

CheckImages = Callable[[list[str]], Mapping[str, str]]
"""Maps sample ids to the status of each image, by sample id."""


def fill_archives(
    lists: Sequence[CandidateList],
    config: RetrieveConfig,
    check: CheckImages,
    hashes: Mapping[str, int] = NO_HASHES,
) -> dict[str, str]:
    """Return the status of each image tried, by sample id.

    The rounds end when no further check can change an archive, at the latest after
    1 + `retrieve.top_up_rounds` rounds.

    Args:
        lists: the candidate list of each category.
        config: the section `retrieve`.
        check: fetches and checks images.
        hashes: perceptual hash of each image with status `ok`, by sample id. Calls of `check` add
            entries.
    """
    checked: dict[str, str] = {}
    for _ in range(1 + config.top_up_rounds):
        wanted: dict[str, None] = {}  # in category order, to store a category's images together
        for candidates in lists:
            statuses = [status for status, _ in candidates.pick(checked, config, hashes)]
            rate = _pass_rate(candidates, statuses, checked)
            size = config.archive_size
            if not config.replenish_faces:
                size -= gaps(statuses, size)
            ranks = next_to_try(statuses, size, rate, config.overfetch)
            wanted.update((candidates.sample_ids[rank], None) for rank in ranks)
        if not wanted:
            break
        checked.update(check(list(wanted)))
    return checked


def settle(
    candidates: CandidateList,
    checked: Mapping[str, str],
    config: RetrieveConfig,
    hashes: Mapping[str, int] = NO_HASHES,
) -> pa.Table:
    """Return the candidates of a category (schema.CANDIDATES) with their final statuses.

    A candidate that could be accepted but was never checked gets the status `untried`.
    """
    picked = _settled(candidates, checked, config, hashes)
    statuses, duplicates = [status for status, _ in picked], [original for _, original in picked]
    count = len(candidates.sample_ids)
    values = (
        [candidates.label.name] * count, [candidates.label.label_id] * count, range(count),
        candidates.scores, candidates.sample_ids, candidates.urls, statuses, duplicates,
    )  # fmt: skip
    arrays = [
        pa.array(value, kind) for value, kind in zip(values, schema.CANDIDATES.types, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema.CANDIDATES)


def candidate_funnel(tables: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Return candidates_in, candidates_by_status, and by_category (counts by status per category).

    `tables` are the results of `settle`, by category.
    """
    by_category = {
        name: schema.counts_by_status(table["status"].to_pylist()) for name, table in tables.items()
    }
    total: Counter[str] = Counter()
    for counts in by_category.values():
        total.update(counts)
    return {
        "candidates_in": total.total(),
        "candidates_by_status": schema.counts_by_status(total.elements()),
        "by_category": by_category,
    }


def refuse_empty_archives(by_category: Mapping[str, Mapping[str, int]]) -> None:
    """Raise if a category has no image in its archive.

    Raises:
        TooManyFailuresError: no candidate of any category is ok.
        InputError: names each empty category with its counts by status.
    """
    total: Counter[str] = Counter()
    for counts in by_category.values():
        total.update(counts)
    refuse_none_ok("candidates", total, NONE_OK)
    empty = [
        f"'{name}' ({', '.join(f'{status} {n}' for status, n in counts.items()) or 'no candidate'})"
        for name, counts in by_category.items()
        if not counts.get(schema.OK)
    ]
    if empty:
        raise InputError(
            f"no image is left for {'; '.join(empty)}. Drop the category, give more metadata, or "
            "raise retrieve.candidates. candidates.parquet lists the status of each candidate."
        )


def _settled(
    candidates: CandidateList,
    checked: Mapping[str, str],
    config: RetrieveConfig,
    hashes: Mapping[str, int],
) -> list[tuple[str, str | None]]:
    """Return the result of `CandidateList.pick` with every pending candidate marked `untried`.

    When a candidate becomes `untried`, its near duplicates may become pending in turn.
    """
    final = dict(checked)
    while True:
        picked = candidates.pick(final, config, hashes)
        pending = [
            sample_id
            for sample_id, (status, _) in zip(candidates.sample_ids, picked, strict=True)
            if status == PENDING
        ]
        if not pending:
            return picked
        final.update(dict.fromkeys(pending, UNTRIED))


def _pass_rate(
    candidates: CandidateList, statuses: Sequence[str], checked: Mapping[str, str]
) -> float:
    """Return the share of tried candidates that were accepted; 1 before the first try.

    Near duplicates, and candidates that vectors or the config exclude, do not count.
    """
    tried = [
        status
        for sample_id, status in zip(candidates.sample_ids, statuses, strict=True)
        if sample_id in checked
        and sample_id not in candidates.own_statuses
        and status != NEAR_DUPLICATE
    ]
    good = sum(status in (schema.OK, SURPLUS) for status in tried)
    return good / len(tried) if tried else 1.0
