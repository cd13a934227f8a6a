"""The index of a run's vectors, made once and made again when it no longer fits.

Memory while it is made: one wave, the training rows, and the index itself (4 bytes per number when
flat or hnsw, 1 when ivfsq, 1/8 when ivfpq). Cost on 2 virtual cores: docs/results.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.config import SearchConfig
from namedmask.errors import InputError
from namedmask.retrieve.faiss_index import load_faiss
from namedmask.retrieve.top_k import exact_top_k
from namedmask.retrieve.vectors import VectorStore
from namedmask.run import layout
from namedmask.run.progress import Progress, Step
from namedmask.search.index import (
    KINDS,
    RECALL_AT,
    Rows,
    SearchIndex,
    _lists,
    _on_device,
    _refuse_device,
    kind_for,
    no_vectors,
)
from namedmask.storage import Place
from namedmask.storage.files import read_json, write_file, write_json
from namedmask.storage.locks import locked
from namedmask.storage.place import kept_copy, sizes_in

QUERIES = 200
"""Queries for the recall: one half finds the depth, the other measures what it finds."""

MARGIN = 0.01
"""By how much the depth overshoots `search.recall` on the half that finds it."""

TRAINING_ROWS = 32
"""Vectors that an inverted list is trained on, taken at random."""

PQ_ROWS = 16_384
PQ_ROUNDS = 10
"""Vectors and rounds that the codes of ivfpq are trained with: a quarter and 2/5 of FAISS's own."""

FEWEST_CAPTIONS = 20

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts → (C, D) float32, unit L2 norm."""


def open_index(
    folder: Place, store: VectorStore, config: SearchConfig, embed: Embed, progress: Progress
) -> tuple[SearchIndex, dict[str, Any], str]:
    """Return the index of a run folder's store, its manifest, and why it was made now, or "".

    Raises:
        InputError: the store has no vectors, or another process makes the index.
        ConfigError: the kind is not for so few vectors, or not for a GPU.
        MissingExtraError: faiss is not installed.
    """
    count = sum(rows for _, _, rows in store.files())
    if count == 0:
        raise no_vectors(folder)
    wanted: dict[str, Any] = {
        "format_version": schema.FORMAT_VERSION,
        "kind": kind_for(config.kind, count),
        "rows": count,
        "store": store.digest(),
        "recall": config.recall,
    }
    _refuse_device(wanted["kind"], config.device)
    place = folder / layout.SEARCH_INDEX
    why = _why_new(place, wanted)
    if why:
        with locked(place / ".lock"):
            _make(place, store, config, wanted, embed, progress)
    manifest = read_json(place / layout.MANIFEST)
    return _load(place, manifest, config.device), manifest, why


def _load(folder: Place, manifest: Mapping[str, Any], device: str) -> SearchIndex:
    index_path, rows_path = (
        kept_copy(folder / name, manifest["files"][name]["sha256"])
        for name in (layout.FAISS_INDEX, layout.SEARCH_ROWS)
    )
    kind = manifest["kind"]
    try:
        index = load_faiss().read_index(str(index_path))
        found = SearchIndex(_on_device(index, kind, device), kind, Rows(rows_path))
    except (RuntimeError, pa.ArrowException) as error:
        raise InputError(
            f"{folder} cannot be read: {str(error).strip().splitlines()[-1]}. Remove that folder: "
            "the next search makes it again."
        ) from error
    found.deepen(manifest["depth"])
    return found


def _why_new(folder: Place, wanted: Mapping[str, Any]) -> str:
    """Return why the index of a folder cannot be used, empty where it can."""
    if not (folder / layout.MANIFEST).is_file():
        return "there was none"
    manifest = read_json(folder / layout.MANIFEST)
    reasons = {
        "format_version": "it was made by another version",
        "store": "the store has other vectors now",
        "kind": "it was of another kind",
        "recall": "search.recall was another",
    }
    for key, reason in reasons.items():
        if manifest.get(key) != wanted[key]:
            return reason
    sizes = sizes_in(folder)
    whole = all(sizes.get(name) == file["size"] for name, file in manifest["files"].items())
    return "" if whole else "a file of it is gone or cut short"


def _make(
    folder: Place,
    store: VectorStore,
    config: SearchConfig,
    wanted: Mapping[str, Any],
    embed: Embed,
    progress: Progress,
) -> None:
    """Write the index of a store into a folder, its manifest last."""
    (folder / layout.MANIFEST).unlink(missing_ok=True)
    with progress.step("index", 2 * wanted["rows"]) as step:
        files = {
            layout.SEARCH_ROWS: write_file(
                folder / layout.SEARCH_ROWS, lambda path: _write_rows(store, path, step)
            )
        }
        rows = Rows(kept_copy(folder / layout.SEARCH_ROWS, files[layout.SEARCH_ROWS]["sha256"]))
        index = _filled(wanted["kind"], rows, config.device, step)
        files[layout.FAISS_INDEX] = write_file(
            folder / layout.FAISS_INDEX, lambda path: load_faiss().write_index(index, str(path))
        )
    made = SearchIndex(_on_device(index, wanted["kind"], config.device), wanted["kind"], rows)
    measured = _measured(made, config.recall, embed)
    write_json(folder / layout.MANIFEST, {**wanted, **measured, "dim": rows.dim, "files": files})


def _write_rows(store: VectorStore, path: Path, step: Step) -> None:
    """Write the rows of a store as one Arrow file, a batch a wave."""
    with ExitStack() as stack:
        writer = None
        for table, vectors in store.tables():
            width = vectors.shape[1]
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), width)
            table = table.append_column("embedding", column)
            if writer is None:
                dim = width
                writer = stack.enter_context(pa.ipc.new_file(str(path), table.schema))
            if width != dim:
                raise InputError(
                    f"the store has vectors of {dim} and of {width} numbers; expected one length. "
                    "Remove its embeddings and run 'namedmask embed' again."
                )
            for batch in table.combine_chunks().to_batches():  # none where nothing is left of it
                writer.write_batch(batch)
            step.advance(len(table))


def _filled(kind: str, rows: Rows, device: str, step: Step) -> Any:
    """Return an index of a kind over the rows, by inner product, for the CPU.

    `device` is where it is trained and filled.
    """
    faiss = load_faiss()
    recipe = KINDS[kind].recipe(len(rows), rows.dim)
    index = faiss.index_factory(rows.dim, recipe, faiss.METRIC_INNER_PRODUCT)
    if kind == "ivfpq":
        index.do_polysemous_training = False  # for a filter that is not used, at 20 times the cost
        index.pq.cp.niter, index.pq.cp.max_points_per_centroid = PQ_ROUNDS, PQ_ROWS // 256
        index.pq.cp.min_points_per_centroid = 1  # it only warns below 39
    if kind.startswith("ivf"):
        index.cp.min_points_per_centroid = 1
        index = _on_device(index, kind, device)
        index.train(rows.vectors(_training_rows(len(rows))))
    for chunk in rows.chunks():
        index.add(chunk)
        step.advance(len(chunk))
    is_there = device == "cuda" and kind.startswith("ivf")
    return faiss.index_gpu_to_cpu(index) if is_there else index


def _training_rows(count: int) -> np.ndarray:
    """Return the rows (S,) int64, ascending, that lists and codes are trained on."""
    wanted = max(TRAINING_ROWS * _lists(count), PQ_ROWS)
    return np.sort(np.random.default_rng(0).choice(count, min(count, wanted), replace=False))


def _measured(made: SearchIndex, target: float, embed: Embed) -> dict[str, Any]:
    """Return the depth that reaches the recall, set from now on, and the recall it has.

    One half of the queries finds the depth, the other measures it. They are captions of the store,
    through the text side; where it has too few, vectors of the store.
    """
    queries, what = _queries(made.rows, embed)
    k = min(RECALL_AT, len(made.rows))
    scores, _ = exact_top_k(made.rows.chunks(), queries, k)
    depth = 0
    for depth in KINDS[made.kind].depths:
        made.deepen(depth)
        if _recall(made, queries[::2], scores[::2]) >= min(target + MARGIN, 1.0):
            break
    recall = round(_recall(made, queries[1::2], scores[1::2]), 4)
    return {"depth": depth, "recall_at_50": recall, "measured_on": f"{len(queries) // 2} {what}"}


def _queries(rows: Rows, embed: Embed) -> tuple[np.ndarray, str]:
    """Return vectors (≤ 200, D) float32 to measure the recall with, and what they are."""
    rng = np.random.default_rng(1)
    some = np.sort(rng.choice(len(rows), min(len(rows), 10 * QUERIES), replace=False))
    captions = {one.strip() for one in rows.table(some)["caption"].to_pylist() if one}
    texts = sorted(captions - {""})
    if len(texts) >= FEWEST_CAPTIONS:
        return embed(rng.permutation(texts)[:QUERIES].tolist()), "captions"
    return rows.vectors(np.sort(rng.permutation(some)[:QUERIES])), "vectors of the store"


def _recall(made: SearchIndex, queries: np.ndarray, scores: np.ndarray) -> float:
    """Return the share of the exact answers (C, k) that are found; equal scores are as good."""
    k = scores.shape[1]
    answers = made.search(queries, k)
    found = [
        np.count_nonzero(answer >= best[-1] - 1e-5)
        for (answer, _), best in zip(answers, scores, strict=True)
    ]
    return float(sum(found)) / (len(queries) * k)
