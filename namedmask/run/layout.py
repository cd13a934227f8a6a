"""Every file and folder of a run folder by its name on the disk; no other module spells one out.

A run folder holds *stores* (each file named by a commit record, see ledger.py), single files that a
verb writes whole, and folders that are made again when they no longer fit.
"""

from __future__ import annotations

from pathlib import Path

RUN_RECORD = "run.json"
"""What is finished, and with which settings."""

LOCK = ".lock"
"""Held by the one process that may write to the run folder."""

SAVED_CONFIG = "run.toml"
"""The resolved config of the last verb."""

TIMINGS = "timings.json"
"""Seconds by stage, summed over all verbs."""

FUNNELS = "funnels.json"
"""Counts by status of all rows and of all candidates."""

CANDIDATES = "candidates.parquet"
"""What became of every candidate (schema.CANDIDATES)."""

LABEL_IDS = "labels.json"
"""The label ids given out so far."""

MODEL_CHECK = "proof.json"
"""Whether the embedder reproduces the published vectors."""

CLUSTERS = "clusters.json"
"""The categories that share an expert."""

ARCHIVE = "archive"
"""The archives: one parquet file per category, and their manifest."""

MANIFEST = "manifest.json"
"""The file, written last, that makes the archive or the search index whole."""

CHECKPOINT = Path("segmenter") / "checkpoint.pt"
"""The trained segmenter."""

TRAINING = Path("segmenter") / "training.pt"
"""The state of a training until it is done."""

RAY_TRAIN = Path("segmenter") / "ray"
"""Scratch space of Ray Train, removed at the end of a training."""

EVALUATION = "evaluation.json"
"""The segmenter's scores."""

LABEL_MAPS = "evaluation"
"""Predicted label maps of the best and the worst scenes."""

BASELINES = "baselines"
"""Scores and threshold sweeps of MaskCLIP and ReCo."""

ABLATIONS = "ablations"
"""Studies, and the run folder of each of their trials."""

SEARCH_INDEX = "index"
"""The index of `namedmask search`."""

SEARCH_ROWS = "rows.arrow"
"""Every row of the search index with its vector."""

FAISS_INDEX = "index.faiss"
"""The FAISS index over the search rows."""

CLEAN_METADATA = "metadata"
"""Clean rows of the metadata, kept on Ray as long as a verb needs them."""

REPORT = "report.html"
"""The page that `namedmask report` writes."""

DEMO_SUMMARY = "summary.json"
"""The demo's numbers."""

DEMO_WORLD = "world"
"""The drawn world of the demo."""

DEMO_PICTURE = "demo.png"
"""Scenes of the demo: picture, truth, prediction."""

FETCHED = "fetched"
"""Store of fetched images (schema.FETCHED); no other verb reads it."""

EMBEDDINGS = "embeddings"
"""Store of image vectors (schema.EMBEDDINGS)."""

CANDIDATE_LISTS = "offers"
"""Store of the ranked candidates of each category (schema.OFFERS)."""

IMAGES = "images"
"""Store of checked images (schema.IMAGES)."""

REFINED = "refined"
"""Store of the masks that the experts drew (schema.REFINED), beside the archive."""

EXPERTS = "experts"
"""Store of the experts' checkpoints."""

SHARED_EXPERT = "shared"
"""Unit of the expert where all others start."""

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
"""The stores, and the pattern of the file names that each gives: no sweep removes another name."""


def commit_file(unit: str) -> str:
    """Return the name, in its store, of the commit record of a unit."""
    return f"commit-{unit}.json"


def commit_files() -> str:
    """Return the glob pattern of all commit records of a store."""
    return commit_file("*")


def wave_file(store_name: str, kind: str, unit: str) -> str:
    """Return the name, below the run folder, of a wave's file of a kind, `wave` or `tombstones`."""
    return f"{store_name}/{kind}-{unit}.parquet"


def wave_files() -> str:
    """Return the glob pattern, in a store, of the good rows of all waves."""
    return "wave-*.parquet"


def candidate_list_file(unit: str) -> str:
    """Return the name, below the run folder, of the candidate list of a category."""
    return f"{CANDIDATE_LISTS}/{unit}.parquet"


def expert_file(unit: str) -> str:
    """Return the name, below the run folder, of the checkpoint of an expert."""
    return f"{EXPERTS}/{unit}.pt"


def scores_file(split: str) -> str:
    """Return the name, in the folder of an ablation's trial, of its scores on a split."""
    return f"scores-{split}.json"
