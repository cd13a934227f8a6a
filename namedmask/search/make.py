"""Make the index of a run's vectors, and make it again when the vectors or the settings change.

The folder `index/` of the run folder contains `rows.arrow` (all rows with their vectors, read by
row through the page cache), `index.faiss`, and `manifest.json`, which is written last. The manifest
has a digest of the vectors, the kind of index, its search depth and its measured recall.

Memory while the index is made: one wave, the training rows, and the index itself (4 bytes per
number for flat and hnsw, 1 for ivfsq, 1/8 for ivfpq). Cost on 2 virtual cores: docs/results.md.
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
    kind_for,
    no_vectors,
    num_lists,
    on_device,
    refuse_device,
)
from namedmask.storage import Place
from namedmask.storage.files import content_of, read_json, write_file, write_json
from namedmask.storage.locks import locked
from namedmask.storage.place import kept_copy, sizes_in

QUERIES = 200
"""Number of queries; one half serves to choose the depth, the other to measure the recall."""

MARGIN = 0.01
"""Margin above `search.recall` that the recall must reach when the depth is chosen."""

TRAINING_ROWS = 32
"""Number of randomly chosen training vectors per inverted list."""

PQ_ROWS = 16_384
"""Number of vectors on which the codes of ivfpq are trained, a quarter of FAISS's default."""

PQ_ROUNDS = 10
"""Number of k-means iterations that train the codes of ivfpq, 2/5 of FAISS's default."""

MIN_CAPTIONS = 20
"""Smallest number of different captions with which the recall is measured."""

Embed = Callable[[Sequence[str]], np.ndarray]
"""A function of C texts that returns vectors (C, D) float32, unit L2 norm."""


def open_index(
    folder: Place, store: VectorStore, config: SearchConfig, embed: Embed, progress: Progress
) -> tuple[SearchIndex, dict[str, Any], str]:
    """Return the search index of a run folder, its manifest, and why it was made now.

    The reason is "" if the index on disk could be used. `embed` encodes captions to measure the
    recall.

    Raises:
        InputError: the store has no vectors, another process is making the index, faiss sees no
            GPU, or a file cannot be read.
        ConfigError: the store has too few vectors for the kind, or the kind has no GPU version.
        MissingExtraError: faiss is not installed, or is the CPU build.
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
    refuse_device(wanted["kind"], config.device)
    index_folder = folder / layout.SEARCH_INDEX
    reason = _why_stale(index_folder, wanted)
    if reason:
        with locked(index_folder / layout.LOCK):
            _make_index(index_folder, store, config, wanted, embed, progress)
    manifest = read_json(index_folder / layout.MANIFEST)
    with content_of(index_folder / layout.MANIFEST):
        return _load(index_folder, manifest, config.device), manifest, reason


def _load(folder: Place, manifest: Mapping[str, Any], device: str) -> SearchIndex:
    index_path, rows_path = (
        kept_copy(folder / name, manifest["files"][name]["sha256"])
        for name in (layout.FAISS_INDEX, layout.SEARCH_ROWS)
    )
    kind = manifest["kind"]
    try:
        index = load_faiss().read_index(str(index_path))
        loaded = SearchIndex(on_device(index, kind, device), kind, Rows(rows_path))
    except (RuntimeError, OSError, pa.ArrowException) as error:
        raise InputError(
            f"{folder} cannot be read: {str(error).strip().splitlines()[-1]}. Remove that folder; "
            "the next search makes the index again."
        ) from error
    loaded.set_depth(manifest["depth"])
    return loaded


def _why_stale(folder: Place, wanted: Mapping[str, Any]) -> str:
    """Return the reason why the index in a folder cannot be used; "" if it can be used."""
    if not (folder / layout.MANIFEST).is_file():
        return "there was none"
    manifest = read_json(folder / layout.MANIFEST)
    reasons = {
        "format_version": "it was made by another version",
        "store": "the store has other vectors now",
        "kind": "search.kind has changed",
        "recall": "search.recall has changed",
    }
    for key, reason in reasons.items():
        if manifest.get(key) != wanted[key]:
            return reason
    sizes = sizes_in(folder)
    with content_of(folder / layout.MANIFEST):
        is_whole = all(sizes.get(name) == file["size"] for name, file in manifest["files"].items())
    return "" if is_whole else "one of its files is missing or truncated"


def _make_index(
    folder: Place,
    store: VectorStore,
    config: SearchConfig,
    wanted: Mapping[str, Any],
    embed: Embed,
    progress: Progress,
) -> None:
    """Write the index of a store into a folder; the manifest is written last."""
    (folder / layout.MANIFEST).unlink(missing_ok=True)
    with progress.step("index", 2 * wanted["rows"]) as step:
        files = {
            layout.SEARCH_ROWS: write_file(
                folder / layout.SEARCH_ROWS, lambda path: _write_rows(store, path, step)
            )
        }
        rows = Rows(kept_copy(folder / layout.SEARCH_ROWS, files[layout.SEARCH_ROWS]["sha256"]))
        index = _filled_index(wanted["kind"], rows, config.device, step)
        files[layout.FAISS_INDEX] = write_file(
            folder / layout.FAISS_INDEX, lambda path: load_faiss().write_index(index, str(path))
        )
    made = SearchIndex(on_device(index, wanted["kind"], config.device), wanted["kind"], rows)
    measured = _measure(made, config.recall, embed)
    write_json(folder / layout.MANIFEST, {**wanted, **measured, "dim": rows.dim, "files": files})


def _write_rows(store: VectorStore, path: Path, step: Step) -> None:
    """Write the rows of a store as an Arrow file, with one record batch per table of the store."""
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
                    f"the store has vectors of {dim} and of {width} numbers; expected one width. "
                    "Remove its embeddings and run 'namedmask embed' again."
                )
            for batch in table.combine_chunks().to_batches():  # none if the table is empty
                writer.write_batch(batch)
            step.advance(len(table))


def _filled_index(kind: str, rows: Rows, device: str, step: Step) -> Any:
    """Return an inner-product index over all rows, on the CPU.

    An ivf index is trained and filled on `device`.
    """
    faiss = load_faiss()
    recipe = KINDS[kind].recipe(len(rows), rows.dim)
    index = faiss.index_factory(rows.dim, recipe, faiss.METRIC_INNER_PRODUCT)
    if kind == "ivfpq":
        index.do_polysemous_training = False  # not needed, and training is 20 times slower with it
        index.pq.cp.niter, index.pq.cp.max_points_per_centroid = PQ_ROUNDS, PQ_ROWS // 256
        index.pq.cp.min_points_per_centroid = 1  # silences a warning below 39
    if kind.startswith("ivf"):
        index.cp.min_points_per_centroid = 1
        index = on_device(index, kind, device)
        index.train(rows.vectors(_training_rows(len(rows))))
    for chunk in rows.chunks():
        index.add(chunk)
        step.advance(len(chunk))
    is_on_gpu = device == "cuda" and kind.startswith("ivf")
    return faiss.index_gpu_to_cpu(index) if is_on_gpu else index


def _training_rows(count: int) -> np.ndarray:
    """Return the rows (S,) int64, ascending, on which the lists and the codes are trained."""
    wanted = max(TRAINING_ROWS * num_lists(count), PQ_ROWS)
    return np.sort(np.random.default_rng(0).choice(count, min(count, wanted), replace=False))


def _measure(made: SearchIndex, target: float, embed: Embed) -> dict[str, Any]:
    """Return the depth that reaches the recall `target`, and the recall at that depth.

    The depth is chosen with one half of the queries and stays set on the index. The recall is
    measured with the other half. The queries are encoded captions of the store, or vectors of the
    store if it has too few captions.
    """
    queries, source = _queries(made.rows, embed)
    k = min(RECALL_AT, len(made.rows))
    scores, _ = exact_top_k(made.rows.chunks(), queries, k)
    depth = 0
    for depth in KINDS[made.kind].depths:
        made.set_depth(depth)
        if _recall(made, queries[::2], scores[::2]) >= min(target + MARGIN, 1.0):
            break
    recall = round(_recall(made, queries[1::2], scores[1::2]), 4)
    return {"depth": depth, "recall_at_50": recall, "measured_on": f"{len(queries) // 2} {source}"}


def _queries(rows: Rows, embed: Embed) -> tuple[np.ndarray, str]:
    """Return queries (≤ `QUERIES`, D) float32 for the recall, and a description of their source."""
    rng = np.random.default_rng(1)
    sample = np.sort(rng.choice(len(rows), min(len(rows), 10 * QUERIES), replace=False))
    captions = {text.strip() for text in rows.table(sample)["caption"].to_pylist() if text}
    texts = sorted(captions - {""})
    if len(texts) >= MIN_CAPTIONS:
        return embed(rng.permutation(texts)[:QUERIES].tolist()), "captions"
    return rows.vectors(np.sort(rng.permutation(sample)[:QUERIES])), "vectors of the store"


def _recall(made: SearchIndex, queries: np.ndarray, scores: np.ndarray) -> float:
    """Return the share of the exact answers that the index finds.

    `scores` (C, k) are those of the exact answers. A row with an equal score counts as found.
    """
    k = scores.shape[1]
    answers = made.search(queries, k)
    found = [
        np.count_nonzero(answer >= best[-1] - 1e-5)
        for (answer, _), best in zip(answers, scores, strict=True)
    ]
    result: float = float(sum(found)) / (len(queries) * k)
    return result
