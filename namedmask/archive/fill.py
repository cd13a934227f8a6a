"""Retrieved candidates → full archives, in rounds of trying; says nothing about who tries.

A *look* takes sample ids and returns the verdict on each image: a plain loop here, a graph on a
cluster. What is tried next follows from the verdicts of the rounds before and from nothing else, so
equal verdicts end in equal archives, however often the work was cut off in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from namedmask import schema
from namedmask.config import RetrieveConfig
from namedmask.errors import InputError
from namedmask.retrieve.candidates import NONE, Offer
from namedmask.retrieve.pick import gaps, next_to_try
from namedmask.schema.status import NEAR_DUPLICATE, PENDING, SURPLUS, UNTRIED

Look = Callable[[list[str]], Mapping[str, str]]


def fill_archives(
    offers: Sequence[Offer], config: RetrieveConfig, look: Look, hashes: Mapping[str, int] = NONE
) -> dict[str, str]:
    """Return the verdicts on the images tried until archives are full or the rounds are over.

    `hashes` are of the good images by sample id, and grow as `look` looks.
    """
    verdicts: dict[str, str] = {}
    for _ in range(1 + config.top_up_rounds):
        wanted: dict[str, None] = {}  # by category, so that a category's images are stored together
        for offer in offers:
            statuses = [status for status, _ in offer.pick(verdicts, config, hashes)]
            rate = _pass_rate(offer, statuses, verdicts)
            size = config.archive_size
            if not config.replenish_faces:
                size -= gaps(statuses, size)
            ranks = next_to_try(statuses, size, rate, config.overfetch)
            wanted.update((offer.sample_ids[rank], None) for rank in ranks)
        if not wanted:
            break
        verdicts.update(look(list(wanted)))
    return verdicts


def settle(
    offer: Offer,
    verdicts: Mapping[str, str],
    config: RetrieveConfig,
    hashes: Mapping[str, int] = NONE,
) -> pa.Table:
    """Return the candidates of a category (schema.CANDIDATES) with their final statuses.

    Those that were never tried are `untried`.
    """
    settled = _settled(offer, verdicts, config, hashes)
    statuses, duplicates = [one for one, _ in settled], [one for _, one in settled]
    count = len(offer.sample_ids)
    values = (
        [offer.label.name] * count, [offer.label.label_id] * count, range(count), offer.scores,
        offer.sample_ids, offer.urls, statuses, duplicates,
    )  # fmt: skip
    arrays = [
        pa.array(value, kind) for value, kind in zip(values, schema.CANDIDATES.types, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema.CANDIDATES)


def candidate_funnel(tables: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Return candidates_in, candidates_by_status and, for each category, its counts by status.

    `tables` are the settled candidates by category.
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


def _pass_rate(offer: Offer, statuses: Sequence[str], verdicts: Mapping[str, str]) -> float:
    """Return the share of tried candidates that were accepted, 1 before any was tried.

    What is known without a try, from the vectors or the config, is left out.
    """
    tried = [
        status
        for sample_id, status in zip(offer.sample_ids, statuses, strict=True)
        if sample_id in verdicts and sample_id not in offer.own and status != NEAR_DUPLICATE
    ]
    good = sum(status in (schema.OK, SURPLUS) for status in tried)
    return good / len(tried) if tried else 1.0
