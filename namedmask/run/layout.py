"""The names of all files and folders of a run folder; no other module spells one out.

A run folder holds *stores* (folders whose files are named by commit records, see ledger.py), single
files that a verb writes as a whole, and folders that are rebuilt when their input has changed.
"""

from __future__ import annotations

from pathlib import Path

RUN_RECORD = "run.json"
"""File that records which verbs are finished, with their settings and results."""

LOCK = ".lock"
"""File that is locked by the single process that may write to the run folder."""

SAVED_CONFIG = "run.toml"
"""File with the resolved config of the last verb."""

TIMINGS = "timings.json"
"""File with the seconds per stage, summed over all verbs."""

FUNNELS = "funnels.json"
"""File with the counts by status of all rows and of all candidates."""

CANDIDATES = "candidates.parquet"
"""File with the final status of every candidate (schema.CANDIDATES)."""

LABEL_IDS = "labels.json"
"""File with the label ids assigned so far."""

MODEL_CHECK = "proof.json"
"""File that says whether the embedder reproduces the published vectors."""

CLUSTERS = "clusters.json"
"""File that lists, per expert, the categories that share it."""

ARCHIVE = "archive"
"""Folder of the archives: one parquet file per category, and their manifest."""

MANIFEST = "manifest.json"
"""File that is written last and marks an archive or a search index as complete."""

CHECKPOINT = Path("segmenter") / "checkpoint.pt"
"""File with the trained segmenter."""

TRAINING = Path("segmenter") / "training.pt"
"""File with the state of an unfinished training."""

RAY_TRAIN = Path("segmenter") / "ray"
"""Scratch folder of Ray Train, removed at the end of a training."""

EVALUATION = "evaluation.json"
"""File with the segmenter's scores."""

LABEL_MAPS = "evaluation"
"""Folder of the predicted label maps of the best and the worst scenes."""

BASELINES = "baselines"
"""Folder of the scores and threshold sweeps of MaskCLIP and ReCo."""

ABLATIONS = "ablations"
"""Folder of the ablation studies, with one run folder per trial."""

SEARCH_INDEX = "index"
"""Folder of the index of `namedmask search`."""

SEARCH_ROWS = "rows.arrow"
"""File, in the search index, with all its rows and their vectors."""

FAISS_INDEX = "index.faiss"
"""File, in the search index, with the FAISS index over its rows."""

CLEAN_METADATA = "metadata"
"""Folder of clean metadata rows, which exists on Ray while a verb reads them."""

REPORT = "report.html"
"""Web page that `namedmask report` writes."""

DEMO_SUMMARY = "summary.json"
"""File with the demo's numbers."""

DEMO_WORLD = "world"
"""Folder of the mini world that the demo draws."""

DEMO_PICTURE = "demo.png"
"""Image of some scenes of the demo: input, ground truth, prediction."""

FETCHED = "fetched"
"""Store of the images that the verb `fetch` wrote (schema.FETCHED); no other verb reads it."""

EMBEDDINGS = "embeddings"
"""Store of image vectors (schema.EMBEDDINGS)."""

CANDIDATE_LISTS = "offers"
"""Store of candidate lists, one unit per category query (schema.CANDIDATE_LIST)."""

IMAGES = "images"
"""Store of checked images (schema.IMAGES)."""

REFINED = "refined"
"""Store of the masks that the experts redrew (schema.REFINED); the archive keeps its own."""

EXPERTS = "experts"
"""Store of the experts' checkpoints."""

SHARED_EXPERT = "shared"
"""Name of the unit of the shared expert, from which all other experts start."""

_WAVE = r"(wave|tombstones)-\d{5,}(\.[0-9a-f]{8})?\.parquet"
_CATEGORY = r"\d{5}-[a-z0-9-]+"
STORE_FILES = {
    FETCHED: _WAVE,
    EMBEDDINGS: _WAVE,
    CANDIDATE_LISTS: r"[0-9a-f]{20}\.parquet",
    IMAGES: _WAVE,
    REFINED: rf"{_CATEGORY}\.parquet",
    EXPERTS: rf"({SHARED_EXPERT}|{_CATEGORY}|cluster-\d{{5}}-[0-9a-f]{{12}})\.pt",
}
"""The stores, with a regular expression of their file names; a sweep removes no other files."""


def commit_file(unit: str) -> str:
    """Return the file name of a unit's commit record, inside its store."""
    return f"commit-{unit}.json"


def commit_files() -> str:
    """Return the glob pattern of the commit records of a store, inside it."""
    return commit_file("*")


def wave_file(store_name: str, kind: str, unit: str) -> str:
    """Return the path of a wave's file in the run folder; `kind` is `wave` or `tombstones`."""
    return f"{store_name}/{kind}-{unit}.parquet"


def wave_files() -> str:
    """Return the glob pattern of the files with the good rows of all waves, inside a store."""
    return "wave-*.parquet"


def candidate_list_file(unit: str) -> str:
    """Return the path, in the run folder, of the candidate list of a category."""
    return f"{CANDIDATE_LISTS}/{unit}.parquet"


def expert_file(unit: str) -> str:
    """Return the path, in the run folder, of the checkpoint of an expert."""
    return f"{EXPERTS}/{unit}.pt"


def scores_file(split: str) -> str:
    """Return the file name, in the folder of an ablation's trial, of its scores on a split."""
    return f"scores-{split}.json"
