"""The index that `namedmask search` asks: made once of a run's vectors, kept in the run folder.

`index/` holds `rows.arrow` (every row with its vector, read by row through the page cache),
`index.faiss`, and `manifest.json`, written last: of which commits it was made, its kind, how deep
it searches and the recall that was measured. For other vectors or another kind it is made again.

Whatever an index finds is scored again exactly: its codes decide what is found, not its rank.

Memory while it is made: one wave, the training rows, and the index itself (4 bytes a number when
flat or hnsw, 1 when ivfsq, 1/8 when ivfpq). Cost on 2 virtual cores: docs/results.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from namedmask import schema
from namedmask.config import SearchConfig
from namedmask.errors import ConfigError, InputError
from namedmask.indexes import load_faiss
from namedmask.ledger import read_json, write_file, write_json
from namedmask.locks import locked
from namedmask.offers import VectorStore
from namedmask.progress import Progress, Step
from namedmask.retrieve import exact_top_k
from namedmask.storage import Place, kept_copy, sizes_in

FOLDER = "index"
MANIFEST = "manifest.json"
ROWS = "rows.arrow"
INDEX = "index.faiss"

RECALL_AT = 50
QUERIES = 200
"""Queries for the recall: one half finds the depth, the other measures what it finds."""

MARGIN = 0.01
"""By how much the depth overshoots `search.recall` on the half that finds it."""

FLAT_ROWS = 100_000
"""Vectors up to which `auto` is flat: a query takes 35 ms at 768 numbers a vector."""

IVFSQ_ROWS = 4_000_000
"""Vectors up to which `auto` is ivfsq: 3 GB of memory at 768 numbers a vector."""

TRAINING_ROWS = 32
"""Vectors that an inverted list is trained on, taken at random."""

PQ_ROWS = 16_384
PQ_ROUNDS = 10
"""Vectors and rounds that the codes of ivfpq are trained with: a quarter and 2/5 of FAISS's own."""

FEWEST_CAPTIONS = 20

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts → (C, D) float32, unit L2 norm."""


@dataclass(frozen=True)
class Kind:
    """A kind of index, and how its search is deepened until it finds enough."""

    recipe: Callable[[int, int], str]  # vectors, their length → what faiss.index_factory reads
    depths: tuple[int, ...]
    over: int  # rows asked of it over rows wanted
    fewest: int = 1  # vectors it can be made of


def _lists(count: int) -> int:
    """Return how many inverted lists: about 2 √N, so that training and adding cost minutes."""
    return int(2 ** round(math.log2(2 * math.sqrt(count))))


def _codes(dim: int) -> int:
    """Return how many bytes stand for a vector: one for 8 numbers, or for the next that divides."""
    return next(dim // size for size in range(min(8, dim), dim + 1) if dim % size == 0)


_PROBES = (4, 8, 16, 32, 64, 128, 256, 512)

KINDS: dict[str, Kind] = {
    "flat": Kind(lambda count, dim: "Flat", (0,), over=1),
    "hnsw": Kind(lambda count, dim: "HNSW32", (64, 128, 256, 512, 1024, 2048), over=1),
    "ivfsq": Kind(lambda count, dim: f"IVF{_lists(count)},SQ8", _PROBES, over=4, fewest=1000),
    "ivfpq": Kind(
        lambda count, dim: f"IVF{_lists(count)},PQ{_codes(dim)}", _PROBES, over=20, fewest=1000
    ),
}


class Rows:
    """Every row of a store in one local file, mapped: only what is asked for is read."""

    def __init__(self, path: Path) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._batches = [reader.get_batch(n) for n in range(reader.num_record_batches)]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches])
        self.dim = reader.schema.field("embedding").type.list_size

    def __len__(self) -> int:
        return int(self._ends[-1])

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield the vectors, (N_i, D) float32 each."""
        yield from map(self._vectors, self._batches)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """Return the vectors (U, D) float32 of the rows (U,) int64, ascending."""
        found = [np.empty((0, self.dim), np.float32)]
        for batch, places in self._by_batch(rows):
            found.append(self._vectors(batch)[places])
        return np.concatenate(found)

    def table(self, rows: np.ndarray) -> pa.Table:
        """Return sample_id, url and caption of the rows (U,) int64, in their order."""
        ascending = np.sort(rows)
        names = ["sample_id", "url", "caption"]
        parts = [
            batch.select(names).take(pa.array(places))
            for batch, places in self._by_batch(ascending)
        ]
        return pa.Table.from_batches(parts).take(np.searchsorted(ascending, rows))

    def _by_batch(self, rows: np.ndarray) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        numbers = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(numbers):
            first = self._ends[number - 1] if number else 0
            yield self._batches[number], rows[numbers == number] - first

    def _vectors(self, batch: pa.RecordBatch) -> np.ndarray:
        flat: np.ndarray = batch.column("embedding").flatten().to_numpy()
        return flat.reshape(-1, self.dim)


class SearchIndex:
    """An index and the rows it is of, ready to be asked."""

    def __init__(self, index: Any, kind: str, rows: Rows) -> None:
        self._index, self.kind, self.rows = index, kind, rows

    def deepen(self, depth: int) -> None:
        """Set how deep it searches: one of the kind's `depths`."""
        if self.kind == "hnsw":
            self._index.hnsw.efSearch = depth
        elif self.kind != "flat":
            self._index.nprobe = min(depth, self._index.nlist)

    def search(self, queries: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return scores (≤ k,) float32 and rows (≤ k,) int64, best first, for each of (C, D).

        The scores are exact; of equal ones the lower row comes first.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        asked = min(k * KINDS[self.kind].over, len(self.rows))
        found = np.sort(self._index.search(queries, asked)[1], axis=1)
        return [self._best(*one, k) for one in zip(queries, found, strict=True)]

    def _best(self, query: np.ndarray, found: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        found = found[found >= 0]  # -1 stands where an index found fewer
        scores = np.einsum("nd,d->n", self.rows.vectors(found), query)
        order = np.lexsort((found, -scores))[:k]
        return scores[order], found[order]


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
    place = folder / FOLDER
    why = _why_new(place, wanted)
    if why:
        with locked(place / ".lock"):
            _make(place, store, config, wanted, embed, progress)
    manifest = read_json(place / MANIFEST)
    return _load(place, manifest, config.device), manifest, why


def no_vectors(folder: Place) -> InputError:
    """The error for a run folder with nothing to search."""
    return InputError(f"run folder {folder} has no vectors to search. Run 'namedmask embed' first.")


def kind_for(name: str, count: int) -> str:
    """Return the kind that a store of `count` vectors gets.

    `auto` goes by memory and by the time that two cores need to make it: never hnsw.

    Raises:
        ConfigError: there are too few vectors for the kind that was asked for.
    """
    by_size = "flat" if count <= FLAT_ROWS else "ivfsq" if count <= IVFSQ_ROWS else "ivfpq"
    kind = by_size if name == "auto" else name
    if count < KINDS[kind].fewest:
        raise ConfigError(
            f"search.kind is '{kind}', which takes at least {KINDS[kind].fewest:,} vectors; the "
            f"store has {count:,}. Set it to 'auto' or 'flat'."
        )
    return kind


def _load(folder: Place, manifest: Mapping[str, Any], device: str) -> SearchIndex:
    index_path, rows_path = (
        kept_copy(folder / name, manifest["files"][name]["sha256"]) for name in (INDEX, ROWS)
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
    if not (folder / MANIFEST).is_file():
        return "there was none"
    manifest = read_json(folder / MANIFEST)
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
    (folder / MANIFEST).unlink(missing_ok=True)
    with progress.step("index", 2 * wanted["rows"]) as step:
        files = {ROWS: write_file(folder / ROWS, lambda path: _write_rows(store, path, step))}
        rows = Rows(kept_copy(folder / ROWS, files[ROWS]["sha256"]))
        index = _filled(wanted["kind"], rows, config.device, step)
        files[INDEX] = write_file(
            folder / INDEX, lambda path: load_faiss().write_index(index, str(path))
        )
    made = SearchIndex(_on_device(index, wanted["kind"], config.device), wanted["kind"], rows)
    measured = _measured(made, config.recall, embed)
    write_json(folder / MANIFEST, {**wanted, **measured, "dim": rows.dim, "files": files})


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


def _refuse_device(kind: str, device: str) -> None:
    """Raise unless this faiss has an index of this kind on this device."""
    faiss = load_faiss("gpu" if device == "cuda" else "cpu")
    if device == "cuda" and kind == "hnsw":
        raise ConfigError("search.kind 'hnsw' runs on the CPU alone. Set search.device to 'cpu'.")
    if device == "cuda" and faiss.get_num_gpus() == 0:
        raise InputError("search.device is 'cuda', but faiss sees no GPU. Set it to 'cpu'.")


def _on_device(index: Any, kind: str, device: str) -> Any:
    """Return the index on `cpu` or `cuda`; never on another device than was asked for."""
    if device == "cpu":
        return index
    faiss = load_faiss("gpu")
    options = faiss.GpuClonerOptions()
    options.useFloat16 = kind == "ivfpq"  # its tables of 96 codes do not fit a block otherwise
    return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index, options)


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
